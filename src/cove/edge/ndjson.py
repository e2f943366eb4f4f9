"""Newline-delimited JSON: live, unbuffered, with a heartbeat and a typed end. One JSON object per line.

The stream always ends with a line of the source's own or with `{"error":…}` in the dialect's form; a client that sees
neither lost the connection. The heartbeat is an empty line, which every reader of such streams passes over.
"""

from __future__ import annotations

from typing import Final, TypeVar

from cove.edge.streaming import Streamed

E = TypeVar("E")

MEDIA_TYPE: Final = "application/x-ndjson"


class Lines(Streamed[E]):
    """A source of values as lines. `encode` turns one value into whole lines, each with its line break."""

    media_type = MEDIA_TYPE.encode()
    ping = b"\n"

    def failure(self, rendered: bytes) -> bytes:
        """A line of its own."""
        return b'{"error":%b}\n' % rendered
