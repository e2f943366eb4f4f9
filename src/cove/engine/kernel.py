"""Raw Linux calls that Python's standard library lacks, as thin typed functions. No policy, no state.

Each raises OSError with the kernel's errno. All of them release the GIL (ctypes does), so a thread may block in one.
Numbers: asm-generic syscall table (the same on amd64 and arm64 for all that is newer than 5.0); `mount(2)` and friends
go through libc. To add a call: a function here, with its man page in the docstring.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOATIME: Final = 1024
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

OPEN_TREE_CLONE: Final = 1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_AT_EMPTY_PATH: Final = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_IDMAP: Final = 0x00100000

_NR_OPEN_TREE: Final = 428
_NR_MOVE_MOUNT: Final = 429
_NR_OPENAT2: Final = 437
_NR_MOUNT_SETATTR: Final = 442
_NR_SETRESUID: Final = {"x86_64": 117, "aarch64": 147}
_NR_SETRESGID: Final = {"x86_64": 119, "aarch64": 149}

_PR_SET_SECUREBITS: Final = 28
_SECBIT_NO_SETUID_FIXUP: Final = 4

_NSFS_MAGIC: Final = 0x6E736673
BTRFS_MAGIC: Final = 0x9123683E

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _path(path: Path | str) -> bytes:
    return os.fsencode(path)


def mount(source: Path | str, target: Path | str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """Mount a file system; the kernel call of that name, in section 2 of the manual."""
    _check(
        _libc.mount(
            _path(source),
            _path(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        f"mount {kind or 'bind'}",
    )


def umount(target: Path | str, flags: int = UMOUNT_NOFOLLOW) -> None:
    """Call umount2(2); never follows a link at the end of the path."""
    _check(_libc.umount2(_path(target), flags | UMOUNT_NOFOLLOW), "umount")


def unshare(flags: int) -> None:
    """Call unshare(2), of the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Call setns(2), of the calling thread. A mount namespace wants a process with one thread."""
    _check(_libc.setns(fd, kind), "setns")


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Call openat2(2) as if `root` (a descriptor) were `/`: no link and no `..` leads out of it. Close-on-exec."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    buffer = ctypes.create_string_buffer(how, len(how))
    return _check(_libc.syscall(_NR_OPENAT2, root, _path(path), buffer, len(how)), f"openat2 {path}")


def open_tree(path: Path | str) -> int:
    """Call open_tree(2) with OPEN_TREE_CLONE: a descriptor of a detached copy of the mount at `path`."""
    flags = OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    return _check(_libc.syscall(_NR_OPEN_TREE, -100, _path(path), flags), "open_tree")


def move_mount(fd: int, target: Path | str) -> None:
    """Call move_mount(2): attach the detached mount `fd` at `target`."""
    _check(_libc.syscall(_NR_MOVE_MOUNT, fd, b"", -100, _path(target), _MOVE_MOUNT_F_EMPTY_PATH), "move_mount")


def mount_setattr(fd: int, *, attributes: int, userns_fd: int = 0) -> None:
    """Call mount_setattr(2) on a detached mount; with MOUNT_ATTR_IDMAP, `userns_fd` maps its ids."""
    value = struct.pack("=QQQQ", attributes, 0, 0, userns_fd)
    buffer = ctypes.create_string_buffer(value, len(value))
    _check(_libc.syscall(_NR_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, buffer, len(value)), "mount_setattr")


def keep_capabilities_across_setuid() -> None:
    """Let `set_thread_ids` keep the calling thread's capabilities (prctl(2), SECBIT_NO_SETUID_FIXUP)."""
    _check(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "prctl securebits")


def set_thread_ids(uid: int) -> None:
    """Set all user and group ids of the calling thread only, by the raw calls (libc's wrappers change all threads)."""
    machine = platform.machine()
    _check(_libc.syscall(_NR_SETRESGID[machine], uid, uid, uid), "setresgid")
    _check(_libc.syscall(_NR_SETRESUID[machine], uid, uid, uid), "setresuid")


def sethostname(name: str) -> None:
    """Call sethostname(2), in the UTS namespace of the calling thread."""
    raw = name.encode()
    _check(_libc.sethostname(raw, len(raw)), "sethostname")


def syncfs(fd: int) -> None:
    """Call syncfs(2): all of the file system of `fd` is on the disk when it returns."""
    _check(_libc.syncfs(fd), "syncfs")


def filesystem_magic(path: Path | str) -> int:
    """`f_type` of statfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statfs(_path(path), buffer), "statfs")
    return int(struct.unpack_from("=q", buffer.raw)[0]) & 0xFFFFFFFF


def is_namespace_file(path: Path) -> bool:
    """Whether a namespace is bound at `path` (nsfs)."""
    try:
        return filesystem_magic(path) == _NSFS_MAGIC
    except OSError:
        return False


def process_start(pid: int) -> int | None:
    """When the process began, in clock ticks since boot (proc(5), field 22). None: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    # A zombie is dead to us: its start time would keep a killed box "alive" until somebody reaps it.
    return None if fields[0] == b"Z" else int(fields[19])
