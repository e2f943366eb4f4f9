"""The process's place on the machine: a private mount namespace that outlives the server, and its way back.

All mounts of the engine live in this namespace: never visible to the host, kept across a `kill -9` by a bind of the
namespace at `<run_dir>/ns/mnt`, gone with `release`. Entered before the first thread exists (setns(2) of a mount
namespace refuses a process that shares its root and cwd), hence synchronous and called first by `server/serve.py`.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Final

from cove.engine import kernel
from cove.model.errors import EngineFailure

_NS: Final = Path("ns")


def namespace_file(run_dir: Path) -> Path:
    """Where the mount namespace of the instance is bound."""
    return run_dir / _NS / "mnt"


def make_run_dir(run_dir: Path) -> None:
    """Create `/run/cove/<instance>`, traversable (a sandbox's root must reach its own rootfs) but not listable."""
    for directory in (run_dir.parent, run_dir, run_dir / "sb"):
        directory.mkdir(mode=0o711, exist_ok=True)
        info = directory.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise EngineFailure(f"{directory} is not ours", internal=f"uid {info.st_uid}")
        directory.chmod(0o711)


def enter(run_dir: Path) -> int:
    """Move this process into the instance's mount namespace, making it first where there is none.

    Returns a descriptor of the namespace it came from, for `release`. Raises: EngineFailure without the right to
    (CAP_SYS_ADMIN).
    """
    origin = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    make_run_dir(run_dir)
    target = namespace_file(run_dir)
    try:
        if not kernel.is_namespace_file(target):
            _make(target)
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(fd, kernel.CLONE_NEWNS)
        finally:
            os.close(fd)
    except OSError as error:
        raise EngineFailure(
            "cannot make a private mount namespace: Cove needs root with CAP_SYS_ADMIN",
            internal=str(error),
        ) from error
    os.chdir("/")
    return origin


def is_entered(run_dir: Path) -> bool:
    """Whether this process is in the instance's namespace."""
    try:
        return Path("/proc/self/ns/mnt").stat().st_ino == _bound_inode(run_dir)
    except OSError:
        return False


def release(run_dir: Path, origin: int) -> None:
    """Unbind the namespace and remove `run_dir`; with the last process in it every mount of ours is gone.

    Args:
        run_dir: the instance's directory; every box is gone already.
        origin: what `enter` returned, or a descriptor of the caller's own namespace when it never entered.
    """
    pid = os.fork()
    if pid == 0:
        # A forked child has one thread, so it may go back to the first namespace whatever its parent runs.
        code = 1
        try:
            kernel.setns(origin, kernel.CLONE_NEWNS)
            _unbind(namespace_file(run_dir))
            # In the first namespace too: in ours `ns` still is a mount point.
            shutil.rmtree(run_dir, ignore_errors=True)
            code = 0
        finally:
            os._exit(code)
    os.waitpid(pid, 0)


def _unbind(target: Path) -> None:
    for path in (target, target.parent):
        try:
            kernel.umount(path, kernel.MNT_DETACH)
        except OSError:
            continue


def _bound_inode(run_dir: Path) -> int:
    # The bind is not visible inside (a namespace cannot be bound into itself), so its inode is kept beside it.
    return int((run_dir / "ns.inode").read_text())


def _make(target: Path) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    _unbind(target)
    target.touch(mode=0o600)
    # A namespace can be bound only where the mount does not propagate (namespaces(7), "mount --make-private").
    kernel.mount(target.parent, target.parent, None, kernel.MS_BIND)
    kernel.mount("none", target.parent, None, kernel.MS_PRIVATE)
    target.touch(mode=0o600)
    ready_r, ready_w = os.pipe()
    hold_r, hold_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(ready_w, hold_r, hold_w)
    try:
        os.close(ready_w)
        if os.read(ready_r, 1) != b"y":
            raise OSError("unshare of the mount namespace failed")
        kernel.mount(f"/proc/{pid}/ns/mnt", target, None, kernel.MS_BIND)
        (target.parent.parent / "ns.inode").write_text(str(Path(f"/proc/{pid}/ns/mnt").stat().st_ino))
    finally:
        for fd in (ready_r, hold_r, hold_w):
            os.close(fd)
        os.waitpid(pid, 0)


def _child(ready_w: int, hold_r: int, hold_w: int) -> None:
    try:
        os.close(hold_w)
        kernel.unshare(kernel.CLONE_NEWNS)
        # Slave: a file system that the operator mounts later appears here too, ours never appear there.
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
        unified = Path("/sys/fs/cgroup/unified")
        if unified.is_dir():
            # crun takes a hybrid hierarchy for v2 and fails (measured with 1.8-1.28); in our namespace it is plain v1.
            kernel.umount(unified, kernel.MNT_DETACH)
        os.write(ready_w, b"y")
        os.read(hold_r, 1)
    finally:
        os._exit(0)
