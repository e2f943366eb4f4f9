"""Bodies for the awaited transport, which takes bytes and asynchronous iterables only."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import IO

from anyio import to_thread

from cove.sdk.files import PIECE_BYTES
from cove.sdk.wire import raw


def body_of(data: str | bytes | Iterable[bytes] | AsyncIterable[bytes]) -> bytes | AsyncIterable[bytes]:
    """Return `data` as the transport takes it. A plain iterable is read on the event loop: it must not block."""
    if isinstance(data, AsyncIterable):
        return data
    body: bytes | Iterable[bytes] = raw(data)
    return body if isinstance(body, bytes) else _each(body)


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def pieces_of(file: IO[bytes]) -> AsyncIterator[bytes]:
    """Yield a file's bytes from where it stands, read in a thread: a disk may block for long."""
    while piece := await to_thread.run_sync(file.read, PIECE_BYTES):
        yield piece
