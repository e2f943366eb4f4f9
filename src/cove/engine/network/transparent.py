"""The proxy that connections are led to whose name has to be seen: TCP 80 and 443 where names are the rule.

The client believes to speak to the address that it chose; the kernel tells us which. Whether a name is needed at all is
the packet filter's to say; here the connection is judged by what it says of itself (`tunnels.py`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from cove.engine.network.exits import Exits, Flow, Refused, Unreachable
from cove.engine.network.relay import Wire
from cove.engine.network.shares import Shares
from cove.engine.network.tunnels import serve_direct

log = logging.getLogger(__name__)

CONNECTIONS: Final = 256
"""Of one sandbox at a time, through both proxies; one more is reset."""

PER_S: Final = 200.0
BURST: Final = 400.0
ALL_CONNECTIONS: Final = 8192
"""Of all sandboxes. Each that stands still holds 128 KiB of ours at most."""

_SO_ORIGINAL_DST: Final = 80
_RETRY_S: Final = 0.1

Serve = Callable[[str, Flow], Awaitable[None]]


def proxy_shares() -> Shares:
    """What one sandbox may take of both proxies."""
    return Shares(at_a_time=CONNECTIONS, per_s=PER_S, burst=BURST)


def serve_transparent(exits: Exits) -> Serve:
    """Serves one connection that was redirected to us."""

    async def serve(box: str, flow: Flow) -> None:
        there = original_destination(flow.near)
        if there is None:
            raise Unreachable("it was not redirected")
        await serve_direct(exits, box, flow, *there)

    return serve


def original_destination(near: Wire) -> tuple[str, int] | None:
    """Where a redirected connection was going, None: nowhere else than to us."""
    sock = near.transport.get_extra_info("socket")
    try:
        found: bytes = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
        port, packed = struct.unpack("!2xH4s8x", found)
    except OSError:
        return None
    there = (socket.inet_ntoa(packed), int(port))
    return None if there == tuple(sock.getsockname()[:2]) else there


@asynccontextmanager
async def accepting_wires(listener: socket.socket, exits: Exits, shares: Shares, serve: Serve) -> AsyncGenerator[None]:
    """Serve the connections of a listening socket, which is ours from here, until the block ends; then cut them."""
    async with asyncio.TaskGroup() as tasks:
        running: set[asyncio.Task[None]] = set()
        accept = tasks.create_task(_accept(listener, exits, shares, serve, (tasks, running)))
        try:
            yield
        finally:
            listener.close()
            for task in (accept, *running):
                task.cancel()


async def _accept(
    listener: socket.socket,
    exits: Exits,
    shares: Shares,
    serve: Serve,
    tasks: tuple[asyncio.TaskGroup, set[asyncio.Task[None]]],
) -> None:
    group, running = tasks
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock, peer = await loop.sock_accept(listener)
        except OSError:
            log.exception("a connection of a sandbox could not be accepted")
            await asyncio.sleep(_RETRY_S)
            continue
        endpoint = exits.endpoints.by_address(peer[0])
        if endpoint is None or len(running) >= ALL_CONNECTIONS or not shares.take(endpoint.box):
            _drop(sock)
            continue
        task = group.create_task(_connection(sock, exits, endpoint.box, serve, shares))
        running.add(task)
        task.add_done_callback(running.discard)


async def _connection(sock: socket.socket, exits: Exits, box: str, serve: Serve, shares: Shares) -> None:
    """The outermost frame of one connection: whatever it does, the listener goes on."""
    near: Wire | None = None
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _, near = await asyncio.get_running_loop().connect_accepted_socket(Wire, sock)
        with exits.flow(box, near) as flow:
            await serve(box, flow)
    except (Refused, Unreachable, OSError):
        pass  # recorded where it was refused; the client sees the reset
    except Exception:
        log.exception("a connection of a sandbox failed in an unforeseen way", extra={"sandbox": box})
    finally:
        shares.give(box)
        if near is None:
            _drop(sock)
        else:
            near.reset()


def _drop(sock: socket.socket) -> None:
    """Reset a connection."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
