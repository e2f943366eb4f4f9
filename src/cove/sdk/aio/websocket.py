"""One WebSocket to the server, awaited: the client of `websockets`. The twin of `cove.sdk.websocket`.

The server's pings are answered as long as somebody receives. Pings of ours would go unanswered while a program reads no
input, so none are sent: over TCP the kernel asks whether the other machine is still there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio import to_thread
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connecting
from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException
from websockets.protocol import State

from cove.sdk.transport import Lost
from cove.sdk.websocket import (
    HANDSHAKE_TIMEOUT_S,
    MAX_MESSAGE_BYTES,
    Closed,
    NotSent,
    address_of,
    broken,
    open_socket,
    refused,
    tls,
)

if TYPE_CHECKING:
    from cove.sdk.config import Target
    from cove.sdk.transport import Call

CLOSE_TIMEOUT_S = 1.0


class WebSocket:
    """An open WebSocket. Made by `connect`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> bytes | str:
        """Return the next message; waits for it.

        Raises: Closed (the server closed it), Lost (the connection broke, or `close` was called meanwhile).
        """
        try:
            message: bytes | str = await self._connection.recv()
        except ConnectionClosed as error:
            raise _lost(error) from error
        return message

    async def send(self, data: bytes | str) -> None:
        """Send a message; waits while the other side takes nothing.

        Raises: NotSent (it was broken already), Lost (it broke: the message may have arrived).
        """
        was_open = self._connection.state is State.OPEN
        try:
            await self._connection.send(data)
        except ConnectionClosed as error:
            lost = _lost(error)
            raise Lost(lost.message) if was_open else NotSent(lost) from error

    async def close(self) -> None:
        """Say goodbye and end the connection; takes a second at most. Cancelled, it is cut."""
        try:
            await self._connection.close()
        except BaseException:
            self._connection.transport.abort()
            raise


async def connect(target: Target, call: Call[Any]) -> WebSocket:
    """Open the WebSocket that `call` names.

    Raises: Unreachable, Lost, BadAnswer; an answer that is no WebSocket becomes the error that it describes.
    """
    address = address_of(target, call)
    sock = await to_thread.run_sync(open_socket, target)
    try:
        connection = await _Connecting(
            address,
            sock=sock,
            ssl=tls() if address.startswith("wss:") else None,
            additional_headers=call.head(target.key),
            user_agent_header=None,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            open_timeout=HANDSHAKE_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,
        )
    except InvalidHandshake as error:
        sock.close()
        raise refused(error, target.url) from error
    except (OSError, TimeoutError, WebSocketException) as error:
        sock.close()
        raise broken(error, target.url) from error
    except BaseException:
        sock.close()
        raise
    return WebSocket(connection)


class _Connecting(connecting):
    """Follows no redirect: a key is not carried to where an answer points."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def _lost(error: ConnectionClosed) -> Lost:
    if error.rcvd is not None:
        return Closed(int(error.rcvd.code), error.rcvd.reason)
    return Lost("the server closed the connection")
