"""Removes what Cove made on this machine, and then looks whether it is really gone.

Either one server's things (its data directory's instance) or every instance's. System packages stay, because others may
use them by now; they are named. In this order, so that nothing is pulled from under something that lives: server,
sandboxes, the network, mounts, loop devices, cgroups, directories. A thing that resists is reported at the end; the
rest goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine import kernel
from cove.engine.config import RUN_ROOT, instance_of
from cove.engine.network import uplink
from cove.model.errors import CoveError
from cove.server.setup import aptroot
from cove.server.setup.datadir import is_ours
from cove.server.setup.packages import read_installed
from cove.server.setup.progress import Progress
from cove.server.setup.settings import SetupFailed, SetupSettings

_SERVER_END_S: Final = 20.0
_BOX_END_S: Final = 10.0
_REMOVE_S: Final = 900.0
_LOOP_CLR_FD: Final = 0x4C01  # linux/loop.h
_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")


class _BoxProcess(Struct, frozen=True):
    """The part of `box.json` (engine.driver.BoxFacts) that names the box's init for good."""

    init_pid: int
    init_start: int


class Traces(Struct, frozen=True, kw_only=True):
    """What exists of the instances in question. Empty everywhere: nothing of Cove is left."""

    processes: tuple[int, ...]
    mounts: tuple[str, ...]
    loops: tuple[str, ...]
    cgroups: tuple[Path, ...]
    network: tuple[str, ...]
    paths: tuple[Path, ...]

    def lines(self) -> list[str]:
        """One line per kind that is not empty."""
        kinds = {
            "process": self.processes,
            "mount": self.mounts,
            "loop device": self.loops,
            "cgroup": self.cgroups,
            "interface or table of rules": self.network,
            "path": self.paths,
        }
        return [f"{kind}: {', '.join(map(str, found))}" for kind, found in kinds.items() if found]


def clean(settings: SetupSettings, progress: Progress, *, every: bool) -> None:
    """Remove the instance of `settings.data_dir`, or every instance on the machine; then check.

    Raises: SetupFailed when it is not run by root, the data directory is not Cove's, or something is left.
    """
    if os.geteuid() != 0:
        raise SetupFailed("clean needs root: it ends sandboxes and removes mounts", cure="sudo make clean")
    if settings.data_dir.exists() and not is_ours(settings.data_dir):
        raise SetupFailed(
            f"{settings.data_dir} does not look like a data directory of Cove's, so it is left alone",
            cure="look into it and remove it by hand if it is",
        )
    names = _instances(settings, every=every)
    kept = read_installed(settings.data_dir)
    _end_servers(settings, progress, names)
    with progress.step("Ending sandboxes"):
        _end_boxes(settings, names)
    with progress.step("Removing mounts, loop devices, cgroups and files"):
        _remove(settings, names)
    left = find_traces(settings, names)
    if left.lines():
        raise SetupFailed("something of Cove is still there:\n" + _indented(left.lines()), cure="a restart frees it")
    whose = "Cove is left on this machine" if every else f"the server of {settings.data_dir} is left"
    progress.note(
        f"Nothing of {whose}: looked for processes, mounts, loop devices, cgroups, interfaces, rules and files."
    )
    if kept:
        progress.note(f"Left installed, as others may use them by now: apt-get purge {' '.join(kept)}")


def find_traces(settings: SetupSettings, names: list[str]) -> Traces:
    """Look for everything of the instances `names`. Reads only."""
    paths = [settings.data_dir, *(settings.run_dir / name for name in names), *_apt_roots()]
    return Traces(
        processes=tuple(_processes(names)),
        mounts=tuple(_mounts(settings, names)),
        loops=tuple(device for device, _ in _loops(settings.data_dir)),
        cgroups=tuple(_cgroups(names)),
        network=tuple(_network(names)),
        paths=tuple(path for path in paths if path.exists()),
    )


def _instances(settings: SetupSettings, *, every: bool) -> list[str]:
    own = instance_of(settings.data_dir)
    if not every:
        return [own]
    found = {path.name for path in _listed(settings.run_dir) if (path / "sb").is_dir() or (path / "ns").is_dir()}
    found |= {path.name for root in _cgroup_roots() for path in _listed(root / "cove") if path.is_dir()}
    return sorted(found | {own})


def _end_servers(settings: SetupSettings, progress: Progress, names: list[str]) -> None:
    """SIGTERM to whoever listens on the instance's own socket, then SIGKILL; the kernel names the process."""
    for name in names:
        pid = server_pid(settings.run_dir / name / "api.sock")
        if pid is None or pid == os.getpid():
            continue
        with progress.step(f"Stopping the server (process {pid})"):
            _end_process(pid, kernel.process_start(pid), _SERVER_END_S)


def server_pid(api_socket: Path) -> int | None:
    """The process listening on `api_socket`, by SO_PEERCRED (unix(7): its credentials at listen(2)); None: nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(api_socket))
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return None
    return int(pid) or None


def _end_boxes(settings: SetupSettings, names: list[str]) -> None:
    for name in names:
        for facts in (settings.run_dir / name / "sb").glob("*/box.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
                box = msgspec.json.decode(facts.read_bytes(), type=_BoxProcess)
                _kill(box.init_pid, box.init_start)
    deadline = time.monotonic() + _BOX_END_S
    while pids := list(_processes(names)):
        for pid in pids:
            _kill(pid, kernel.process_start(pid))
        if time.monotonic() > deadline:
            return
        _thaw(names)
        time.sleep(0.05)


def _end_process(pid: int, start: int | None, limit_s: float) -> None:
    """SIGTERM, then SIGKILL after `limit_s`; through a pidfd, so that a reused number is never hit."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start is None or kernel.process_start(pid) != start:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGTERM)
        deadline = time.monotonic() + limit_s
        while kernel.process_start(pid) == start:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                return
            time.sleep(0.05)
    finally:
        os.close(fd)


def _kill(pid: int, start: int | None) -> None:
    """SIGKILL the process named by pid and start time, if it still is that one."""
    if start is None or pid in (0, 1, os.getpid()):
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if kernel.process_start(pid) == start:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def _thaw(names: list[str]) -> None:
    """A frozen process dies only once thawed (v1; on v2 SIGKILL is enough)."""
    for directory in _cgroups(names):
        state = directory / "freezer.state"
        if state.exists():
            with contextlib.suppress(OSError):
                state.write_text("THAWED")


def _remove(settings: SetupSettings, names: list[str]) -> None:
    # The engine's mounts lie in a namespace bound at <run_dir>/ns/mnt: without that bind and a process they all go.
    _remove_network(settings, names)
    _until(lambda: not _unmount_all(settings, names))
    _until(lambda: not _detach_loops(settings.data_dir))
    _until(lambda: not _remove_cgroups(names))
    for name in names:
        shutil.rmtree(settings.run_dir / name, ignore_errors=True)
    _free_claims(settings.run_dir, names)
    # By rm(1): trees of images may be deeper than our interpreter recurses. It stays on this file system.
    subprocess.run(["/bin/rm", "-rf", "--one-file-system", "--", settings.data_dir], check=False, timeout=_REMOVE_S)
    aptroot.sweep()


def _remove_network(settings: SetupSettings, names: list[str]) -> None:
    """What lies outside; the router's namespace goes with the mount namespace that it is bound in."""
    for name in names:
        # What resists is found again by `find_traces`.
        with contextlib.suppress(OSError, CoveError):
            uplink.remove_noted(name, settings.run_dir / name)


def _network(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        with contextlib.suppress(OSError):
            found += uplink.traces(name)
    return found


def _until(is_done: Callable[[], bool], limit_s: float = 5.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_done() and time.monotonic() < deadline:
        time.sleep(0.05)


def _unmount_all(settings: SetupSettings, names: list[str]) -> list[str]:
    for target in reversed(list(_mounts(settings, names))):
        with contextlib.suppress(OSError):
            kernel.umount(target, kernel.MNT_DETACH)
    return list(_mounts(settings, names))


def _mounts(settings: SetupSettings, names: list[str]) -> Iterator[str]:
    """Mount points of ours that this mount namespace sees."""
    tops = [str(settings.data_dir), *(str(settings.run_dir / name) for name in names)]
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if any(point == top or point.startswith(f"{top}/") for top in tops):
            yield point


def _loops(data_dir: Path) -> Iterator[tuple[str, Path]]:
    """Loop devices whose file lies in the data directory; a deleted file is shown with " (deleted)" behind it."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            name = backing.read_text(encoding="utf-8").strip().removesuffix(" (deleted)")
            if name.startswith(f"{data_dir}/"):
                yield f"/dev/{backing.parts[3]}", Path(name)


def _detach_loops(data_dir: Path) -> list[str]:
    for device, _ in _loops(data_dir):
        with contextlib.suppress(OSError):
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CLR_FD)
            finally:
                os.close(fd)
    return [device for device, _ in _loops(data_dir)]


def _cgroup_roots() -> list[Path]:
    """The mounts of every hierarchy: one directory per controller on v1, the root itself on v2."""
    return [_CGROUP_ROOT, *(path for path in _listed(_CGROUP_ROOT) if path.is_dir() and not path.is_symlink())]


def _cgroups(names: list[str]) -> Iterator[Path]:
    """Cgroups of the instances, innermost first."""
    for root in _cgroup_roots():
        for name in names:
            top = root / "cove" / name
            for folder, _, _ in os.walk(top, topdown=False):
                yield Path(folder)


def _remove_cgroups(names: list[str]) -> list[Path]:
    for directory in _cgroups(names):
        with contextlib.suppress(OSError):
            directory.rmdir()
    for root in _cgroup_roots():
        with contextlib.suppress(OSError):  # other instances live in it, or it is not there
            (root / "cove").rmdir()
    return list(_cgroups(names))


def _processes(names: list[str]) -> Iterator[int]:
    """Processes in the instances' cgroups."""
    seen: set[int] = set()
    for directory in _cgroups(names):
        with contextlib.suppress(OSError):
            seen |= {int(pid) for pid in (directory / "cgroup.procs").read_text().split()}
    yield from sorted(pid for pid in seen if pid > 0 and kernel.process_start(pid) is not None)


def _free_claims(run_root: Path, names: list[str]) -> None:
    """Free what the instances had claimed machine-wide, then the root itself when nobody is left in it."""
    # Claims lie in one place whatever the run directory is, and hold the run directory of their owner.
    owners = {str(run_root / name) for name in names}
    kinds = ("uid", "port", "net")
    for claim in [found for kind in kinds for root in {RUN_ROOT, run_root} for found in root.glob(f"{kind}/*")]:
        with contextlib.suppress(OSError):
            if claim.read_text() in owners:
                claim.unlink()
    for directory in _listed(run_root):
        with contextlib.suppress(OSError):
            if directory.is_dir():
                directory.rmdir()
    if not any(path.is_dir() for path in _listed(run_root)):
        shutil.rmtree(run_root, ignore_errors=True)


def _apt_roots() -> list[Path]:
    return list(aptroot.PARENT.glob(f"{aptroot.PREFIX}*"))


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _indented(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
