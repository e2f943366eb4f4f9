"""Connections to a listening socket, each in a task that ends with the listener; what one does wrong is its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, cast

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
IP_FREEBIND: Final = 15
_RESET: Final = struct.pack("ii", 1, 0)

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]
"""Serves one connection to its end. False: the other side shall see a reset, not an end."""


@asynccontextmanager
async def accepting(sock: socket.socket, handle: Handle, *, limit: int) -> AsyncGenerator[None]:
    """Serve the connections of a listening socket, which is ours from here, until the block ends; then cut them.

    `limit`: bytes read ahead of a connection.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        tasks.add(task)
        is_whole = False
        try:
            is_whole = await handle(reader, writer)
        except asyncio.CancelledError:
            pass  # the listener ends
        except (OSError, EOFError):  # it is gone, or was silent for too long (TimeoutError)
            pass
        except Exception:  # the outermost frame: others go on
            log.exception("a connection of a sandbox failed in an unforeseen way")
        finally:
            tasks.discard(task)
            finish(writer, is_whole=is_whole)

    server = await asyncio.start_server(take, sock=sock, limit=limit, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tuple(tasks), timeout=5)


def finish(writer: asyncio.StreamWriter, *, is_whole: bool) -> None:
    """Close at once: with an end if all was said and taken, else with a reset."""
    if is_whole and not writer.transport.get_write_buffer_size():
        writer.close()
        return
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


def bound(sock: socket.socket, address: str, port: int) -> socket.socket:
    """Bind a socket of the router, listening if it is one for connections; the address need not exist yet there.

    Raises: OSError.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((address, port))
        if sock.type == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    except OSError:
        sock.close()
        raise
    return sock
