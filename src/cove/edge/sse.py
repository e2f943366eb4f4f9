"""Server-sent events: live, unbuffered, with a heartbeat and a typed end. HTML Living Standard, section 9.2.

The stream always ends with an event of the source's own or with the dialect's `error` event; a client that sees neither
lost the connection. Leaving (client gone, server stopping) closes the source, which may kill what it streams.
"""

from __future__ import annotations

from typing import Final, TypeVar

from cove.edge.errors import Malformed, Where
from cove.edge.streaming import Streamed

E = TypeVar("E")

LAST_EVENT_ID: Final = "Last-Event-ID"


def event(name: bytes, data: bytes, *, id_: int | None = None) -> bytes:
    """One event on the wire. `data` is one line (JSON without line breaks); `id_` comes back as `Last-Event-ID`."""
    if id_ is None:
        return b"event: %b\ndata: %b\n\n" % (name, data)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (id_, name, data)


def resumed_at(last_event_id: str | None, cursor: int) -> int:
    """The cursor to go on from: that of the last event which a client saw before it came back. Raises: Malformed."""
    if last_event_id is None:
        return cursor
    if not last_event_id.isdigit() or len(last_event_id) > len(str(2**63)) - 1:
        raise Malformed("Last-Event-ID is no id of this stream", where=Where.HEADER, field=LAST_EVENT_ID)
    return int(last_event_id)


class Events(Streamed[E]):
    """A source of values as server-sent events. `encode` turns one into `event(...)` bytes."""

    media_type = b"text/event-stream; charset=utf-8"
    ping = b": ping\n\n"

    def failure(self, rendered: bytes) -> bytes:
        """The event `error`."""
        return event(b"error", rendered)
