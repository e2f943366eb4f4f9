"""TCP connections to ports of a sandbox, awaited. The twin of `cove.sdk.connections`."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from cove.sdk import tcp_calls

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client
    from cove.sdk.aio.websocket import WebSocket


class Connection:
    """A TCP connection to a port of a sandbox, with the names of a socket. Made by `box.connect`.

    One task may receive while another sends. Close it, or use it in an `async with`.
    """

    def __init__(self, ref: str, port: int, *, client: Client) -> None:
        self._client = client
        self._call = tcp_calls.connect(ref, port)
        self._opened: WebSocket | None = None
        self._rest = memoryview(b"")
        self._is_ended = False

    async def recv(self, size: int = 65536) -> bytes:
        """Return what has arrived, at most `size` bytes; waits for some. Empty: the other side sends no more.

        Raises: Unreachable (the connection broke), Conflict (it broke inside the sandbox), other errors of the sandbox.
        """
        peer = await self._peer()
        while not self._rest:
            if self._is_ended:
                return b""
            message = await peer.receive()
            if isinstance(message, str):
                tcp_calls.check_end(message)
                self._is_ended = True
            else:
                self._rest = memoryview(message)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    async def sendall(self, data: bytes) -> None:
        """Send all of `data`; waits while the other side does not read. Raises: Unreachable."""
        peer = await self._peer()
        view = memoryview(data)
        for start in range(0, len(view), tcp_calls.PIECE_BYTES):
            await peer.send(bytes(view[start : start + tcp_calls.PIECE_BYTES]))

    async def send_eof(self) -> None:
        """Say that no more comes from here; the other direction stays open. Raises: Unreachable."""
        await (await self._peer()).send(tcp_calls.EOF)

    async def close(self) -> None:
        """End both directions."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    async def __aenter__(self) -> Self:
        """Return the connection itself, open."""
        await self._peer()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    async def _peer(self) -> WebSocket:
        if self._opened is None:
            self._opened = await self._client.websocket(self._call)
        return self._opened
