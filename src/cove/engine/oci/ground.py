"""What the OCI drivers of one server share: uid ranges, layers, mounts, cgroups, directories, the boxes they know.

Opened once per server (`open_ground`), in the instance's mount namespace. `sweep` frees what belongs to no known box.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cove.engine import cgroup, ids, kernel, machine, rootfs
from cove.engine.agentbin import agent_build, agent_path
from cove.engine.checkpoints.model import Checkpoint
from cove.engine.claims import UidRanges
from cove.engine.config import EngineConfig
from cove.engine.driver import BoxFacts, BoxSpec
from cove.engine.ids import Ids, IdsChoice, shifted_copy
from cove.engine.layers import LayerStore, open_layers
from cove.engine.network.service import SandboxNetwork
from cove.engine.oci import bundle, runtime
from cove.model.errors import CapacityExceeded, EngineFailure, Unsupported
from cove.model.ids import is_core_id
from cove.model.sandbox import MIB

log = logging.getLogger(__name__)
T = TypeVar("T")

KILL_LIMIT_S: Final = 15.0
_AGENT: Final = "agent"
"""The file of a checkpoint that is its agent, and the word for its digest."""
_MAX_AGENT_BYTES: Final = 32 * MIB
_AGENTS_BYTES: Final = 256 * MIB
_FORGOTTEN_S: Final = 600.0


class Ground:
    """Shared state of the OCI drivers. `live` has the boxes that a driver object answers for.

    `loaded` names the drivers that work here; None: boxes of any other are nobody's, as at the end of everything.
    """

    def __init__(self, config: EngineConfig, layers: LayerStore, choice: IdsChoice, missing: tuple[str, ...]) -> None:
        self.config = config
        self.layers = layers
        self.choice = choice
        self.missing = (*missing, *choice.missing)
        self.mounts = rootfs.MountThread()
        # A thread of its own for what takes 0.1 ms: a claim must not wait behind the mounts of the pool's filling.
        self._quick = ThreadPoolExecutor(1, "cove-quick", kernel.unshare, (kernel.CLONE_FS,))
        self.uids = UidRanges.of(config.run_dir)
        self.cgroups = cgroup.detect(config.instance)
        self.skeleton = config.data_dir / rootfs.SKELETON
        self.agent_build = agent_build()
        self.agents = config.run_dir / "agents"
        self.live: set[str] = set()
        self.loaded: frozenset[str] | None = None
        self.network: SandboxNetwork | None = None
        self.io_device = layers.device
        self.shown = bundle.shown_of_sys()

    @property
    def agent(self) -> Path:
        """The agent that new boxes start with; running ones hold theirs by their mount."""
        return self.agents / self.agent_build

    @property
    def plain_gzip(self) -> Path:
        """Beside the agents, where programs can be started by anybody: what takes the place of gzip for criu."""
        return self.agents / "gzip"

    async def quickly(self, work: Callable[[], T]) -> T:
        """Run a short blocking call beside the loop. Cancelling does not stop it."""
        return await asyncio.get_running_loop().run_in_executor(self._quick, work)

    def dirs(self, box: str) -> rootfs.BoxDirs:
        """The directories of a box."""
        return rootfs.BoxDirs(home=self.config.run_dir / "sb" / box)

    def runtime_state(self, driver: str) -> Path:
        """The state directory that a runtime gets as its `--root`."""
        return self.config.run_dir / "runtime" / driver

    def _runtime_states(self) -> list[Path]:
        """Of every runtime that was ever used here, also of a driver that is no longer configured."""
        home = self.config.run_dir / "runtime"
        return list(home.iterdir()) if home.is_dir() else []

    def take_ids(self) -> int:
        """The first uid of a new box's range; 0 without user namespaces. Raises: CapacityExceeded."""
        if self.choice.ids is Ids.HOST:
            return 0
        return self.uids.shared() if self.choice.ids is Ids.SHARED else self.uids.take()

    def shifted(self, tree: Path, name: str, base: int) -> Path:
        """A copy of `tree` for boxes that share the ids from `base` on; `name` names the content, such as its digest.

        Blocks, for some seconds the first time. Raises: EngineFailure.
        """
        return shifted_copy(tree, self.config.data_dir / "shifted" / f"{name}-{base}", base)

    async def copied_layer(self, spec: BoxSpec) -> Path | None:
        """The writable layer of a new box, with the files of its origin; None: it has no origin.

        Raises: OSError, EngineFailure.
        """
        if spec.origin is None:
            return None
        return await self._copy_layer(spec.origin.layer, spec.id, spec.limits.disk_bytes)

    async def keep_layer(self, box: str, name: str) -> None:
        """Keep a copy of a box's layer, at which nothing writes meanwhile. Raises: OSError, EngineFailure."""
        await self._copy_layer(box, name, None)

    async def flush_layer(self, box: str) -> None:
        """Before the box is stopped: what it wrote goes to the disk, so that keeping a copy does not wait for it."""
        await on_thread(lambda: self.layers.flush(box))

    async def _copy_layer(self, source: str, name: str, limit_bytes: int | None) -> Path:
        if self.layers.copies_at_once:
            return await self.mounts.run(lambda _: self.layers.copy(source, name, limit_bytes))
        # Not on the mount thread: every create would wait for it.
        return await on_thread(lambda: self.layers.copy(source, name, limit_bytes))

    def prepare(self) -> None:
        """Make what boxes stand on. Raises: EngineFailure, OSError."""
        self.cgroups.prepare()
        self.agents.mkdir(mode=0o711, exist_ok=True)
        if not os.path.ismount(self.agents):
            # /run is often mounted noexec, and a bind mount inherits that: the agent gets a small tmpfs of its own.
            flags = kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount("agents", self.agents, "tmpfs", flags, f"size={_AGENTS_BYTES},mode=0711")
        if not self.agent.exists():
            partial = self.agent.with_suffix(".partial")
            shutil.copyfile(agent_path(), partial)
            partial.chmod(0o555)
            partial.rename(self.agent)

    def keep_agent(self, facts: BoxFacts, directory: Path) -> dict[str, str]:
        """Copy the agent that a box runs into a checkpoint: its processes go on with that very file, or not at all.

        Returns what `kept_agent` needs of it, for `CheckpointFacts.engine`. Blocks, some milliseconds. Raises: OSError,
        Unsupported.
        """
        source = self.agents / (facts.agent_file or facts.agent_build)
        try:
            data = source.read_bytes()
        except FileNotFoundError as error:
            raise Unsupported("its agent is of an older Cove, and no longer here", field="memory") from error
        (directory / _AGENT).write_bytes(data)
        return {_AGENT: hashlib.sha256(data).hexdigest()}

    def kept_agent(self, origin: Checkpoint) -> Path:
        """The agent that a box of `origin` must go on with. Blocks. Raises: EngineFailure, OSError.

        By its content, never by what the checkpoint calls it: another's box might go on with it.
        """
        digest = origin.facts.engine.get(_AGENT, "")
        if digest == hashlib.sha256(self.agent.read_bytes()).hexdigest():
            return self.agent
        with (origin.memory / _AGENT).open("rb") as file:
            data = file.read(_MAX_AGENT_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise EngineFailure("the checkpoint is damaged: its agent", internal=str(origin.memory))
        kept = self.agents / digest
        if kept.exists():
            kept.touch()  # young again: not to be taken for forgotten before the box has its facts
        else:
            self._forget_agents(len(data))
            partial = self.agents / f"{digest}.{origin.id}"
            partial.write_bytes(data)
            partial.chmod(0o555)
            partial.rename(kept)
        return kept

    def _forget_agents(self, needed_bytes: int) -> None:
        """Make room among the agents of older builds: the next server's own must always find some."""
        used = {facts.agent_file or facts.agent_build for facts in self.read_facts()} | {self.agent_build}
        found = [(file, file.stat()) for file in self.agents.iterdir()]
        for file, about in found:
            if file != self.plain_gzip and file.name not in used and about.st_mtime < time.time() - _FORGOTTEN_S:
                file.unlink(missing_ok=True)
        held = sum(about.st_size for file, about in found if file.exists())
        if held + needed_bytes > _AGENTS_BYTES // 2:
            raise CapacityExceeded("too many sandboxes with agents of older builds of Cove run at once")

    def write_facts(self, facts: BoxFacts) -> None:
        """Keep what a restart must know, atomically."""
        home = self.dirs(facts.id).home
        partial = home / "box.partial"
        partial.write_bytes(msgspec.json.encode(facts))
        partial.rename(home / "box.json")

    def read_facts(self) -> list[BoxFacts]:
        """Every box that was made completely, dead or alive."""
        found: list[BoxFacts] = []
        for home in (self.config.run_dir / "sb").iterdir():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(msgspec.json.decode((home / "box.json").read_bytes(), type=BoxFacts))
        return found

    async def free(self, box: str, uid_base: int | None, pid: int | None) -> None:
        """Kill a box's processes and free all it holds. Idempotent.

        Args:
            box: its id.
            uid_base: its uid range, given back once no process is left; None: it never had one, or it is not known.
            pid: its init, already checked to be the process that it was; None: not known.

        Raises: EngineFailure naming what could not be freed.
        """
        group = self.cgroups.of(box)
        group.kill()
        if pid is not None:
            await _kill_and_wait(pid, group)
        await _kill_stragglers(group)
        for state in self._runtime_states():
            runtime.forget(state, box)
        await group.remove()
        dirs = self.dirs(box)

        def undo(_: object) -> None:
            rootfs.unmount_box(dirs)
            self.layers.remove(box)
            with contextlib.suppress(FileNotFoundError):
                if any(entry.is_dir(follow_symlinks=False) for entry in os.scandir(dirs.home)):
                    rootfs.unmount_below(dirs.home)
                shutil.rmtree(dirs.home)

        await self.mounts.run(undo)
        if self.network is not None:
            await self.network.leave(box)
        if uid_base is not None:
            self.uids.give_back(uid_base)
        self.live.discard(box)

    async def sweep(self) -> list[str]:
        """Free everything of this instance that belongs to no live box. Returns their ids.

        A live box of a driver that is not `loaded` stays: the next start with it takes it back.
        """
        self._kill_runtimes()
        await self._spare_strangers()
        found = {d.name for d in (self.config.run_dir / "sb").iterdir()} | self.cgroups.boxes()
        found |= await self.mounts.run(lambda _: self.layers.names())
        for state in self._runtime_states():
            found |= runtime.known(state)
        lost = sorted(box for box in found - self.live if is_core_id(box))
        for box in lost:
            base = self._uid_base_of(box)
            if base is not None:
                self.uids.mark(base)
            try:
                await self.free(box, base, None)
            except (EngineFailure, OSError):
                # Its range stays marked, so it is not given to another while one of its processes may live.
                log.exception("box %s could not be freed, the next start tries again", box)
        if self.network is not None:
            await self.network.sweep()
        used = {facts.agent_file or facts.agent_build for facts in self.read_facts()}
        for old in self.agents.iterdir():
            if old not in {self.agent, self.plain_gzip} and old.name not in used:
                old.unlink()
        return lost

    async def _spare_strangers(self) -> None:
        """Take boxes of drivers that are not loaded for live, with all they hold."""
        for facts in self.read_facts():
            is_strange = self.loaded is not None and facts.driver not in self.loaded
            if is_strange and kernel.process_start(facts.init_pid) == facts.init_start:
                self.uids.mark(facts.uid_base)
                self.live.add(facts.id)
                if self.network is not None and facts.address:
                    await self.network.adopt(facts.id, facts.address, facts.init_pid)

    def note_uid_base(self, box: str, base: int) -> None:
        """Write down the range before a process of it can exist; `write_facts` comes when the box is complete."""
        (self.dirs(box).home / "uid").write_text(str(base))

    def _uid_base_of(self, box: str) -> int | None:
        try:
            return int((self.dirs(box).home / "uid").read_text())
        except (OSError, ValueError):
            return None

    def _kill_runtimes(self) -> None:
        """End runtime calls that a killed server left behind: one could still make a box while we sweep."""
        mark = os.fsencode(self.config.run_dir / "runtime") + b"/"
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if any(a == b"--root" and b.startswith(mark) for a, b in pairwise(words)):
                    os.kill(int(entry.name), signal.SIGKILL)

    def close(self, *, release: bool) -> None:
        """End the threads; with `release` also unmount everything and give up the machine-wide claims."""
        self.mounts.close()
        self._quick.shutdown()
        if release:
            self.layers.close()
            with contextlib.suppress(OSError):
                kernel.umount(self.agents, kernel.MNT_DETACH)
            self.cgroups.remove_tree()
            self.uids.give_back_all()


async def on_thread(work: Callable[[], T]) -> T:
    """What `work` returns, from a thread. Cancelling waits for its end: nothing is left half made and unknown."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await future
        raise


def processes_of(group: cgroup.BoxCgroup) -> set[int]:
    """The processes in a box's cgroup."""
    pids: set[int] = set()
    for directory in group.directories():
        with contextlib.suppress(OSError):
            pids |= {int(line) for line in (directory / "cgroup.procs").read_text().split()}
    return pids


async def _kill_and_wait(pid: int, group: cgroup.BoxCgroup) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        with contextlib.suppress(OSError):
            # Frozen v1 tasks do not die; a thaw wakes them into their death.
            await group.thaw()
        await wait_readable(fd, KILL_LIMIT_S)
    finally:
        os.close(fd)


async def _kill_stragglers(group: cgroup.BoxCgroup) -> None:
    """Kill what is still in the box's cgroup: nothing, unless the box was only half made."""
    try:
        async with asyncio.timeout(KILL_LIMIT_S):
            while pids := processes_of(group):
                await _signal_all(pids)
                with contextlib.suppress(OSError):
                    await group.thaw()
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise EngineFailure("a sandbox's processes do not end", internal=str(processes_of(group))) from error


async def _signal_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def wait_readable(fd: int, limit_s: float | None) -> None:
    """Wait until `fd` (a pidfd: until its process has ended) is readable. Raises: EngineFailure after `limit_s`."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_reader(fd, end)
    try:
        async with asyncio.timeout(limit_s):
            await done
    except TimeoutError as error:
        raise EngineFailure("a process did not end in time") from error
    finally:
        loop.remove_reader(fd)


def _choose_ids(config: EngineConfig) -> IdsChoice:
    place = config.run_dir / "probe"
    place.mkdir(mode=0o700, exist_ok=True)
    try:
        user_namespaces, idmapped_mounts = ids.probe(place, config.data_dir / rootfs.SKELETON)
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()
    allowed = frozenset(Ids(word) for word in config.degrade)
    return ids.choose(allowed, user_namespaces=user_namespaces, idmapped_mounts=idmapped_mounts)


@asynccontextmanager
async def open_ground(config: EngineConfig) -> AsyncGenerator[Ground]:
    """The ground of this server. Leaving it leaves every box running.

    Raises: EngineFailure when this machine cannot carry boxes, with what is missing.
    """
    if not machine.is_entered(config.run_dir):
        raise EngineFailure("the engine must run in its own mount namespace", internal="machine.enter() was not called")
    layers, missing = await asyncio.to_thread(open_layers, config.quota, config.data_dir, config.pool_bytes)
    rootfs.make_skeleton(config.data_dir / rootfs.SKELETON)
    choice = await asyncio.to_thread(_choose_ids, config)
    ground = Ground(config, layers, choice, missing)
    try:
        ground.prepare()
        yield ground
    finally:
        ground.close(release=False)
