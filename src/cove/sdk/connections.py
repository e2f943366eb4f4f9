"""TCP connections to ports of a sandbox, without a port of this machine. Their awaited twin is `aio/connections.py`."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from cove.sdk import tcp_calls
from cove.sdk.errors import Unreachable

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.websocket import WebSocket


class Connection:
    """A TCP connection to a port of a sandbox, with the names of a socket. Made by `box.connect`.

    One thread may receive while another sends. Close it, or use it in a `with`.
    """

    def __init__(self, ref: str, port: int, *, client: Client) -> None:
        self._peer: WebSocket = client.websocket(tcp_calls.connect(ref, port))
        self._rest = memoryview(b"")
        self._is_ended = False

    def recv(self, size: int = 65536) -> bytes:
        """Return what has arrived, at most `size` bytes; waits for some. Empty: the other side sends no more.

        Raises: Unreachable (the connection broke), Conflict (it broke inside the sandbox), other errors of the sandbox.
        """
        while not self._rest:
            if self._is_ended:
                return b""
            message = self._peer.receive()
            if isinstance(message, str):
                tcp_calls.check_end(message)
                self._is_ended = True
            else:
                self._rest = memoryview(message)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    def sendall(self, data: bytes) -> None:
        """Send all of `data`; waits while the other side does not read. Raises: Unreachable."""
        view = memoryview(data)
        for start in range(0, len(view), tcp_calls.PIECE_BYTES):
            self._peer.send(bytes(view[start : start + tcp_calls.PIECE_BYTES]))

    def send_eof(self) -> None:
        """Say that no more comes from here; the other direction stays open. Raises: Unreachable."""
        self._peer.send(tcp_calls.EOF)

    def close(self) -> None:
        """End both directions."""
        self._peer.close()

    def __enter__(self) -> Self:
        """Return the connection itself."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close it."""
        try:
            self.close()
        except Unreachable:
            return
