"""What live streams of any format share: unbuffered pieces, a heartbeat, a typed end.

`sse.py` and `ndjson.py` say how a piece, a ping and a failure look. The source is entered before the status goes out:
what it refuses is a status. Leaving (client gone, server stopping) closes the source, which may kill what it streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from cove.edge.errors import ClientGone, ServerStopping
from cove.edge.exchange import Exchange
from cove.edge.heartbeat import Heartbeat
from cove.edge.interrupt import interruptible
from cove.edge.ops import ErrorWriter
from cove.model.errors import CoveError

E = TypeVar("E")


class Streamed(ABC, Generic[E]):
    """A source of values as a stream. `encode` turns one value into bytes on the wire, or into none."""

    media_type: bytes
    ping: bytes
    caching = b"no-store"

    def __init__(self, source: AbstractAsyncContextManager[AsyncIterator[E]], encode: Callable[[E], bytes]) -> None:
        self._source = source
        self._encode = encode

    @abstractmethod
    def failure(self, rendered: bytes) -> bytes:
        """The last piece of a stream that failed; `rendered` is the dialect's JSON."""

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Stream until the source ends, the client goes or the server stops."""
        encode = self._encode
        headers = (
            (b"content-type", self.media_type),
            (b"cache-control", self.caching),
            (b"x-accel-buffering", b"no"),
        )
        try:
            async with interruptible(exchange), self._source as values:
                beat = Heartbeat(exchange, headers, self.ping)
                try:
                    async for value in values:
                        if data := encode(value):
                            await beat.send(data)
                finally:
                    beat.stop()
        except ClientGone:
            raise
        except CoveError as error:
            if not exchange.has_started:
                raise
            await exchange.write(self.failure(table.render(error, exchange.request_id)))
            if isinstance(error, ServerStopping):
                await exchange.write(b"", more=False)
                return
        await exchange.write(b"", more=False)
