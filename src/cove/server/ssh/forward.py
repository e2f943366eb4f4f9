"""Forwarded connections: a port of the sandbox's loopback, or one of its unix sockets. Nothing of the host, ever."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import asyncssh
from asyncssh.constants import OPEN_CONNECT_FAILED

from cove.model.errors import CoveError
from cove.model.execs import Chunk, Ended, ExecSpec, Stream
from cove.server.ssh.duplex import Duplex, Wire

if TYPE_CHECKING:
    from cove.server.ssh.gate import Visit

log = logging.getLogger(__name__)

INSIDE: Final = frozenset({"localhost", "127.0.0.1", "::1", "[::1]", "0.0.0.0", "::", ""})  # noqa: S104 - names, not bound
"""What means the sandbox itself, whatever the client has typed for it."""

CONNECT_S: Final = 20.0
SOCKET_PATH_BYTES: Final = 107
"""sun_path less its NUL, unix(7)."""


class _Forward:
    """What both kinds share: the callbacks of asyncssh."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._duplex = Duplex(visit.backlog.wait)
        self._made = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, chan: Wire) -> None:
        """The channel is open."""
        self._duplex.on_made(chan)
        self._made.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        del exc
        self._duplex.on_lost()
        if self._task is not None:
            self._task.cancel()
        self._visit.channel_closed()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """From the client."""
        del datatype
        self._duplex.on_data(data)

    def eof_received(self) -> bool:
        """It sends no more; the other direction goes on."""
        self._duplex.on_eof()
        return True

    def pause_writing(self) -> None:
        """It does not read."""
        self._duplex.on_writable(is_writable=False)

    def resume_writing(self) -> None:
        """It reads again."""
        self._duplex.on_writable(is_writable=True)


class PortForward(_Forward, asyncssh.SSHTCPSession[bytes]):
    """A connection to a port inside."""

    async def open(self, port: int) -> PortForward:
        """Connect first, so that the client is told the truth. Raises: ChannelOpenError."""
        connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = self._visit.spawn(self._run(port, connected), "ssh forward")
        try:
            await asyncio.wait_for(asyncio.shield(connected), CONNECT_S)
        except CoveError as error:
            self._visit.channel_closed()
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, error.public) from error
        except BaseException:
            self._task.cancel()
            self._visit.channel_closed()
            raise
        return self

    async def _run(self, port: int, connected: asyncio.Future[None]) -> None:
        visit = self._visit
        try:
            async with visit.core.ports.dial(visit.who, visit.sandbox, port) as stream:
                if not connected.done():
                    connected.set_result(None)
                await self._made.wait()

                async def upload() -> None:
                    while (data := await self._duplex.read()) is not None:
                        await stream.write(data)
                    await stream.write_eof()

                sending = visit.spawn(upload(), "ssh upload")
                try:
                    async for data in stream:
                        await self._duplex.write(data)
                    self._duplex.write_eof()
                    await asyncio.wait({sending})
                finally:
                    sending.cancel()
        except CoveError as error:
            if connected.done():
                raise
            connected.set_exception(error)
        finally:
            self._duplex.close()


class SocketForward(_Forward, asyncssh.SSHUNIXSession[bytes]):
    """A connection to a unix socket inside, by the agent's own program, as the sandbox's user."""

    def start(self, path: str) -> SocketForward:
        """Connect while the channel opens already: a failure closes it."""
        self._task = self._visit.spawn(self._run(path), "ssh socket")
        return self

    async def _run(self, path: str) -> None:
        visit = self._visit
        try:
            await self._made.wait()
            spec = ExecSpec(argv=("socket", path), tool=True)
            async with visit.core.execs.session(visit.who, visit.sandbox, spec) as session:

                async def upload() -> None:
                    while (data := await self._duplex.read()) is not None:
                        await session.write(data)
                    session.write_eof()

                sending = visit.spawn(upload(), "ssh upload")
                try:
                    async for event in session:
                        if isinstance(event, Chunk) and event.stream is Stream.STDOUT:
                            await self._duplex.write(event.data)
                        elif isinstance(event, Ended):
                            break
                finally:
                    sending.cancel()
        finally:
            self._duplex.close()
