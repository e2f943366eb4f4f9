"""Downloads of any size with flat memory, and byte ranges (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from msgspec import Struct

from cove.edge.errors import RangeUnsatisfiable
from cove.edge.exchange import Exchange, Headers
from cove.edge.interrupt import interruptible
from cove.edge.ops import ErrorWriter

_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


class Reader(Protocol):
    """An open file: iterates over its bytes."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes, in pieces."""
        ...


class Span(Struct, frozen=True):
    """`length` bytes from `offset` on, of a file of `size`."""

    offset: int
    length: int
    size: int


def parse_range(header: str | None, size: int) -> Span | None:
    """The one range that is asked for, or None for the whole file.

    None also for every form that RFC 9110 lets a server ignore: other units, several ranges, nonsense.
    Raises: RangeUnsatisfiable.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(size - int(last), 0), size - 1
        if int(last) == 0:
            raise RangeUnsatisfiable(f"the file has {size} bytes", size=size)
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    if start >= size:
        raise RangeUnsatisfiable(f"the file has {size} bytes", size=size)
    return Span(start, end - start + 1, size)


class Download:
    """A file on its way out.

    `open_at(offset, length)` gives a context with a reader and the number of bytes to announce (None: not known
    beforehand, as for the files of /proc, whose size is 0). If the file shrinks while it is read, the connection is cut
    short of what was announced, so that a client never takes a part for the whole. `media_type`: of something that is
    made as it goes, of which no part can be had alone.
    """

    def __init__(
        self,
        open_at: Callable[[int, int], AbstractAsyncContextManager[tuple[Reader, int | None]]],
        span: Span | None,
        headers: Headers,
        media_type: str = "",
    ) -> None:
        self._media_type = media_type
        self._open_at = open_at
        self._span = span
        self._headers = headers

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Open, announce, send."""
        del table
        offset, length = (self._span.offset, self._span.length) if self._span else (0, -1)
        # uvicorn drops in silence what is sent to a client that has gone: without a watch the rest would still be read.
        async with interruptible(exchange), self._open_at(offset, length) as (reader, size):
            await exchange.start(206 if self._span else 200, self._head(size))
            if exchange.scope["method"] == "HEAD":
                await exchange.write(b"", more=False)
                return
            sent = 0
            async for piece in reader:
                sent += len(piece)
                is_over = size is not None and sent > size  # it grew since it was announced
                await exchange.write(piece[: (size or 0) - sent] if is_over else piece)
            await exchange.write(b"", more=False)

    def _head(self, size: int | None) -> Headers:
        headers: Headers = [
            *self._headers,
            (b"content-type", self._media_type.encode() or b"application/octet-stream"),
            (b"accept-ranges", b"none" if self._media_type else b"bytes"),
        ]
        if size is not None:
            headers.append((b"content-length", b"%d" % size))
        if self._span is not None:
            last = self._span.offset + self._span.length - 1
            headers.append((b"content-range", b"bytes %d-%d/%d" % (self._span.offset, last, self._span.size)))
        return headers
