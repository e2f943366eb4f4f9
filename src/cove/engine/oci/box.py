"""A box made by an OCI runtime: its limits, network, agent, use, and what is taken of it for a checkpoint.

How a box starts stands in `oci/driver.py`; how its memory is kept is the driver's own (`OciDriver.keep_memory`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cove.agentlink.client import AgentClient
from cove.engine import agentsocket, kernel
from cove.engine.checkpoints.model import CheckpointFacts, Draft
from cove.engine.driver import Box, BoxFacts, Scratch
from cove.engine.network.service import SandboxNetwork
from cove.engine.oci import bundle, quiet
from cove.engine.oci.ground import Ground, processes_of, wait_readable
from cove.engine.oci.saving import CopyLayer, Saved, StopClock, surely
from cove.engine.oci.scratch import Mounted, Place, mount_scratch
from cove.model.errors import CapacityExceeded, Conflict, CoveError, EngineFailure, SandboxGone, Unsupported
from cove.model.network import NO_NETWORK, NetworkPolicy, NetworkUse
from cove.model.sandbox import Isolation, Limits, Usage

if TYPE_CHECKING:
    from cove.engine.oci.driver import OciDriver

log = logging.getLogger(__name__)

_AGENT_LIMIT_S: Final = 10.0


class OciBox(Box):
    """A box made by an OCI runtime."""

    def __init__(self, driver: OciDriver, ground: Ground, facts: BoxFacts, agent: AgentClient | None) -> None:
        self.facts = facts
        self._driver = driver
        self._own_kernel = driver.own_kernel
        self._ground = ground
        self._agent = agent
        self.group = ground.cgroups.of(facts.id)
        # Of an adopted box it is not known until the policy of its row is applied; a new one has everything closed.
        self._policy: NetworkPolicy | None = None if facts.address else NO_NETWORK
        self._is_spare = False
        self._joining = asyncio.Lock()
        self._keeping = asyncio.Lock()
        self.was_quiet = False
        self._last_usage = Usage()
        self._scratch: Mounted | None = None
        self._freed = asyncio.Lock()
        self._is_freed = False

    @property
    def agent(self) -> AgentClient:
        """The connection to its agent. Raises: SandboxGone when there is none (a paused or a dead box)."""
        if self._agent is None:
            raise SandboxGone("the sandbox has no agent")
        return self._agent

    @property
    def isolation(self) -> Isolation:
        return msgspec.structs.replace(self.facts.isolation, network=(self._policy or NO_NETWORK).word)

    @property
    def is_alive(self) -> bool:
        """Whether its init still is the process it was."""
        return kernel.process_start(self.facts.init_pid) == self.facts.init_start

    async def set_limits(self, limits: Limits) -> None:
        facts = self.facts
        if self._own_kernel and limits.pids != facts.limits.pids:
            raise Unsupported(f"the driver {facts.driver} cannot change the limit of processes later", field="pids")
        for_host = bundle.host_limits(limits, own_kernel=self._own_kernel)
        try:
            # Beside the loop: lowering memory makes the kernel reclaim inside the write, which took 0.7 s for 1.5 GB.
            await self._ground.quickly(lambda: self.group.set_limits(for_host, device=self._ground.io_device))
            if limits.disk_bytes != facts.limits.disk_bytes:
                await self._ground.mounts.run(lambda _: self._ground.layers.resize(facts.id, limits.disk_bytes))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict("the sandbox uses more memory than that now", field="memory_mib") from error
            raise EngineFailure("the kernel refused the new limits", internal=str(error)) from error
        self.facts = msgspec.structs.replace(facts, limits=limits)
        self._ground.write_facts(self.facts)

    async def add_scratch(self, scratch: Sequence[Scratch], *, read_only: bool) -> None:
        facts = self.facts
        wanted, before = (tuple(scratch), read_only), self._scratch
        if self._own_kernel:
            await super().add_scratch(scratch, read_only=read_only)
        if wanted == before:
            return
        if not facts.scratch:
            self.facts = msgspec.structs.replace(facts, scratch=True)
            self._ground.write_facts(self.facts)
        place = Place(facts.init_pid, facts.init_start, facts.uid_base)
        try:
            await self._ground.quickly(lambda: mount_scratch(place, wanted, before))
        except OSError as error:
            raise EngineFailure("the sandbox could not be given its file systems", internal=repr(error)) from error
        self._scratch = wanted

    async def rest(self) -> None:
        self._is_spare = True
        if self._works_unasked:
            await self.pause()

    async def wake(self) -> None:
        if self._works_unasked:
            await self.resume()

    @property
    def _works_unasked(self) -> bool:
        """Whether something runs in it before anybody has claimed it."""
        return self._own_kernel or bool(self.facts.origin)

    def let_go(self) -> None:
        if self._agent is not None:
            self._agent.drop()

    @property
    def oom_codes(self) -> frozenset[int]:
        # A process whose memory the kernel took from under gVisor ends with EPERM as its code.
        return super().oom_codes | ({errno.EPERM} if self._own_kernel else frozenset[int]())

    @property
    def obituary(self) -> str:
        if self.group.forks_refused():
            return "its first process ended, after its limit of processes (pids) had refused one"
        return super().obituary

    async def set_hostname(self, hostname: str) -> None:
        def work() -> None:
            with in_uts_of(self.facts.init_pid):
                kernel.sethostname(hostname)

        if self._own_kernel:
            raise Unsupported(f"the driver {self.facts.driver} cannot rename a running sandbox", field="hostname")
        if not self.is_alive:
            raise SandboxGone("the sandbox has ended")
        try:
            await self._ground.quickly(work)
        except OSError as error:
            raise EngineFailure("the kernel refused the host name", internal=str(error)) from error

    @property
    def is_joined(self) -> bool:
        return bool(self.facts.address)

    async def set_network(self, policy: NetworkPolicy, links: Mapping[str, str]) -> None:
        async with self._joining:
            is_spare, self._is_spare = self._is_spare, False
            if not policy.is_connected and is_spare:
                await self._leave()
            elif policy.is_connected or self._policy is None or self._policy.is_connected:
                network = self._network()
                await self._join(network)
                self._policy = None  # should it fail half-way: the next one is applied whatever it is
                await network.apply(self.facts.id, policy, links)
                self._policy = policy

    async def prepare_network(self) -> None:
        async with self._joining:
            network = self._ground.network
            if self._is_spare and not self._own_kernel and network is not None and not network.missing:
                await self._join(network)

    async def _join(self, network: SandboxNetwork) -> None:
        """Give it its interface, with everything closed; if it has one, nothing."""
        if network.endpoints.by_box(self.facts.id) is not None:
            return
        if self._own_kernel:  # it reads its interfaces once, when it starts
            raise Unsupported("this sandbox was made without a network interface", field="network")
        address = await network.join(self.facts.id, self.facts.init_pid)
        self._note_address(address)

    async def _leave(self) -> None:
        """Take the interface away that it got in the pool. gVisor cannot do without: there it stays, closed."""
        if self._ground.network is not None and self.facts.address and not self._own_kernel:
            await self._ground.network.leave(self.facts.id, is_awaited=True)
            self._note_address("")
            self._policy = NO_NETWORK

    def _note_address(self, address: str) -> None:
        self.facts = msgspec.structs.replace(self.facts, address=address)
        self._ground.write_facts(self.facts)

    def _network(self) -> SandboxNetwork:
        if self._ground.network is None:
            raise Unsupported("sandboxes are not connected here", field="network")
        return self._ground.network

    async def network_use(self) -> NetworkUse:
        return NetworkUse() if self._ground.network is None else await self._ground.network.use(self.facts.id)

    async def checkpoint(self, draft: Draft, *, with_memory: bool, stay_paused: bool = False) -> CheckpointFacts:
        if not self.is_alive:
            raise SandboxGone("the sandbox has ended")
        if with_memory and (gaps := self._driver.memory_gaps):
            raise Unsupported(gaps[0], field="memory", internal="; ".join(gaps))
        if self.facts.scratch:
            raise Unsupported("this sandbox has its files in memory, for executions: they cannot be kept on the disk")
        hostname = await self.hostname()

        async def copy_layer() -> None:
            await self._ground.keep_layer(self.facts.id, draft.layer)

        agent: dict[str, str] = {}
        async with self._keeping:
            try:
                await self._ground.flush_layer(self.facts.id)
                if with_memory:
                    agent = await asyncio.to_thread(self._ground.keep_agent, self.facts, draft.memory)
                    saved = await self._driver.keep_memory(self, draft, copy_layer, stay_paused=stay_paused)
                else:
                    saved = await self._keep_files(copy_layer, stay_paused=stay_paused)
            except OSError as error:
                if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                    raise CapacityExceeded("the machine's disk is full", internal=str(error)) from error
                raise EngineFailure("the sandbox could not be kept on the disk", internal=repr(error)) from error
        used = await self._ground.quickly(lambda: self._ground.layers.used_bytes(draft.layer))
        return CheckpointFacts(
            driver=self.facts.driver,
            has_memory=with_memory,
            image=self.facts.image,
            image_digest=self.facts.image_digest,
            limits=self.facts.limits,
            hostname=hostname,
            agent_build=self.facts.agent_build,
            engine={**saved.engine, **agent},
            processes=saved.processes,
            memory_bytes=saved.memory_bytes,
            inherited_bytes=used,
            stopped_ms=saved.stopped_ms,
        )

    async def _keep_files(self, copy_layer: CopyLayer, *, stay_paused: bool) -> Saved:
        """What lies on the disk at one instant: everything stands still while the layer is copied."""
        processes = len(processes_of(self.group) - {self.facts.init_pid})
        async with self.stopped(stay_paused=stay_paused) as clock:
            await copy_layer()
        return Saved(processes=processes, stopped_ms=clock.stopped_ms)

    @contextlib.asynccontextmanager
    async def stopped(self, *, stay_paused: bool) -> AsyncGenerator[StopClock]:
        """Nothing runs in it during the body. Afterwards it is as it was, or with `stay_paused` it stays stopped.

        When the body fails or is cancelled it is as it was, whatever was asked for.
        """
        clock, was_frozen = StopClock(), self.group.is_frozen()
        try:
            await self.group.freeze()
            yield clock
        except BaseException:
            if not was_frozen:
                await asyncio.shield(self.group.thaw())
            raise
        if not was_frozen and not stay_paused:
            await asyncio.shield(self.group.thaw())
        clock.stop()

    async def hostname(self) -> str:
        """Its UTS name, or the one it was started with where it has a kernel of its own, which fixes it."""
        if self._own_kernel:
            config = (self._ground.dirs(self.facts.id).home / "config.json").read_bytes()
            return msgspec.json.decode(config, type=_Named).hostname

        def work() -> str:
            with in_uts_of(self.facts.init_pid):
                return os.uname().nodename

        return await self._ground.quickly(work)

    async def pause(self) -> None:
        await self.group.freeze()

    async def resume(self) -> None:
        await self.group.thaw()
        await self._take_up()

    @contextlib.asynccontextmanager
    async def quiet(self, *, stay_quiet: bool) -> AsyncGenerator[None]:
        """Its agent holds no socket during the body, and all calls wait: so its memory can be kept.

        At first everything runs, in a paused box too; what stands still when is the body's affair. Afterwards a running
        box goes on with its calls. A paused one, and with `stay_quiet` any, is frozen and goes on with them when it is
        resumed. When the body fails or is cancelled the box is as it was, whatever was asked for.

        Raises: Conflict (`AgentClient.suspend`), AgentTimeout, AgentViolation, SandboxGone.
        """
        was_frozen = self.group.is_frozen()
        try:
            await self.group.thaw()
            await self.reconnect()
            if not self.agent.is_suspended:
                quiet.ask(self.socket_dir)
                await surely(self.agent.suspend())  # cancelled half-way it would cost all calls
            yield
        except BaseException:
            with contextlib.suppress(CoveError, OSError):  # it may be dead by now, and what was raised says why
                await asyncio.shield(self._settle(is_frozen=was_frozen))
            raise
        await asyncio.shield(self._settle(is_frozen=was_frozen or stay_quiet))

    async def _settle(self, *, is_frozen: bool) -> None:
        await (self.group.freeze() if is_frozen else self.resume())

    async def _take_up(self) -> None:
        """Once it runs: give the agent its socket back if it was quiet, and go on with the calls that wait."""
        await self._driver.let_go_on(self)
        self.was_quiet = quiet.withdraw(self.socket_dir) or self.was_quiet
        if self._agent is None or not self._agent.is_suspended:
            return
        try:
            await agentsocket.resume(self._agent, self.socket_dir, self._peer, timeout_s=_AGENT_LIMIT_S)
        except CoveError as error:
            # Its calls have ended with that; whoever needs the agent connects anew and learns what is wrong.
            log.warning("the calls in sandbox %s were lost: %s %s", self.facts.id, error, error.internal)
        else:
            self.was_quiet = False

    @property
    def socket_dir(self) -> Path:
        """Where its agent's socket lies: the sandbox's own directory, in which nothing may be followed."""
        return self._ground.dirs(self.facts.id).socket_dir

    @property
    def _peer(self) -> agentsocket.Peer:
        return agentsocket.Peer(pid=self.facts.listener_pid or self.facts.init_pid, uid=self.facts.uid_base)

    async def usage(self) -> Usage:
        if not self._is_freed:
            used = self.group.usage()
            disk = await self._ground.quickly(lambda: self._ground.layers.used_bytes(self.facts.id))
            self._last_usage = msgspec.structs.replace(used, disk_bytes=disk)
        return self._last_usage

    def oom_kills(self) -> int:
        return self._last_usage.oom_kills if self._is_freed else self.group.oom_kills()

    async def wait_dead(self) -> None:
        try:
            fd = os.pidfd_open(self.facts.init_pid)
        except ProcessLookupError:
            return
        try:
            # Opened, then checked: had the pid been given to another process meanwhile, its start time would differ.
            if self.is_alive:
                await wait_readable(fd, None)
        finally:
            os.close(fd)

    async def reconnect(self) -> None:
        if self._agent is not None and not self._agent.is_closed:
            return
        if not self.is_alive:
            raise SandboxGone("the sandbox has ended")
        # An agent that was quiet binds its socket anew, in its own time.
        is_new = quiet.withdraw(self.socket_dir) or self.was_quiet
        self._agent = await connect_agent(self._ground, self.facts, is_new=is_new)
        self.was_quiet = False

    async def destroy(self) -> Usage:
        async with self._freed:
            if self._is_freed:
                return self._last_usage
            self._is_spare = False  # it gets no interface any more
            async with self._joining:
                pass  # and the one that it is getting goes below, with its address
            with contextlib.suppress(CoveError, OSError):
                await self.usage()
            if self._agent is not None:
                await self._agent.close()
            pid = self.facts.init_pid if self.is_alive else None
            try:
                await self._ground.free(self.facts.id, self.facts.uid_base, pid)
            except OSError as error:
                raise EngineFailure("a part of the sandbox could not be freed", internal=str(error)) from error
            self._is_freed = True
            return self._last_usage


class _Named(msgspec.Struct):
    """What we read of a bundle's configuration."""

    hostname: str


@contextlib.contextmanager
def in_uts_of(pid: int) -> Generator[None]:
    """This thread in the UTS namespace of `pid`, for the body's time. Raises: OSError."""
    own = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(theirs, kernel.CLONE_NEWUTS)
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            kernel.setns(own, kernel.CLONE_NEWUTS)
    finally:
        os.close(own)


async def connect_agent(ground: Ground, facts: BoxFacts, *, is_new: bool) -> AgentClient:
    """A client of the agent of the box of `facts`. Raises: AgentTimeout, AgentViolation, SandboxGone."""
    directory = ground.dirs(facts.id).socket_dir
    peer = agentsocket.Peer(pid=facts.listener_pid or facts.init_pid, uid=facts.uid_base)
    return await agentsocket.connect(directory, peer, is_new=is_new, timeout_s=_AGENT_LIMIT_S)
