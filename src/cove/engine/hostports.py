"""TCP ports of the host that lead into sandboxes: bound, listened on, each connection carried by a dial of the agent.

No rule of its own: which ports, and for whom, is `core/hostports.py`. A connection that breaks on one side is reset on
the other, so that nobody takes half a transfer for a whole one; a half-close is passed on as such.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, cast

from cove.agentlink.client import DialStream
from cove.model.errors import Conflict, CoveError, EngineFailure

log = logging.getLogger(__name__)

CONNECTIONS: Final = 256
"""Connections to one host port at a time; a further one is reset at once."""

STALL_S: Final = 600.0
"""A client that takes nothing for so long, or whose host confirms nothing, is cut."""

_BACKLOG: Final = 256
_PIECE_BYTES: Final = 256 * 1024
_RESET: Final = struct.pack("ii", 1, 0)

Dial = Callable[[], AbstractAsyncContextManager[DialStream]]


class HostPort:
    """One listening port. Made by `listen`; `close` ends it and every connection."""

    def __init__(self, server: asyncio.Server, number: int, tasks: set[asyncio.Task[None]]) -> None:
        self._server = server
        self._tasks = tasks
        self.number = number

    def close(self) -> None:
        """Listen no more and cut what is open. What that takes happens in the background."""
        self._server.close()
        for task in self._tasks:
            task.cancel()


def bind(host: str, number: int) -> socket.socket:
    """A bound socket, which nobody else can have now. Raises: Conflict (in use), EngineFailure."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, number))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"port {number} of the host is in use", field="host_port") from error
        raise EngineFailure(
            f"the server cannot listen on port {number} of the host", internal=f"{host}: {error.strerror}"
        ) from error
    sock.setblocking(False)
    return sock


async def listen(sock: socket.socket, dial: Dial) -> HostPort:
    """Serve a bound socket, which is ours from here: each connection to it is one of `dial`'s."""
    tasks: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        is_whole = False
        try:
            if len(tasks) < CONNECTIONS:
                tasks.add(task)
                _limit(writer)
                is_whole = await _carry(reader, writer, dial)
        except asyncio.CancelledError:
            pass  # `close` ends it
        finally:
            tasks.discard(task)
            if not is_whole:
                _reset(writer)
            writer.close()

    number: int = sock.getsockname()[1]
    try:
        server = await asyncio.start_server(take, sock=sock, limit=_PIECE_BYTES)
    except BaseException:
        sock.close()
        raise
    return HostPort(server, number, tasks)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dial: Dial) -> bool:
    """One connection to its end; whether both directions ended as they should."""
    try:
        async with dial() as stream, asyncio.TaskGroup() as tasks:
            inward = tasks.create_task(_inward(reader, stream))
            async for data in stream:
                writer.write(data)
                async with asyncio.timeout(STALL_S):
                    await writer.drain()
            if not writer.is_closing():  # uvloop raises for a client that is gone
                writer.write_eof()
            await stream.wait_closed()
            inward.cancel()
    except (ExceptionGroup, CoveError, OSError) as raised:
        error = _first(raised)
        if not isinstance(error, CoveError | OSError):
            log.exception("a connection to a host port failed in an unforeseen way")
        return False
    return True


async def _inward(reader: asyncio.StreamReader, stream: DialStream) -> None:
    while data := await reader.read(_PIECE_BYTES):
        await stream.write(data)
    await stream.write_eof()


def _first(error: Exception) -> Exception:
    """The first leaf of a group."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def _limit(writer: asyncio.StreamWriter) -> None:
    """A client whose machine has died does not hold its connection, and a sandbox awake, for ever."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1000))


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the client see a reset, not an end."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
