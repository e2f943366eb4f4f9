"""What works in the router, put together: the packet rules, and what listens there for sandboxes.

Recipe for a further part: open it in `open_parts`, after the rules and before what hands out its address.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from cove.engine.network.dnswire import Kind
from cove.engine.network.names import Names, open_names
from cove.engine.network.netns import NetNs, Places
from cove.engine.network.ownaddresses import own_addresses
from cove.engine.network.port import Endpoint, Endpoints
from cove.engine.network.refusals import Refusals, open_refusals
from cove.engine.network.resolver import Judges
from cove.engine.network.ruleset import Ruleset, open_ruleset
from cove.engine.network.topology import TRANSIT, NetworkConfig
from cove.engine.network.upstream_dns import NoAnswer, Upstream, name_servers
from cove.engine.network.watch import address_changes
from cove.model.closed import ClosedRanges
from cove.model.hostname import canonical_host
from cove.model.network import Refusal, Visit

log = logging.getLogger(__name__)


class Parts:
    """The rules and the listeners of one router. Made by `open_parts`; implements `service.Parts`."""

    def __init__(self, ruleset: Ruleset, names: Names, refusals: Refusals, upstream: Upstream) -> None:
        self._ruleset = ruleset
        self._names = names
        self._refusals = refusals
        self._upstream = upstream

    @property
    def closed(self) -> ClosedRanges:
        """What is closed to every sandbox, now."""
        return self._ruleset.closed

    async def apply(self, endpoint: Endpoint) -> None:
        """Make an endpoint's policy and links hold: in the kernel in one step, then for what listens."""
        await self._ruleset.apply(endpoint.index, endpoint.address, endpoint.policy, endpoint.links)
        self._names.recheck(endpoint.box)

    def finish(self, box: str) -> None:
        """A box is about to leave: what it was refused is told, while it is known who it was."""
        self._refusals.finish(box)

    async def resolve(self, name: str) -> list[str]:
        """The addresses of a name, for the server itself: no policy is asked."""
        try:
            answer = await self._upstream.ask(canonical_host(name), Kind.A)
        except (NoAnswer, ValueError) as error:
            raise OSError(errno.EHOSTUNREACH, f"{name} cannot be resolved: {error}") from error
        return [str(ipaddress.IPv4Address(one.data)) for one in answer.records if one.kind == Kind.A]

    async def forget(self, endpoint: Endpoint) -> None:
        """Close everything to a box and forget it."""
        await self._ruleset.forget(endpoint.index)
        self._names.recheck(endpoint.box)


def closed_ranges(config: NetworkConfig) -> ClosedRanges:
    """What is closed, with the addresses that the namespace of the calling thread has. Raises: OSError."""
    return ClosedRanges(config.opened, own=own_addresses(), inside=(str(config.subnet), str(TRANSIT)))


@asynccontextmanager
async def open_parts(  # noqa: PLR0913, PLR0917 - what it works with, and who hears of it
    config: NetworkConfig,
    places: Places,
    endpoints: Endpoints,
    there: Mapping[int, str],
    report: Callable[[Refusal], None],
    visited: Callable[[Visit], None],
) -> AsyncGenerator[Parts]:
    """Everything that works in the router, until the block ends; the rules stay. Raises: EngineFailure, OSError.

    `there`: the addresses of boxes that have an interface already; their rules stay, all others' go.
    """
    async with AsyncExitStack() as stack:
        changes = await stack.enter_async_context(address_changes(places.outside))
        closed = await places.outside.run(lambda: closed_ranges(config))
        ruleset = await stack.enter_async_context(
            open_ruleset(places.router, addresses=str(config.subnet), closed=closed)
        )
        await ruleset.reconcile(there)
        refusals = await stack.enter_async_context(open_refusals(places.router, ruleset, endpoints, report))
        judges = Judges(closed=lambda: ruleset.closed, learner=ruleset, report=refusals.note, visited=visited)
        servers = name_servers(config.resolvers, config.outside)
        names = await stack.enter_async_context(open_names(places, endpoints, servers, judges))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        watching = tasks.create_task(_keep_closed(config, places.outside, changes, ruleset))
        stack.callback(watching.cancel)
        yield Parts(ruleset, names, refusals, Upstream(servers, places.outside))


async def _keep_closed(config: NetworkConfig, outside: NetNs, changes: AsyncIterator[None], ruleset: Ruleset) -> None:
    """Close the machine's addresses as they come and go."""
    async for _ in changes:
        closed = await outside.run(lambda: closed_ranges(config))
        if closed.spans != ruleset.closed.spans:
            log.info("the machine's own addresses changed: they are closed to sandboxes")
            await ruleset.close_ranges(closed)
