"""Newline-delimited JSON: live, unbuffered, with a heartbeat and a typed end. One JSON object per line.

The stream always ends with a line of the source's own or with `{"error":…}` in the dialect's form; a client that sees
neither lost the connection. The heartbeat is an empty line, which every reader of such streams passes over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Generic, TypeVar

from cove.edge.errors import ClientGone, ServerStopping
from cove.edge.exchange import Exchange
from cove.edge.heartbeat import Heartbeat
from cove.edge.interrupt import interruptible
from cove.edge.ops import ErrorWriter
from cove.model.errors import CoveError

E = TypeVar("E")

MEDIA_TYPE: Final = "application/x-ndjson"
HEADERS: Final = (
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
PING: Final = b"\n"


class Lines(Generic[E]):
    """A source of values as lines. The source is entered before the status goes out: what it refuses is a status.

    `encode` turns one value into whole lines, each with its line break.
    """

    def __init__(self, source: AbstractAsyncContextManager[AsyncIterator[E]], encode: Callable[[E], bytes]) -> None:
        self._source = source
        self._encode = encode

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Stream until the source ends, the client goes or the server stops."""
        encode = self._encode
        try:
            async with interruptible(exchange), self._source as values:
                beat = Heartbeat(exchange, HEADERS, PING)
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
            await exchange.write(b'{"error":%b}\n' % table.render(error, exchange.request_id))
            if isinstance(error, ServerStopping):
                await exchange.write(b"", more=False)
                return
        await exchange.write(b"", more=False)
