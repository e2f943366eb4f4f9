"""Server-sent events: live, unbuffered, with a heartbeat and a typed end. HTML Living Standard, section 9.2.

The stream always ends with an event of the source's own or with the dialect's `error` event; a client that sees neither
lost the connection. Leaving (client gone, server stopping) closes the source, which may kill what it streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Generic, TypeVar

from cove.edge.errors import ClientGone, Malformed, ServerStopping, Where
from cove.edge.exchange import Exchange
from cove.edge.heartbeat import Heartbeat
from cove.edge.interrupt import interruptible
from cove.edge.ops import ErrorWriter
from cove.model.errors import CoveError

E = TypeVar("E")

HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
LAST_EVENT_ID: Final = "Last-Event-ID"
PING: Final = b": ping\n\n"


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


class Events(Generic[E]):
    """A source of events as a stream. The source is entered before the status goes out: what it refuses is a status.

    `encode` turns one value into `event(...)` bytes.
    """

    def __init__(
        self,
        source: AbstractAsyncContextManager[AsyncIterator[E]],
        encode: Callable[[E], bytes],
    ) -> None:
        self._source = source
        self._encode = encode

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Stream until the source ends, the client goes or the server stops."""
        encode = self._encode
        try:
            async with interruptible(exchange), self._source as events:
                beat = Heartbeat(exchange, HEADERS, PING)
                try:
                    async for value in events:
                        await beat.send(encode(value))
                finally:
                    beat.stop()
        except ClientGone:
            raise
        except CoveError as error:
            if not exchange.has_started:
                raise
            await exchange.write(event(b"error", table.render(error, exchange.request_id)))
            if isinstance(error, ServerStopping):
                await exchange.write(b"", more=False)
                return
        await exchange.write(b"", more=False)
