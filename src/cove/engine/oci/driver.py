"""The driver of every OCI runtime: makes, adopts, ends boxes. What differs per runtime stands in `drivers/<name>.py`.

One box: a uid range, a writable layer, an idmapped overlay, a bundle, the runtime's `run`, the agent's socket. Each
step is undone by `Ground.free`, which works from the id alone: a failure or a cancellation at any point leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from cove.agentlink.client import AgentClient
from cove.engine import agentsocket, kernel, rootfs, seccomp
from cove.engine.driver import Box, BoxFacts, BoxSpec, Driver
from cove.engine.ids import Ids
from cove.engine.network.service import SandboxNetwork
from cove.engine.oci import bundle
from cove.engine.oci.ground import Ground, wait_readable
from cove.engine.oci.runtime import Runtime
from cove.engine.userns import UserNamespaces
from cove.model.errors import Conflict, CoveError, EngineFailure, SandboxGone, Unsupported
from cove.model.network import NO_NETWORK, NetworkPolicy, NetworkUse
from cove.model.sandbox import Isolation, Limits, Usage

_AGENT_LIMIT_S: Final = 10.0


class OciBox(Box):
    """A box made by an OCI runtime."""

    def __init__(self, driver: OciDriver, ground: Ground, facts: BoxFacts, agent: AgentClient | None) -> None:
        self.facts = facts
        self._own_kernel = driver.own_kernel
        self._ground = ground
        self._agent = agent
        self._group = ground.cgroups.of(facts.id)
        # Of an adopted box it is not known until the policy of its row is applied; a new one has everything closed.
        self._policy: NetworkPolicy | None = None if facts.address else NO_NETWORK
        self._is_spare = False
        self._joining = asyncio.Lock()
        self._last_usage = Usage()
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
            await self._ground.quickly(lambda: self._group.set_limits(for_host, device=self._ground.io_device))
            if limits.disk_bytes != facts.limits.disk_bytes:
                await self._ground.mounts.run(lambda _: self._ground.layers.resize(facts.id, limits.disk_bytes))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict("the sandbox uses more memory than that now", field="memory_mib") from error
            raise EngineFailure("the kernel refused the new limits", internal=str(error)) from error
        self.facts = msgspec.structs.replace(facts, limits=limits)
        self._ground.write_facts(self.facts)

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
        if self._group.forks_refused():
            return "its first process ended, after its limit of processes (pids) had refused one"
        return super().obituary

    async def set_hostname(self, hostname: str) -> None:
        def work() -> None:
            own = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
            theirs = os.open(f"/proc/{self.facts.init_pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
            try:
                kernel.setns(theirs, kernel.CLONE_NEWUTS)
                try:
                    kernel.sethostname(hostname)
                finally:
                    kernel.setns(own, kernel.CLONE_NEWUTS)
            finally:
                os.close(own)
                os.close(theirs)

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

    async def pause(self) -> None:
        await self._group.freeze()

    async def resume(self) -> None:
        await self._group.thaw()

    async def usage(self) -> Usage:
        if not self._is_freed:
            used = self._group.usage()
            disk = await self._ground.quickly(lambda: self._ground.layers.used_bytes(self.facts.id))
            self._last_usage = msgspec.structs.replace(used, disk_bytes=disk)
        return self._last_usage

    def oom_kills(self) -> int:
        return self._last_usage.oom_kills if self._is_freed else self._group.oom_kills()

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
        self._agent = await _connect(self._ground, self.facts, is_new=False)

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


async def _connect(ground: Ground, facts: BoxFacts, *, is_new: bool) -> AgentClient:
    directory = ground.dirs(facts.id).socket_dir
    peer = agentsocket.Peer(pid=facts.listener_pid or facts.init_pid, uid=facts.uid_base)
    return await agentsocket.connect(directory, peer, is_new=is_new, timeout_s=_AGENT_LIMIT_S)


class OciDriver(Driver):
    """Boxes by one OCI runtime. Subclasses name it and say what it needs.

    `program`: the runtime's file name where it is not the driver's; `flags`: its global options; `own_kernel`: a box
    has its own, which uses CPU while it idles (so the pool keeps it frozen) and fixes the host name and the limit of
    processes when it starts.
    """

    program = ""
    flags: tuple[str, ...] = ()
    own_kernel = False

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        program = ground.config.runtimes_dir / "bin" / (self.program or self.name)
        self._runtime = Runtime(program, ground.runtime_state(self.name), self.flags)
        self._version = ""
        self._copying = threading.Lock()

    async def requirements(self) -> tuple[str, ...]:
        try:
            self._version = await self._runtime.version()
        except EngineFailure as error:
            return (error.public,)
        refusal = self._ground.choice.refusal
        return (*self._version_gaps(self._version), *((refusal,) if refusal else ()))

    def _version_gaps(self, version: str) -> tuple[str, ...]:
        """What is wrong with `version`, one sentence each."""
        raise NotImplementedError

    async def create(self, spec: BoxSpec) -> Box:
        if not self._version:
            self._version = await self._runtime.version()
        ground = self._ground
        base = ground.take_ids()
        if (base == 0) is not (ground.choice.ids is Ids.HOST):
            raise EngineFailure("a sandbox was about to get the wrong ids", internal=f"{base} for {ground.choice.ids}")
        ground.live.add(spec.id)
        try:
            return await self._create(spec, base)
        except BaseException as error:
            # Shielded: a cancelled create still frees what it made, and only then goes on being cancelled.
            await asyncio.shield(ground.free(spec.id, base, None))
            if isinstance(error, OSError):
                raise EngineFailure("the sandbox could not be made", internal=str(error)) from error
            raise

    async def _create(self, spec: BoxSpec, base: int) -> Box:
        ground = self._ground
        dirs = ground.dirs(spec.id)
        image, skeleton = spec.image.rootfs, ground.skeleton
        if ground.choice.ids is Ids.SHARED:
            image, skeleton = await asyncio.to_thread(self._copies, spec, base)

        def mount(users: UserNamespaces) -> None:
            layer = ground.layers.create(spec.id, spec.limits.disk_bytes)
            rootfs.mount_box(users, dirs, image=image, skeleton=skeleton, layer=layer, base=base, ids=ground.choice.ids)

        await ground.mounts.run(mount)
        config = bundle.build(
            bundle.BundleSpec(
                hostname=spec.hostname,
                rootfs=dirs.rootfs,
                agent=ground.agent,
                socket_dir=dirs.socket_dir,
                uid_base=base,
                cgroup_path=ground.cgroups.runtime_path(spec.id),
                limits=spec.limits,
                io_device=ground.io_device,
                shown=ground.shown,
                own_kernel=self.own_kernel,
            ),
        )
        ground.note_uid_base(spec.id, base)
        (dirs.home / "config.json").write_bytes(msgspec.json.encode(config))
        pid_file = dirs.home / "pid"
        facts = await self._start(spec, base, pid_file)
        facts = self._completed(facts)
        box = OciBox(self, ground, facts, await _connect(ground, facts, is_new=True))
        ground.write_facts(facts)
        return box

    async def _start(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        """Run the bundle beside `pid_file`."""
        await self._runtime.run(spec.id, pid_file.parent, pid_file)
        return self._facts(spec, base, pid_file)

    def _copies(self, spec: BoxSpec, base: int) -> tuple[Path, Path]:
        with self._copying:  # one at a time: the second create of an image finds the first one's copy
            image = self._ground.shifted(spec.image.rootfs, spec.image.digest[:32], base)
            return image, self._ground.shifted(self._ground.skeleton, rootfs.SKELETON, base)

    def _facts(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        pid = int(pid_file.read_text())
        start = kernel.process_start(pid)
        if start is None:
            raise SandboxGone("the sandbox ended while it started")
        return BoxFacts(
            id=spec.id,
            driver=self.name,
            image=spec.image.name,
            image_digest=spec.image.digest,
            uid_base=base,
            init_pid=pid,
            init_start=start,
            limits=spec.limits,
            isolation=self.isolation,
            agent_build=self._ground.agent_build,
            created_at=time.time(),
            origin="" if spec.origin is None else spec.origin.id,
        )

    def _completed(self, facts: BoxFacts) -> BoxFacts:
        """The facts with what is known only once the runtime has started the box."""
        return facts

    @property
    def network_gaps(self) -> tuple[str, ...]:
        network = self._ground.network
        return super().network_gaps if network is None else network.missing

    @property
    def isolation(self) -> Isolation:
        """What a box that is made now gets."""
        return Isolation(
            driver=self.name,
            driver_version=self._version,
            user_namespace=self._ground.choice.ids is not Ids.HOST,
            seccomp=seccomp.NAME_OWN_KERNEL if self.own_kernel else seccomp.NAME,
            quota=self._ground.layers.kind,
            cgroup=self._ground.cgroups.kind,
            missing=(*self._ground.missing, *(f"no network: {one}" for one in self.network_gaps)),
        )

    async def adopt(self, facts: BoxFacts) -> Box:
        if kernel.process_start(facts.init_pid) != facts.init_start:
            raise SandboxGone("the sandbox ended while the server was away")
        ground = self._ground
        ground.uids.mark(facts.uid_base)
        ground.live.add(facts.id)
        if facts.address and ground.network is not None:
            is_there = await ground.network.adopt(facts.id, facts.address, facts.init_pid)
            if not is_there and not ground.network.missing:
                # Its interface is gone, and its address may be another's by the next start.
                facts = msgspec.structs.replace(facts, address="")
                ground.write_facts(facts)
        # Not connected: the sandbox owns the socket, and one that does not answer must not hold up a start.
        return OciBox(self, ground, facts, None)

    async def remains(self) -> list[BoxFacts]:
        return [f for f in self._ground.read_facts() if f.driver == self.name]

    async def reap(self, facts: BoxFacts | None = None) -> None:
        if facts is None:
            await self._ground.sweep()
        else:
            self._ground.uids.mark(facts.uid_base)
            await OciBox(self, self._ground, facts, None).destroy()
