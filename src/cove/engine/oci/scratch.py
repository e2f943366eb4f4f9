"""File systems in memory that a running box is given, and its root made read-only: mounted from outside, into its tree.

Only for a box in which nothing of a caller has run: its paths are then the image's. They are resolved inside of the box
in any case, for the thread that mounts stands in the box's mount namespace.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence

from cove.engine import kernel
from cove.engine.driver import Scratch


def mount_scratch(pid: int, start: int, base: int, scratch: Sequence[Scratch], *, read_only: bool) -> None:
    """Give the box of init `pid` these file systems. On a thread with a working directory of its own. Raises: OSError.

    Args:
        pid: its init.
        start: when that began, so that it is not another process by now.
        base: the host's uid of the box's root.
        scratch: what to mount, over what is there.
        read_only: whether its root cannot be written afterwards.
    """
    with _in_mounts_of(pid, start):
        for one in scratch:
            flags = kernel.MS_NOSUID | kernel.MS_NODEV | (0 if one.programs else kernel.MS_NOEXEC)
            owner = f"uid={base + one.uid},gid={base + one.gid}"
            kernel.mount("scratch", one.path, "tmpfs", flags, f"size={one.size_bytes},mode={one.mode:o},{owner}")
        if read_only:
            flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount("none", "/", None, flags)


@contextlib.contextmanager
def _in_mounts_of(pid: int, start: int) -> Generator[None]:
    """This thread in the mount namespace of `pid`, for the body's time. Raises: OSError."""
    own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if kernel.process_start(pid) != start:
                raise ProcessLookupError(f"{pid} is another process by now")
            kernel.setns(theirs, kernel.CLONE_NEWNS)
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            kernel.setns(own, kernel.CLONE_NEWNS)
    finally:
        os.close(own)
