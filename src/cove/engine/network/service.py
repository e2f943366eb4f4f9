"""The sandboxes' network of one server: who joins, under which rules, and how all of it is made, kept and taken away.

Nothing of the machine is touched before the first box joins: then the router's namespace is made, with the rules that
refuse everything, and what listens in it. The uplink comes with the first policy that leads out. All of it outlives the
server; the next start enters it again (`adopt`), and `release` takes it away.

Who holds which thread: `router.py`. What a policy means in rules: `ruleset.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Protocol

from cove.engine import kernel
from cove.engine.claims import Claims
from cove.engine.network import netns, uplink, veth
from cove.engine.network.endpoints import Directory, Process
from cove.engine.network.netns import Places
from cove.engine.network.probe import probe
from cove.engine.network.router import Router, box_links, open_router, settle
from cove.engine.network.topology import TRANSITS, NetworkConfig
from cove.engine.network.veth import Plugs
from cove.model.errors import CoveError, EngineFailure, SandboxGone, Unsupported
from cove.model.network import NetworkMode, NetworkPolicy, NetworkUse, Refusal

log = logging.getLogger(__name__)


class Rules(Protocol):
    """The packet rules of the router. Each call holds before it returns."""

    async def apply(self, index: int, address: str, policy: NetworkPolicy, links: Mapping[str, str]) -> None:
        """Make `policy` hold for a box, in one step; flows that it refuses are cut. Raises: EngineFailure."""
        ...

    async def forget(self, index: int) -> None:
        """Close everything to a box, and forget it. Idempotent. Raises: EngineFailure."""
        ...


OpenRules = Callable[["SandboxNetwork", Places, AsyncExitStack], Awaitable[Rules]]


class SandboxNetwork:
    """Implements `port.Network`. Made by `open_network`; used on the loop."""

    def __init__(self, config: NetworkConfig, missing: tuple[str, ...], open_rules: OpenRules | None) -> None:
        self.config = config
        self.directory = Directory(config)
        self.on_refusal: Callable[[Refusal], None] = _unheard
        self._missing = missing
        self._open_rules = open_rules
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._router: Router | None = None
        self._rules: Rules | None = None
        self._plugs: Plugs | None = None
        self._has_uplink = False
        self._claims = Claims("net", config.run_dir, count=TRANSITS, root=config.run_dir.parent)
        self._limited: dict[str, int | None] = {}
        self._ended: asyncio.Queue[int] = asyncio.Queue()

    @property
    def endpoints(self) -> Directory:
        """Who is on the network."""
        return self.directory

    @property
    def missing(self) -> tuple[str, ...]:
        """Why this machine cannot connect sandboxes; empty: it can."""
        return self._missing

    # Boxes.

    async def join(self, box: str, init_pid: int) -> str:
        """Give a box its interface, with everything closed; returns its address. Again: nothing."""
        known = self.directory.by_box(box)
        if known is not None:
            return known.address
        if self._missing:
            raise Unsupported(f"this machine cannot connect sandboxes: {self._missing[0]}", field="network")
        start = kernel.process_start(init_pid)
        if start is None:
            raise SandboxGone("the sandbox has ended")
        router, plugs = await self._opened()
        index = self.directory.take()
        try:
            await router.work.run(lambda: plugs.plug(index, init_pid, start))
        except (OSError, CoveError) as error:
            self.directory.give_back(index)
            if isinstance(error, OSError):
                raise EngineFailure("the machine refused the sandbox's network", internal=str(error)) from error
            raise
        self._limited[box] = None
        return self.directory.add(box, index, Process(init_pid, start)).address

    async def apply(self, box: str, policy: NetworkPolicy, links: Mapping[str, str]) -> None:
        """Make `policy` hold for a joined box, in one step; flows that it no longer allows are cut."""
        endpoint = self.directory.by_box(box)
        if endpoint is None:
            raise EngineFailure("the sandbox has no network", internal=f"apply for {box}, which never joined")
        if policy.mode is not NetworkMode.NONE:
            await self._lead_out()
        await self._limit(box, policy.bandwidth_bps)
        # First for what listens, which decides by the endpoint: it learns nothing by the old policy any more, and what
        # it allows by the new one is allowed.
        self.directory.change(endpoint, policy=policy, links=dict(links))
        try:
            assert self._rules is not None  # noqa: S101 - a joined box has opened them
            await self._rules.apply(endpoint.index, endpoint.address, policy, links)
        except BaseException:
            self.directory.change(endpoint, policy=endpoint.policy, links=endpoint.links)
            raise

    async def leave(self, box: str) -> None:
        """Take a box's interface, its rules and its address away. Idempotent."""
        endpoint = self.directory.remove(box)
        self._limited.pop(box, None)
        if endpoint is not None:
            await self._close(endpoint.index)

    async def use(self, box: str) -> NetworkUse:
        """Bytes so far; zeros for a box that never joined. Never raises."""
        endpoint, router, plugs = self.directory.by_box(box), self._router, self._plugs
        if endpoint is None or router is None or plugs is None:
            return NetworkUse()
        try:
            return await router.work.run(lambda: plugs.use(endpoint.index))
        except (OSError, CoveError) as error:
            log.warning("the bytes of sandbox %s cannot be counted: %s", box, error)
            return NetworkUse()

    # After a restart.

    async def adopt(self, box: str, address: str, init_pid: int) -> bool:
        """Take over a box that joined before this server started, if its interface is there. Its rules still hold."""
        index = self.config.index_of(address)
        start = kernel.process_start(init_pid)
        if self._missing or index is None or start is None or not kernel.is_namespace_file(self.config.router_file):
            return False
        router, plugs = await self._opened()
        if not await router.work.run(lambda: plugs.has(index)):
            return False
        self.directory.mark(index)
        self.directory.add(box, index, Process(init_pid, start))
        return True

    async def sweep(self) -> None:
        """Take away the interfaces and rules of boxes that nobody adopted. Raises: EngineFailure."""
        if self._missing or not kernel.is_namespace_file(self.config.router_file):
            return
        router, _ = await self._opened()
        known = {endpoint.index for endpoint in self.directory.all()}
        try:
            found = await router.work.run(box_links)
        except OSError as error:
            raise EngineFailure("the sandboxes' interfaces cannot be listed", internal=str(error)) from error
        for index in sorted(found.keys() - known):
            self.directory.mark(index)
            await self._close(index)

    async def release(self) -> None:
        """Take everything away, the machine's own settings included. No box is left. Raises: EngineFailure."""
        places = self._router.places if self._router is not None else None
        try:
            if places is not None:
                await places.outside.run(lambda: uplink.remove(self.config))
            elif self._claims.held():
                await _outside_once(self.config, uplink.remove)
        except OSError as error:
            raise EngineFailure("a part of the network could not be taken away", internal=str(error)) from error
        finally:
            await self.aclose()
            netns.forget(self.config.router_file)
            self._claims.give_back_all()

    async def aclose(self) -> None:
        """Stop what listens and end all threads; interfaces and rules stay."""
        await self._stack.aclose()
        self._router = self._rules = self._plugs = None

    # How it is made.

    async def _opened(self) -> tuple[Router, Plugs]:
        if self._router is None or self._plugs is None:
            async with self._opening:
                if self._router is None or self._plugs is None:
                    await self._open()
        assert self._router is not None  # noqa: S101 - `_open` raises or makes both
        assert self._plugs is not None  # noqa: S101
        return self._router, self._plugs

    async def _open(self) -> None:
        async with AsyncExitStack() as stack:
            try:
                router = await asyncio.to_thread(open_router, self.config)
                stack.callback(router.close)
                await router.places.router.run(settle)
                plugs = await router.work.run(lambda: Plugs(self.config, router.foreign))
                stack.callback(plugs.close)
                for index in await router.work.run(box_links):
                    self.directory.mark(index)
                assert self._open_rules is not None  # noqa: S101 - without rules the network is `missing`
                self._rules = await self._open_rules(self, router.places, stack)
            except OSError as error:
                raise EngineFailure("the sandboxes' network cannot be made", internal=str(error)) from error
            self._stack = stack.pop_all()
            self._router, self._plugs = router, plugs

    async def _lead_out(self) -> None:
        if self._has_uplink:
            return
        async with self._opening:
            if self._has_uplink:
                return
            assert self._router is not None  # noqa: S101 - a joined box has opened it
            places = self._router.places
            held = self._claims.held()
            number = held[0] if held else self._claims.take()
            try:
                if not await places.outside.run(lambda: uplink.is_made(self.config, number)):
                    await self._make_uplink(places, number)
                else:
                    await places.outside.run(lambda: uplink.finish_outside(self.config, number))
            except OSError as error:
                raise EngineFailure("the sandboxes' way out cannot be made", internal=str(error)) from error
            self._has_uplink = True

    async def _make_uplink(self, places: Places, number: int) -> None:
        fd = await places.outside.run(lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        try:
            await places.router.run(lambda: uplink.make_pair(self.config, fd, number))
        finally:
            os.close(fd)
        await places.outside.run(lambda: uplink.finish_outside(self.config, number))
        await places.router.run(lambda: uplink.finish_router(number))

    async def _limit(self, box: str, bytes_per_s: int | None) -> None:
        """Set the bandwidth where it is another, or not known (after a restart)."""
        endpoint, process, router, plugs = (
            self.directory.by_box(box), self.directory.process(box), self._router, self._plugs,
        )  # fmt: skip
        is_set = box in self._limited and self._limited[box] == bytes_per_s
        if is_set or endpoint is None or process is None:
            return
        assert router is not None  # noqa: S101 - a joined box has opened it
        assert plugs is not None  # noqa: S101
        try:
            await router.work.run(lambda: plugs.limit(endpoint.index, process.pid, process.start, bytes_per_s))
        except OSError as error:
            raise EngineFailure("the machine refused the bandwidth", internal=str(error)) from error
        self._limited[box] = bytes_per_s

    async def _close(self, index: int) -> None:
        router, rules = self._router, self._rules
        if router is None or rules is None:
            return
        try:
            await rules.forget(index)
        except CoveError as error:
            # Its number stays taken, so it is nobody else's while anything of it may be left.
            log.warning("the rules of interface %d stay until the next start: %s %s", index, error, error.internal)
            return
        self._ended.put_nowait(index)

    async def unplug_forever(self) -> None:
        """Take away the interfaces of boxes that left, in the background: one and many cost 20 ms."""
        while True:
            indexes = [await self._ended.get()]
            while not self._ended.empty():
                indexes.append(self._ended.get_nowait())
            router = self._router
            if router is None:
                continue
            try:
                await router.slow.run(partial(veth.unplug, indexes))
            except (OSError, CoveError) as error:
                log.warning("interfaces %s stay until the next start: %s", indexes, error)
                continue
            for index in indexes:
                self.directory.give_back(index)


def _unheard(refusal: Refusal) -> None:
    log.debug("refused: %s", refusal)


@asynccontextmanager
async def open_network(config: NetworkConfig, open_rules: OpenRules | None = None) -> AsyncGenerator[SandboxNetwork]:
    """The network of this server. Leaving it leaves interfaces and rules as they are. Never fails: see `missing`."""
    missing = await asyncio.to_thread(probe, config)
    if open_rules is None:
        missing = (*missing, "this build of Cove has no packet rules")
    network = SandboxNetwork(config, missing, open_rules)
    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(network.unplug_forever())
        try:
            yield network
        finally:
            worker.cancel()
            await network.aclose()


async def _outside_once(config: NetworkConfig, work: Callable[[NetworkConfig], None]) -> None:
    space = netns.NetNs(config.outside, "outside")
    try:
        await space.run(lambda: work(config))
    finally:
        space.close()
