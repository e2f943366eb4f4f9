"""Server-sent events, parsed as the bytes arrive. Pure; memory is bounded by the largest single event.

Only what the native API sends: `event` and `data` fields, LF or CRLF line ends, comments. `id` and `retry` are ignored.
Source: HTML Living Standard, section 9.2.6 (interpreting an event stream).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cove.sdk.errors import BadAnswer

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""A single event larger than this is refused: the server's chunks are far smaller."""


class EventParser:
    """Feed it bytes; it yields `(event, data)` pairs, each once its blank line has arrived."""

    def __init__(self, most_bytes: int = MAX_EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[tuple[str, str]]:
        """Take the next bytes and yield the events that they complete.

        Raises: BadAnswer (an event larger than `most_bytes`).
        """
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._rest, self._rest_size = [], 0
        self._rest.append(rest)  # joined once its end is there: a long line would be copied with every piece
        self._rest_size += len(rest)
        if self._rest_size + self._size > self._most_bytes:
            raise BadAnswer(f"the server sent an event larger than {self._most_bytes >> 20} MiB")
        for line in lines:
            done = self._take(line.removesuffix(b"\r").decode("utf-8", "replace"))
            if done is not None:
                yield done

    def _take(self, line: str) -> tuple[str, str] | None:
        if not line:
            event, data = self._event, self._data
            self._event, self._data, self._size = "", [], 0
            return (event or "message", "\n".join(data)) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
                self._size += len(value)
            case _:
                pass
        return None
