"""The driver of every OCI runtime: makes, adopts, ends boxes. What differs per runtime stands in `drivers/<name>.py`.

One box: a uid range, a writable layer, an idmapped overlay, a bundle, the runtime's `run`, the agent's socket. Each
step is undone by `Ground.free`, which works from the id alone: a failure or a cancellation at any point leaves nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import msgspec

from cove.engine import kernel, rootfs, seccomp
from cove.engine.checkpoints.model import Draft
from cove.engine.driver import Box, BoxFacts, BoxSpec, Driver
from cove.engine.ids import Ids
from cove.engine.oci import bundle
from cove.engine.oci.box import OciBox, connect_agent
from cove.engine.oci.ground import Ground
from cove.engine.oci.runtime import Runtime
from cove.engine.oci.saving import CopyLayer, Saved
from cove.engine.userns import UserNamespaces
from cove.model.errors import EngineFailure, SandboxGone, Unsupported
from cove.model.sandbox import Isolation


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
        await self._probe_memory()
        return (*self._version_gaps(self._version), *((refusal,) if refusal else ()))

    async def _probe_memory(self) -> None:
        """Find out what `memory_gaps` answers from then on. Called once, before any box is adopted. Never raises."""

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

        copied = await ground.copied_layer(spec)

        def mount(users: UserNamespaces) -> None:
            layer = copied or ground.layers.create(spec.id, spec.limits.disk_bytes)
            rootfs.mount_box(users, dirs, image=image, skeleton=skeleton, layer=layer, base=base, ids=ground.choice.ids)

        await ground.mounts.run(mount)
        agent = ground.agent
        if spec.origin is not None and spec.with_memory:
            agent = await asyncio.to_thread(ground.kept_agent, spec.origin)
        config = bundle.build(
            bundle.BundleSpec(
                hostname=spec.hostname,
                rootfs=dirs.rootfs,
                agent=agent,
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
        start = self._restore if spec.origin is not None and spec.with_memory else self._start
        facts = self._completed(await start(spec, base, pid_file))
        if agent != ground.agent and spec.origin is not None:
            facts = msgspec.structs.replace(facts, agent_build=spec.origin.facts.agent_build, agent_file=agent.name)
        box = OciBox(self, ground, facts, await connect_agent(ground, facts, is_new=True))
        ground.write_facts(facts)
        return box

    async def _start(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        """Run the bundle beside `pid_file`."""
        await self._runtime.run(spec.id, pid_file.parent, pid_file)
        return self._facts(spec, base, pid_file)

    async def _restore(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        """Let the processes of `spec.origin` go on in the bundle beside `pid_file`, which has their files already."""
        del base, pid_file
        raise Unsupported(self.memory_gaps[0], field="memory", internal=spec.id)

    async def keep_memory(self, box: OciBox, draft: Draft, copy_layer: CopyLayer, *, stay_paused: bool) -> Saved:
        """Take the processes of `box` into `draft.memory`; called where `memory_gaps` is empty.

        `copy_layer` is awaited once, at the same instant. Afterwards, failed or not, the box is as it was; with
        `stay_paused` it stays stopped once that was done, and its agent is left as the checkpoint has it.

        Raises: Unsupported for something in the box that cannot be kept, EngineFailure, OSError.
        """
        del box, draft, copy_layer, stay_paused
        raise Unsupported(self.memory_gaps[0], field="memory")

    async def let_go_on(self, box: OciBox) -> None:
        """The box was thawed: let go on what a checkpoint stopped by other means than its cgroup. Often nothing."""
        del box

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
