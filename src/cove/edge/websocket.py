"""WebSockets as answers of operations: everything until the 101 is plain HTTP, so a refusal is a status like any other.

A handler of an `Op` with `websocket=True` returns `WebSocket(source, session)`. The end is always said: 1000 (done),
1012 (the server stops; come back), or a text message that says what failed (`ErrorTable.frame`) and 1008 (a message
that cannot be), 1013 (no room) or 1011 (whatever else failed).
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final, Generic, TypeVar, cast

from msgspec.structs import replace
from websockets.frames import CloseCode
from websockets.utils import accept_key

from cove.edge.errors import ClientGone, Failure, Malformed, ServerStopping, UpgradeRequired, Where
from cove.edge.exchange import Exchange
from cove.edge.interrupt import interruptible
from cove.edge.ops import ErrorWriter
from cove.edge.peer import Peer
from cove.model.errors import BadRequest, CapacityExceeded, CoveError, EngineFailure, QuotaExceeded, RateLimited

log = logging.getLogger(__name__)

T = TypeVar("T")

VERSION: Final = b"13"
_KEY_BYTES: Final = 16


def check_handshake(exchange: Exchange) -> None:
    """Whether this is the beginning of a WebSocket. Raises: UpgradeRequired, Malformed."""
    wished = exchange.header(b"upgrade") or b""
    if not exchange.can_switch or b"websocket" not in (word.strip().lower() for word in wished.split(b",")):
        raise UpgradeRequired("this operation is a WebSocket: connect to it with a WebSocket client")
    if exchange.header(b"sec-websocket-version") != VERSION:
        raise UpgradeRequired("the WebSocket's version must be 13")
    try:
        key = base64.b64decode(exchange.header(b"sec-websocket-key") or b"", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise Malformed("the WebSocket's key must be 16 bytes as base64", where=Where.HEADER, field="Sec-WebSocket-Key")


class WebSocket(Generic[T]):
    """A source as a WebSocket. The source is entered before the 101 goes out: what it refuses is a status.

    `session` speaks with the client and returns at the end. It must receive all the time, to see the client go; a
    failure of one of its tasks may reach us in an ExceptionGroup. Cancelled when the server stops, and some seconds
    after the client has gone. `message_bytes`: how large its messages may be, None: as the server's settings say.
    """

    def __init__(
        self,
        source: AbstractAsyncContextManager[T],
        session: Callable[[Peer, T], Awaitable[None]],
        *,
        message_bytes: int | None = None,
    ) -> None:
        self._source = source
        self._session = session
        self._message_bytes = message_bytes

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Shake hands, run the session, say how it ended."""
        limits, most = exchange.limits, self._message_bytes
        peer = Peer(limits if most is None else replace(limits, websocket_message_bytes=most))
        try:
            error = await self._run(peer, exchange)
            if error is None or isinstance(error, ClientGone):
                await peer.close()
            elif isinstance(error, ServerStopping):
                await peer.close(CloseCode.SERVICE_RESTART, error.public, wait_s=exchange.limits.stop_grace_s / 2)
            else:
                await _report(peer, table, table.failure(error, exchange.request_id))
        except BaseException:
            peer.abort()
            raise

    async def _run(self, peer: Peer, exchange: Exchange) -> CoveError | None:
        """The session until its end; why it failed, if it did. Before the 101 a failure is raised instead."""
        try:
            async with AsyncExitStack() as stack:
                async with interruptible(exchange):
                    value = await stack.enter_async_context(self._source)
                exchange.switch_protocols(peer, _headers(exchange))
                async with interruptible(exchange, peer.wait_gone()):
                    await self._session(peer, value)
        except Exception as raised:  # a session may fail in groups
            if not peer.is_open:
                raise
            error = _first(raised)
            if isinstance(error, CoveError):
                return error
            log.exception("a WebSocket failed in an unforeseen way", extra={"request_id": exchange.request_id})
            return EngineFailure("Cove failed on this WebSocket; its log has the reason under this request id")
        return None


def _headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    key = exchange.headers[b"sec-websocket-key"].decode("ascii")
    return [(b"upgrade", b"websocket"), (b"sec-websocket-accept", accept_key(key).encode())]


async def _report(peer: Peer, table: ErrorWriter, failure: Failure) -> None:
    try:
        await peer.send_text(table.frame(failure).decode())
    except ClientGone:
        return
    await peer.close(_close_code(failure.error), failure.code)


def _close_code(error: CoveError) -> int:
    if isinstance(error, CapacityExceeded | QuotaExceeded | RateLimited):
        return CloseCode.TRY_AGAIN_LATER
    if isinstance(error, BadRequest):
        return CloseCode.POLICY_VIOLATION
    return CloseCode.INTERNAL_ERROR


def _first(error: Exception) -> Exception:
    """The first leaf of a group: what failed in one of the session's tasks."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error
