"""The credentials broker as a listener: its socket lies in the router's namespace, its connections go out from outside.

The socket is there before any box has an interface (`SandboxNetwork.on_open`), so no sandbox finds it closed; who comes
before the core is up waits in its queue.
"""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from cove.core.facade import Core
from cove.edge.broker import Broker
from cove.edge.limits import EdgeLimits
from cove.edge.servicelinks import ServiceLinks, tls_context
from cove.edge.stopping import Stopping
from cove.engine.network.netns import Places
from cove.engine.network.outside import Outside
from cove.engine.network.service import SandboxNetwork
from cove.model.credentials import BROKER_ADDRESS, BROKER_PORT
from cove.model.errors import EngineFailure
from cove.server.listen import BACKLOG, broker_listener

_IP_FREEBIND: Final = 15
"""The address is that of the boxes' interfaces, of which there is none yet (ip(7))."""


class BrokerDoor:
    """The broker's socket. Made before the core, which may open the network when it takes boxes over."""

    def __init__(self, network: SandboxNetwork) -> None:
        self._places: asyncio.Future[Places] = asyncio.get_running_loop().create_future()
        self._listening: asyncio.Future[sockets.socket] = asyncio.get_running_loop().create_future()
        network.on_open.append(self._open)

    async def _open(self, places: Places) -> None:
        """Raises: EngineFailure."""
        sock = await places.router.socket(sockets.AF_INET, sockets.SOCK_STREAM)
        try:
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
            sock.setsockopt(sockets.IPPROTO_IP, _IP_FREEBIND, 1)
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
            sock.bind((BROKER_ADDRESS, BROKER_PORT))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise EngineFailure("the credentials broker cannot listen", internal=str(error)) from error
        self._places.set_result(places)
        self._listening.set_result(sock)

    async def socket(self, family: int, kind: int, protocol: int = 0, /) -> sockets.socket:
        """A non-blocking socket outside (`outside.Sockets`)."""
        return await (await self._places).outside.socket(family, kind, protocol)

    async def listening(self) -> sockets.socket:
        """The socket, once it is there."""
        return await asyncio.shield(self._listening)

    def close(self) -> None:
        """Close the socket, if there is one."""
        if self._listening.done():
            self._listening.result().close()


@asynccontextmanager
async def open_broker(  # noqa: PLR0913, PLR0917 - what it stands on
    core: Core,
    network: SandboxNetwork,
    door: BrokerDoor,
    extra_ca: bytes,
    limits: EdgeLimits,
    stopping: Stopping,
) -> AsyncGenerator[None]:
    """Serve sandboxes' requests for the body's time."""
    tls = await asyncio.to_thread(tls_context, extra_ca)
    links = ServiceLinks(Outside(door, network.resolve), tls, stall_s=limits.reader_stall_s)
    broker = Broker(
        core.credentials,
        network.endpoints,
        links,
        closed=lambda: network.closed,
        on_refusal=lambda refusal: network.on_refusal(refusal),  # noqa: PLW0108 - who hears may change
        limits=limits,
        stopping=stopping,
    )
    network.on_applied.append(broker.recheck)
    listener = broker_listener(broker, limits)

    async def serve() -> None:
        await listener.serve(sockets=[await door.listening()])

    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve())
        try:
            yield
        finally:
            network.on_applied.remove(broker.recheck)
            if listener.started:
                listener.should_exit = True
            else:
                serving.cancel()
            links.close(None, None)
    door.close()
