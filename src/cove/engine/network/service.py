"""The sandboxes' network of one server: who joins, under which rules, and how all of it is made, kept and taken away.

Nothing of the machine is touched before the first box joins: then the router's namespace is made, with the rules that
refuse everything, and what listens in it. The uplink comes with the first policy that leads out. All of it outlives the
server; the next start enters it again (`adopt`), and `release` takes it away.

Who holds which thread: `router.py`. What works in the router: `assembly.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Final, TypeVar

from cove.engine import kernel
from cove.engine.network import netns, veth
from cove.engine.network.assembly import Parts, closed_ranges, open_parts
from cove.engine.network.endpoints import Directory, Process
from cove.engine.network.netns import Places
from cove.engine.network.port import Endpoint
from cove.engine.network.probe import probe
from cove.engine.network.router import Router, box_links, open_router, settle
from cove.engine.network.topology import NetworkConfig
from cove.engine.network.veth import Plugs
from cove.engine.network.wayout import WayOut
from cove.model.closed import ClosedRanges
from cove.model.errors import CoveError, EngineFailure, SandboxGone, Unsupported
from cove.model.network import NetworkMode, NetworkPolicy, NetworkUse, Refusal, Visit

log = logging.getLogger(__name__)
T = TypeVar("T")

_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Opened:
    router: Router
    plugs: Plugs
    parts: Parts


class SandboxNetwork:
    """Implements `port.Network`. Made by `open_network`; used on the loop.

    `on_open`: awaited with the router's places when it is made, before any box has an interface there. `on_applied`:
    called with the id of a box after its policy has changed, and after it has left.
    """

    def __init__(self, config: NetworkConfig, missing: tuple[str, ...], closed: ClosedRanges) -> None:
        self.config = config
        self.directory = Directory(config)
        self.on_refusal: Callable[[Refusal], None] = _unheard
        self.on_visit: Callable[[Visit], None] = lambda _: None
        self.on_open: list[Callable[[Places], Awaitable[None]]] = []
        self.on_applied: list[Callable[[str], None]] = []
        self._missing = missing
        self._closed = closed
        self._opened: _Opened | None = None
        self._opening: asyncio.Future[_Opened] | None = None
        self._wanted = asyncio.Event()
        self._closing = asyncio.Event()
        self._way_out = WayOut(config)
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

    @property
    def closed(self) -> ClosedRanges:
        """What is closed on this server, its own addresses included: now, or at the start where nobody joined yet."""
        return self._closed if self._opened is None else self._opened.parts.closed

    async def look_up(self, box: str, name: str) -> tuple[str, ...]:
        """The IPv4 addresses that a canonical name has now, to explain a policy: nothing is opened or recorded."""
        del box  # the same for all: no policy is asked
        try:
            return tuple(await self.resolve(name))
        except OSError as error:
            raise EngineFailure(f"the name {name} could not be looked up", internal=str(error)) from error

    async def resolve(self, name: str) -> list[str]:
        """The IPv4 addresses of a name, for the server itself: no policy is asked. Raises: OSError, EngineFailure."""
        return await (await self._open()).parts.resolve(name)

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
        opened = await self._open()
        index = self.directory.take()
        try:
            await opened.router.work.run(lambda: opened.plugs.plug(index, init_pid, start))
        except OSError as error:
            self.directory.give_back(index)
            raise EngineFailure("the machine refused the sandbox's network", internal=str(error)) from error
        except BaseException:
            # Perhaps cancelled while it was made: it goes the way of a box that left, and its number with it.
            self._ended.put_nowait(index)
            raise
        self._limited[box] = None
        return self.directory.add(box, index, Process(init_pid, start)).address

    async def lend(self, box: str, address: str) -> None:
        """Let a joined box have an address inside that it had before: sockets remember it. It leads nowhere.

        Raises: EngineFailure, SandboxGone.
        """
        endpoint, process = self.directory.by_box(box), self.directory.process(box)
        try:
            is_ours = IPv4Address(address) in self.config.subnet
        except ValueError:
            is_ours = False
        if endpoint is None or process is None or not is_ours:
            raise EngineFailure("the sandbox cannot have its old address", internal=f"{address} for {box}")
        opened = await self._open()
        try:
            await opened.router.work.run(lambda: opened.plugs.lend(endpoint.index, process.pid, process.start, address))
        except OSError as error:
            raise EngineFailure("the machine refused the sandbox's old address", internal=str(error)) from error

    async def apply(self, box: str, policy: NetworkPolicy, links: Mapping[str, str]) -> None:
        """Make `policy` hold for a joined box, in one step; flows that it no longer allows are cut."""
        endpoint = self.directory.by_box(box)
        if endpoint is None:
            raise EngineFailure("the sandbox has no network", internal=f"apply for {box}, which never joined")
        opened = await self._open()
        if policy.mode is not NetworkMode.NONE:
            await self._way_out.ensure(opened.router.places)
        await self._limit(opened, endpoint, policy.bandwidth_bps)
        # First for what listens, which decides by the endpoint: it learns nothing by the old policy any more, and what
        # it allows by the new one is allowed.
        changed = self.directory.change(endpoint, policy, links)
        try:
            await opened.parts.apply(changed)
        except BaseException:
            self.directory.change(endpoint, endpoint.policy, endpoint.links)
            raise
        finally:
            self._tell(box)

    async def leave(self, box: str, *, is_awaited: bool = False) -> None:
        """Take a box's interface, its rules and its address away. Idempotent.

        Its interface, closed, goes in the background some 20 ms later; `is_awaited`: it is gone when this returns.
        """
        if self._opened is not None and self.directory.by_box(box) is not None:
            self._opened.parts.finish(box)
        endpoint = self.directory.remove(box)
        self._limited.pop(box, None)
        if endpoint is None or self._opened is None:
            return
        self._tell(box)
        await self._close(self._opened, endpoint)
        if is_awaited:
            await self._ended.join()

    async def use(self, box: str) -> NetworkUse:
        """Bytes so far; zeros for a box that never joined. Never raises."""
        endpoint, opened = self.directory.by_box(box), self._opened
        if endpoint is None or opened is None:
            return NetworkUse()
        try:
            return await opened.router.work.run(lambda: opened.plugs.use(endpoint.index))
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
        opened = await self._open()
        try:
            if not await opened.router.work.run(lambda: opened.plugs.has(index)):
                return False
        except OSError as error:
            raise EngineFailure("the sandbox's interface cannot be looked at", internal=str(error)) from error
        self.directory.mark(index)
        self.directory.add(box, index, Process(init_pid, start))
        return True

    async def sweep(self) -> None:
        """Take away the interfaces and rules of boxes that nobody adopted. Raises: EngineFailure."""
        if self._missing or not kernel.is_namespace_file(self.config.router_file):
            return
        opened = await self._open()
        known = {endpoint.index for endpoint in self.directory.all()}
        try:
            found = await opened.router.work.run(box_links)
        except OSError as error:
            raise EngineFailure("the sandboxes' interfaces cannot be listed", internal=str(error)) from error
        for index in sorted(found.keys() - known):
            self.directory.mark(index)
            await self._close(opened, Endpoint(box="", address=self.config.address(index), index=index))

    async def release(self) -> None:
        """Take everything away, the machine's own settings included. No box is left. Raises: EngineFailure."""
        try:
            await self._way_out.remove(None if self._opened is None else self._opened.router.places)
        except OSError as error:
            raise EngineFailure("a part of the network could not be taken away", internal=str(error)) from error
        finally:
            self._missing = ("the network was taken away",)
            self._closing.set()
            netns.forget(self.config.router_file)

    # How it is made. One task holds it all, from the first box on: whoever asks for it may be gone before it ends.

    async def _open(self) -> _Opened:
        if self._opened is not None:
            return self._opened
        if self._closing.is_set():
            raise EngineFailure("the sandboxes' network has ended")
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_future()
            self._wanted.set()
        return await asyncio.shield(self._opening)

    async def keep(self) -> None:
        """Make it when it is first wanted, and hold it until `close`. A failure is told to who waits; then again."""
        while not self._closing.is_set():
            await self._wanted.wait()
            self._wanted.clear()
            if self._closing.is_set():
                return
            assert self._opening is not None  # noqa: S101 - who wants it makes the future first
            try:
                async with self._making() as opened:
                    self._opened = opened
                    self._opening.set_result(opened)
                    await self._closing.wait()
            except Exception as error:  # the keeper's outermost frame: nobody else would make it again
                log.exception("the sandboxes' network failed")
                await self._failed(error)
            finally:
                self._opened = None

    async def _failed(self, error: Exception) -> None:
        """Tell who waits. If it had been made, sandboxes live by it: it is made again at once."""
        opening, self._opening = self._opening, None
        if opening is not None and not opening.done():
            internal = f"{error!r} {getattr(error, 'internal', '')}"
            opening.set_exception(EngineFailure("the sandboxes' network cannot be made", internal=internal))
            opening.exception()  # seen, should nobody wait any more
            return
        await asyncio.sleep(_AGAIN_S)
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_future()
        self._wanted.set()

    def close(self) -> None:
        """Stop what listens and end all threads; interfaces and rules stay."""
        self._closing.set()
        self._wanted.set()

    @asynccontextmanager
    async def _making(self) -> AsyncGenerator[_Opened]:
        async with AsyncExitStack() as stack:
            router = await asyncio.to_thread(open_router, self.config)
            stack.callback(router.close)
            await router.places.router.run(settle)
            plugs = await router.work.run(lambda: Plugs(self.config, router.foreign))
            stack.callback(plugs.close)
            there = {index: self.config.address(index) for index in await router.work.run(box_links)}
            for index in there:
                self.directory.mark(index)
            parts = await stack.enter_async_context(
                open_parts(self.config, router.places, self.directory, there, self._refused, self._visited)
            )
            for endpoint in self.directory.all():  # of a network that failed: the new rules know no policy yet
                await parts.apply(endpoint)
            await stack.enter_async_context(self._way_out.mended(router.places))
            for hook in self.on_open:
                await hook(router.places)
            yield _Opened(router, plugs, parts)

    async def _limit(self, opened: _Opened, endpoint: Endpoint, bytes_per_s: int | None) -> None:
        """Set the bandwidth where it is another, or not known (after a restart)."""
        box = endpoint.box
        process = self.directory.process(box)
        if process is None or (box in self._limited and self._limited[box] == bytes_per_s):
            return
        try:
            await opened.router.work.run(
                lambda: opened.plugs.limit(endpoint.index, process.pid, process.start, bytes_per_s)
            )
        except OSError as error:
            raise EngineFailure("the machine refused the bandwidth", internal=str(error)) from error
        self._limited[box] = bytes_per_s

    async def _close(self, opened: _Opened, endpoint: Endpoint) -> None:
        try:
            await opened.parts.forget(endpoint)
        except CoveError as error:
            # Its number stays taken, so it is nobody else's while anything of it may be left.
            log.warning("the rules of %s stay until the next start: %s %s", endpoint.address, error, error.internal)
            return
        self._ended.put_nowait(endpoint.index)

    async def unplug_forever(self) -> None:
        """Take away the interfaces of boxes that left, in the background: one and many cost 20 ms."""
        while True:
            indexes = [await self._ended.get()]
            while not self._ended.empty():
                indexes.append(self._ended.get_nowait())
            await self._unplug(indexes)
            for _ in indexes:
                self._ended.task_done()

    async def _unplug(self, indexes: list[int]) -> None:
        opened = self._opened
        if opened is None:
            return
        try:
            await opened.router.slow.run(partial(veth.unplug, indexes))
        except (OSError, CoveError) as error:
            log.warning("interfaces %s stay until the next start: %s", indexes, error)
            return
        for index in indexes:
            self.directory.give_back(index)

    def _tell(self, box: str) -> None:
        for listener in self.on_applied:
            try:
                listener(box)
            except Exception:  # one listener's bug must not keep a sandbox from its policy, nor from its end
                log.exception("a listener of the sandboxes' network failed")

    def _refused(self, refusal: Refusal) -> None:
        self.on_refusal(refusal)

    def _visited(self, visit: Visit) -> None:
        self.on_visit(visit)


def _unheard(refusal: Refusal) -> None:
    log.debug("refused: %s", refusal)


@asynccontextmanager
async def open_network(config: NetworkConfig) -> AsyncGenerator[SandboxNetwork]:
    """The network of this server. Leaving it leaves interfaces and rules as they are. Never fails: see `missing`."""
    missing = await asyncio.to_thread(probe, config)
    try:
        closed = await _outside_once(config, lambda: closed_ranges(config))
    except (OSError, EngineFailure) as error:
        missing = (*missing, f"the machine's own addresses cannot be read: {error}")
        closed = ClosedRanges(config.opened)
    network = SandboxNetwork(config, missing, closed)
    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(network.unplug_forever())
        keeper = tasks.create_task(network.keep())
        try:
            yield network
        finally:
            network.close()
            await asyncio.wait([keeper])
            worker.cancel()


async def _outside_once(config: NetworkConfig, work: Callable[[], T]) -> T:
    space = netns.NetNs(config.outside, "outside")
    try:
        return await space.run(work)
    finally:
        space.close()
