"""A file of any size as base64 in one JSON object, `{"content":"..."}`, with flat memory."""

from __future__ import annotations

import binascii
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cove.edge.exchange import Exchange
from cove.edge.interrupt import interruptible
from cove.edge.ops import JSON, ErrorWriter


class Reader(Protocol):
    """An open file: iterates over its bytes."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes, in pieces."""
        ...


class Base64File:
    """A file on its way out. One that breaks off leaves the answer incomplete, which no client takes for a whole."""

    def __init__(self, open_it: Callable[[], AbstractAsyncContextManager[Reader]]) -> None:
        self._open_it = open_it

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Open, send."""
        del table
        async with interruptible(exchange), self._open_it() as reader:
            await exchange.start(200, [(b"content-type", JSON)])
            await exchange.write(b'{"content":"')
            rest = b""
            async for piece in reader:
                data = rest + piece
                whole = len(data) - len(data) % 3
                rest = data[whole:]
                await exchange.write(binascii.b2a_base64(data[:whole], newline=False))
            await exchange.write(binascii.b2a_base64(rest, newline=False) + b'"}', more=False)
