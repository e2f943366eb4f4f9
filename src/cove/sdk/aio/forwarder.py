"""What makes a port of this machine lead to a port of a sandbox: for both surfaces and the command line.

Each connection to the local port is a WebSocket of its own. A half-close is passed on as such, a break as a reset, so
that nobody takes half a transfer for a whole one. While the server restarts, new connections wait for it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from cove.sdk import tcp_calls
from cove.sdk.aio import websocket
from cove.sdk.errors import BadRequest, Conflict, Error, Unreachable
from cove.sdk.websocket import NORMAL, Closed

if TYPE_CHECKING:
    from cove.sdk.config import Target

RESTART_S: Final = 20.0
"""How long a new connection waits for a server that does not answer."""

_BACKLOG: Final = 128
_RESET: Final = struct.pack("ii", 1, 0)


class Forwarder:
    """Listens on this machine and carries each connection to the sandbox.

    Attributes:
        host: the local address, such as `127.0.0.1`; empty before `listen`.
        port: the local port.
        failure: why the last connection failed, if one did; `on_failure` is called with each.
    """

    def __init__(
        self, target: Target, ref: str, port: int, *, on_failure: Callable[[Error], None] = lambda _error: None
    ) -> None:
        self.host = ""
        self.port = 0
        self.failure: Error | None = None
        self._target = target
        self._call = tcp_calls.connect(ref, port)
        self._on_failure = on_failure
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Host and port as one text, such as `127.0.0.1:5432`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    async def listen(self, host: str, port: int) -> None:
        """Begin; port 0 is any that is free. Raises: Conflict (it is taken), BadRequest (one cannot listen there)."""
        if port:
            tcp_calls.port_of(port, "local_port")
        try:
            self._server = await asyncio.start_server(
                self._take, host, port, backlog=_BACKLOG, limit=tcp_calls.PIECE_BYTES
            )
        except OSError as error:
            raise _refusal(error, host, port) from error
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        """Stop listening and end every connection. Can be repeated."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await server.wait_closed()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        is_whole = False
        try:
            is_whole = await self._carry(reader, writer)
        except asyncio.CancelledError:
            pass  # `close` ends it
        finally:
            self._tasks.discard(task)
            if not is_whole:
                _reset(writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Carry one connection to its end; whether both directions were ended as they should be."""
        try:
            peer = await self._connected()
            try:
                async with asyncio.TaskGroup() as tasks:
                    outward = tasks.create_task(_send(reader, peer))
                    await _receive(peer, writer)
                    outward.cancel()
            finally:
                await peer.close()
        except (ExceptionGroup, Error, OSError) as raised:
            error = _first(raised)
            if isinstance(error, Error):
                self.failure = error
                self._on_failure(error)
            elif not isinstance(error, OSError):
                raise
            return False
        return True

    async def _connected(self) -> websocket.WebSocket:
        """Connect; nothing was sent yet, so it may be tried as long as a restart takes. Raises: Error."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RESTART_S
        delay = 0.05
        while True:
            try:
                return await websocket.connect(self._target, self._call)
            except Error as error:
                may_pass = isinstance(error, Unreachable) or error.code == "server-stopping"
                if not may_pass or loop.time() + delay > deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)


async def _send(reader: asyncio.StreamReader, peer: websocket.WebSocket) -> None:
    while data := await reader.read(tcp_calls.PIECE_BYTES):
        await peer.send(data)
    await peer.send(tcp_calls.EOF)


async def _receive(peer: websocket.WebSocket, writer: asyncio.StreamWriter) -> None:
    """Write what comes until the server says that all is done. Raises: Error."""
    is_ended = False
    while True:
        try:
            message = await peer.receive()
        except Closed as end:
            if end.close_code == NORMAL and is_ended:
                return
            raise
        if isinstance(message, str):
            tcp_calls.check_end(message)
            is_ended = True
            writer.write_eof()
        else:
            writer.write(message)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the other side see a reset, not an end."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


def _first(error: Exception) -> Exception:
    """The first leaf of a group."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def _refusal(error: OSError, host: str, port: int) -> Error:
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"port {port} on {host} is in use here", field="local_port", hint="choose another local port; 0: any"
        )
    return BadRequest(f"cannot listen on {host} port {port}: {error.strerror or error}", field="host")
