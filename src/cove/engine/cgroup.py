"""Control groups of sandboxes: one interface, two hierarchies. Reads and writes of cgroup files only; no policy.

`v1` (one directory per controller) and `v2` (one directory). The OCI runtime makes the directories when it starts the
box (`cgroupsPath` = `Hierarchy.runtime_path`); we change limits, read use, freeze and remove. All calls are plain file
operations of 10-50 µs and run on the loop, but `freeze` and `remove`, which wait for the kernel and are coroutines.
The first write to a v1 `cgroup.procs` after idle waits ~10 ms for an RCU grace period; the warm pool hides that.

To support another controller: a field in `model.sandbox.Limits`, a line in both `set_limits`, one in `oci/bundle.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

from cove.engine import kernel
from cove.model.errors import EngineFailure
from cove.model.sandbox import Limits, Usage

_CGROUP2_MAGIC: Final = 0x63677270
_ROOT: Final = Path("/sys/fs/cgroup")
CPU_PERIOD_US: Final = 100_000
_FREEZE_LIMIT_S: Final = 5.0
_REMOVE_LIMIT_S: Final = 5.0
_MOVES: Final = 10  # processes that fork between our look and our write are moved in the next round
OWN_PIDS: Final = 32
"""What the limit of processes is raised by for the box's own sake: the agent's threads (~22), which no command uses."""

_V1_CONTROLLERS: Final = ("memory", "cpu", "cpuacct", "pids", "blkio", "freezer", "devices", "cpuset", "systemd")


class Hierarchy(ABC):
    """The cgroup hierarchy of this machine, at Cove's own subtree `/cove/<instance>`."""

    kind: str

    def __init__(self, instance: str) -> None:
        self._instance = instance

    def runtime_path(self, box: str) -> str:
        """`linux.cgroupsPath` of a box."""
        return f"/cove/{self._instance}/{box}"

    @abstractmethod
    def of(self, box: str) -> BoxCgroup:
        """The cgroup of a box, whether it exists yet or not."""

    @abstractmethod
    def prepare(self) -> None:
        """Make Cove's subtree and enable its controllers. Raises: EngineFailure naming what is missing."""

    @abstractmethod
    def boxes(self) -> set[str]:
        """The boxes that have a directory here."""

    @abstractmethod
    def remove_tree(self) -> None:
        """Remove Cove's own (empty) directories."""


class BoxCgroup(ABC):
    """The cgroup of one box."""

    @abstractmethod
    def set_limits(self, limits: Limits, *, device: str | None) -> None:
        """Apply; `device` is the `major:minor` that io limits are for. Raises: OSError (EBUSY: uses more already)."""

    @abstractmethod
    def usage(self) -> Usage:
        """What was used; zeros for what the kernel does not tell."""

    @abstractmethod
    def oom_kills(self) -> int:
        """Kills for memory so far; 0 when the cgroup is gone."""

    @abstractmethod
    def forks_refused(self) -> int:
        """How often the limit of processes refused one; 0 when the cgroup is gone."""

    @abstractmethod
    async def freeze(self) -> None:
        """Stop every process. Raises: EngineFailure when they do not stop within 5 s."""

    @abstractmethod
    async def thaw(self) -> None:
        """Let them go on."""

    @abstractmethod
    def is_frozen(self) -> bool:
        """Whether it was told to stop (and perhaps not all of it stands still yet). Raises: OSError."""

    @abstractmethod
    def kill(self) -> None:
        """Send SIGKILL to every process where the kernel can do that for a cgroup (v2); otherwise nothing."""

    @abstractmethod
    def directories(self) -> list[Path]:
        """What `remove` removes."""

    async def remove(self) -> None:
        """Remove the directories, waiting up to 5 s for exiting processes. Raises: EngineFailure."""
        async with _limit(_REMOVE_LIMIT_S, "remove the cgroup"):
            for directory in self.directories():
                while not _rmdir_tree(directory):
                    await asyncio.sleep(0.005)


def detect(instance: str) -> Hierarchy:
    """The hierarchy that this machine has."""
    if kernel.filesystem_magic(_ROOT) == _CGROUP2_MAGIC:
        return HierarchyV2(instance)
    return HierarchyV1(instance, _v1_mounts())


def _v1_mounts() -> dict[str, Path]:
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if kind == "cgroup":
            words = options.split(",")
            for name in _V1_CONTROLLERS:
                if name in words or f"name={name}" in words:
                    mounts[name] = Path(head.split()[4])
    return mounts


class HierarchyV1(Hierarchy):
    """One directory per controller; named hierarchies (systemd) included, because the runtime joins them too."""

    kind = "v1"

    def __init__(self, instance: str, mounts: dict[str, Path]) -> None:
        super().__init__(instance)
        self._mounts = mounts

    def prepare(self) -> None:
        missing = [c for c in ("memory", "cpu", "pids", "devices", "freezer") if c not in self._mounts]
        if missing:
            raise EngineFailure(f"this machine has no cgroup controller {', '.join(missing)}")
        for mount in self._directories():
            (mount / "cove" / self._instance).mkdir(parents=True, exist_ok=True)
        # A v1 child may count differently from its parent unless this is set before it exists.
        hierarchical = self._mounts["memory"] / "cove" / "memory.use_hierarchy"
        if hierarchical.exists() and hierarchical.read_text().strip() == "0":
            hierarchical.write_text("1")

    def of(self, box: str) -> BoxCgroupV1:
        return BoxCgroupV1({name: mount / "cove" / self._instance / box for name, mount in self._mounts.items()})

    def boxes(self) -> set[str]:
        roots = (mount / "cove" / self._instance for mount in self._directories())
        return {d.name for root in roots if root.is_dir() for d in root.iterdir() if d.is_dir()}

    def remove_tree(self) -> None:
        for mount in self._directories():
            for directory in (mount / "cove" / self._instance, mount / "cove"):
                _rmdir_tree(directory, deep=False)

    def _directories(self) -> set[Path]:
        return set(self._mounts.values())


class BoxCgroupV1(BoxCgroup):
    """Directories of one box, by controller."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths

    def set_limits(self, limits: Limits, *, device: str | None) -> None:
        self._set_memory(limits.memory_bytes)
        quota = int(limits.cpus * CPU_PERIOD_US)
        (self._paths["cpu"] / "cpu.cfs_quota_us").write_text(str(quota))
        (self._paths["pids"] / "pids.max").write_text(str(limits.pids + OWN_PIDS))
        if device is not None and "blkio" in self._paths:
            for name, value in (("read", limits.io_read_bps), ("write", limits.io_write_bps)):
                (self._paths["blkio"] / f"blkio.throttle.{name}_bps_device").write_text(f"{device} {value or 0}")

    def _set_memory(self, limit: int) -> None:
        memory = self._paths["memory"]
        files = [memory / "memory.limit_in_bytes"]
        swap = memory / "memory.memsw.limit_in_bytes"
        if swap.exists():
            # memsw may never be below the limit: raise it first, lower it last.
            raising = int(files[0].read_text()) < limit
            files = [swap, *files] if raising else [*files, swap]
        for file in files:
            file.write_text(str(limit))

    def usage(self) -> Usage:
        memory = self._paths["memory"]
        return Usage(
            cpu_ms=_number(self._paths.get("cpuacct", memory) / "cpuacct.usage") // 1_000_000,
            memory_peak_bytes=_number(memory / "memory.max_usage_in_bytes"),
            memory_bytes=_number(memory / "memory.usage_in_bytes"),
            oom_kills=self.oom_kills(),
            pids=_number(self._paths["pids"] / "pids.current"),
        )

    def oom_kills(self) -> int:
        return _keyed(self._paths["memory"] / "memory.oom_control", "oom_kill")

    def forks_refused(self) -> int:
        return _keyed(self._paths["pids"] / "pids.events", "max")

    async def freeze(self) -> None:
        state = self._paths["freezer"] / "freezer.state"
        async with _limit(_FREEZE_LIMIT_S, "freeze"):
            # A task in the middle of a fork can leave it FREEZING; writing again is what runc does, too.
            state.write_text("FROZEN")
            while state.read_text().strip() != "FROZEN":
                await asyncio.sleep(0.001)
                state.write_text("FROZEN")

    async def thaw(self) -> None:
        state = self._paths["freezer"] / "freezer.state"
        state.write_text("THAWED")
        async with _limit(_FREEZE_LIMIT_S, "thaw"):
            while state.read_text().strip() != "THAWED":
                await asyncio.sleep(0.001)

    def is_frozen(self) -> bool:
        return (self._paths["freezer"] / "freezer.state").read_text().strip() != "THAWED"

    def kill(self) -> None:
        # v1 has no kill of a group: the death of the pid namespace's init takes everything with it.
        return

    def directories(self) -> list[Path]:
        return sorted(set(self._paths.values()))


class HierarchyV2(Hierarchy):
    """The unified hierarchy."""

    kind = "v2"

    def prepare(self) -> None:
        available = (_ROOT / "cgroup.controllers").read_text().split()
        missing = [c for c in ("memory", "cpu", "pids") if c not in available]
        if missing:
            raise EngineFailure(f"this machine has no cgroup controller {', '.join(missing)}")
        wanted = " ".join(f"+{c}" for c in ("memory", "cpu", "pids", "io") if c in available)
        base = _ROOT / "cove" / self._instance
        base.mkdir(parents=True, exist_ok=True)
        _enable(_ROOT, wanted)
        for directory in (_ROOT / "cove", base):
            (directory / "cgroup.subtree_control").write_text(wanted)

    def of(self, box: str) -> BoxCgroupV2:
        return BoxCgroupV2(_ROOT / "cove" / self._instance / box)

    def boxes(self) -> set[str]:
        root = _ROOT / "cove" / self._instance
        return {d.name for d in root.iterdir() if d.is_dir()} if root.is_dir() else set()

    def remove_tree(self) -> None:
        for directory in (_ROOT / "cove" / self._instance, _ROOT / "cove"):
            _rmdir_tree(directory, deep=False)


class BoxCgroupV2(BoxCgroup):
    """The one directory of a box."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set_limits(self, limits: Limits, *, device: str | None) -> None:
        self._set_memory(limits.memory_bytes)
        with contextlib.suppress(OSError):
            # Absent where the kernel has no swap accounting; there is no swap to use then either.
            (self._path / "memory.swap.max").write_text("0")
        (self._path / "cpu.max").write_text(f"{int(limits.cpus * CPU_PERIOD_US)} {CPU_PERIOD_US}")
        (self._path / "pids.max").write_text(str(limits.pids + OWN_PIDS))
        if device is not None and (self._path / "io.max").exists():
            read, write = limits.io_read_bps or "max", limits.io_write_bps or "max"
            (self._path / "io.max").write_text(f"{device} rbps={read} wbps={write}")

    def _set_memory(self, limit: int) -> None:
        if _number(self._path / "memory.current") > limit:
            # The kernel takes any `memory.max` and then kills until it fits; v1 answers EBUSY, and so do we. A write of
            # `memory.high` reclaims what can be reclaimed and kills nothing.
            high = self._path / "memory.high"
            high.write_text(str(limit))
            try:
                if _number(self._path / "memory.current") > limit:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                (self._path / "memory.max").write_text(str(limit))
            finally:
                high.write_text("max")
        else:
            (self._path / "memory.max").write_text(str(limit))

    def usage(self) -> Usage:
        return Usage(
            cpu_ms=_keyed(self._path / "cpu.stat", "usage_usec") // 1000,
            memory_peak_bytes=_number(self._path / "memory.peak"),
            memory_bytes=_number(self._path / "memory.current"),
            oom_kills=self.oom_kills(),
            pids=_number(self._path / "pids.current"),
        )

    def oom_kills(self) -> int:
        return _keyed(self._path / "memory.events", "oom_kill")

    def forks_refused(self) -> int:
        return _keyed(self._path / "pids.events", "max")

    async def freeze(self) -> None:
        await self._set_frozen(1)

    async def thaw(self) -> None:
        await self._set_frozen(0)

    async def _set_frozen(self, wanted: int) -> None:
        (self._path / "cgroup.freeze").write_text(str(wanted))
        async with _limit(_FREEZE_LIMIT_S, "freeze or thaw"):
            while _keyed(self._path / "cgroup.events", "frozen") != wanted:
                await asyncio.sleep(0.001)

    def is_frozen(self) -> bool:
        return (self._path / "cgroup.freeze").read_text().strip() != "0"

    def kill(self) -> None:
        try:
            (self._path / "cgroup.kill").write_text("1")
        except OSError:
            return  # before 5.14, or gone: killing init does it

    def directories(self) -> list[Path]:
        return [self._path]


def _enable(root: Path, controllers: str) -> None:
    """Give the children of the hierarchy's root `controllers`, also where that root is the cgroup of a container.

    Only the machine's true root may have processes beside children with controllers (cgroup-v2.rst, "No Internal
    Process Constraint"). In a container the root is a child and has the container's processes, ours among them: they
    move into a child of their own, as container images that run containers do.
    """
    control = root / "cgroup.subtree_control"
    for _ in range(_MOVES):
        try:
            control.write_text(controllers)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return
        own = root / "cove-init"
        own.mkdir(exist_ok=True)
        for pid in (root / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                (own / "cgroup.procs").write_text(pid)
    raise EngineFailure("the processes of this container's cgroup cannot be moved into one of their own")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _keyed(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _rmdir_tree(directory: Path, *, deep: bool = True) -> bool:
    """Remove a cgroup and (with `deep`) its children. False: a process is still leaving it."""
    try:
        if deep and directory.is_dir():
            for child in directory.iterdir():
                if child.is_dir() and not _rmdir_tree(child):
                    return False
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.EBUSY, errno.ENOTEMPTY}:
            return False
        raise
    return True


class _limit:  # noqa: N801 (reads as the statement it is)
    """A time limit whose passing is an EngineFailure that names what was waited for."""

    def __init__(self, seconds: float, what: str) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._what = what

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        try:
            await self._timeout.__aexit__(kind, error, None)
        except TimeoutError as late:
            raise EngineFailure(f"could not {self._what} in time", internal=self._what) from late
