"""Names on the sandboxes' network, put together: the resolver and the proxies, from their sockets to their end.

Recipe for a further listener: a module with a `Handle`, a port here, its line in `open_names`, its port in the packet
filter's input chain (`baseline.py`).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from cove.engine.network.dns_server import serve_dns
from cove.engine.network.exits import Exits
from cove.engine.network.explicit import serve_explicit
from cove.engine.network.listener import bound
from cove.engine.network.netns import Places
from cove.engine.network.port import Endpoints
from cove.engine.network.resolver import Judges, Resolver
from cove.engine.network.spares import open_spares
from cove.engine.network.transparent import accepting_wires, proxy_shares, serve_transparent
from cove.engine.network.upstream_dns import NameServer, Upstream
from cove.model.errors import EngineFailure

GATEWAY: Final = "169.254.1.1"
"""The router's address at every sandbox's interface."""

DNS_PORT: Final = 53
PROXY_PORT: Final = 3128
TRANSPARENT_PORT: Final = 3129


class Names:
    """What the rest of the engine asks of names. Made by `open_names`."""

    def __init__(self, resolver: Resolver, exits: Exits) -> None:
        self.resolver = resolver
        self._exits = exits

    def recheck(self, box: str) -> None:
        """Its policy, its links or itself are other than before: cut what holds no longer, and ask anew.

        Call it after the packet filter has changed.
        """
        self.resolver.forget(box)
        self._exits.recheck(box)


@asynccontextmanager
async def open_names(
    places: Places, endpoints: Endpoints, servers: Sequence[NameServer], judges: Judges
) -> AsyncGenerator[Names]:
    """Listen in the router until the block ends. Nothing is answered, so nothing reached by name, before or after.

    `servers`: the name servers to ask (`upstream_dns.name_servers` reads the operator's). Raises: EngineFailure.
    """
    shares = proxy_shares()

    async def listening(kind: int, port: int) -> socket.socket:
        try:
            return bound(await places.router.socket(socket.AF_INET, kind), GATEWAY, port)
        except OSError as error:
            internal = f"{GATEWAY}:{port}: {error.strerror}"
            raise EngineFailure("the sandboxes' network cannot be served", internal=internal) from error

    async with AsyncExitStack() as stack:
        outside = await stack.enter_async_context(open_spares(places.outside))
        resolver = Resolver(Upstream(servers, outside), judges)
        exits = Exits(endpoints, resolver, judges, outside)
        datagrams = await listening(socket.SOCK_DGRAM, DNS_PORT)
        stack.callback(datagrams.close)
        by_tcp = await listening(socket.SOCK_STREAM, DNS_PORT)
        await stack.enter_async_context(serve_dns(resolver, endpoints, datagrams, by_tcp))
        for port, serve in ((TRANSPARENT_PORT, serve_transparent(exits)), (PROXY_PORT, serve_explicit(exits))):
            listener = await listening(socket.SOCK_STREAM, port)
            await stack.enter_async_context(accepting_wires(listener, exits, shares, serve))
        yield Names(resolver, exits)
