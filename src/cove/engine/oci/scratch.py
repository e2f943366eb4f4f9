"""File systems in memory that a running box is given, and its root made read-only: mounted from outside, into its tree.

Only for a box in which nothing of a caller has run: its paths are then the image's. They are resolved inside of the box
in any case, for the thread that mounts stands in the box's mount namespace.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import NamedTuple

from cove.engine import kernel
from cove.engine.driver import Scratch

Mounted = tuple[tuple[Scratch, ...], bool]
"""What a box has, and whether its root is read-only."""


class Place(NamedTuple):
    """A box: its init, when that began (so that it is not another process by now), the host's uid of its root."""

    pid: int
    start: int
    base: int


def mount_scratch(place: Place, wanted: Mounted, before: Mounted | None) -> None:
    """Give a box `wanted` in place of `before`. On a thread with a working directory of its own. Raises: OSError."""
    scratch, is_read_only = wanted
    with _in_mounts_of(place):
        for at, one in enumerate(scratch):
            if before is not None and before[0][at] == one:
                continue
            flags = kernel.MS_NOSUID | kernel.MS_NODEV | (0 if one.programs else kernel.MS_NOEXEC)
            options = f"size={one.size_bytes},mode={one.mode:o}"
            if before is None:
                owner = f"uid={place.base + one.uid},gid={place.base + one.gid}"
                kernel.mount("scratch", one.path, "tmpfs", flags, f"{options},{owner}")
            else:
                kernel.mount("scratch", one.path, None, flags | kernel.MS_REMOUNT, options)
        if is_read_only != (before is not None and before[1]):
            flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount("none", "/", None, flags | (kernel.MS_RDONLY if is_read_only else 0))


@contextlib.contextmanager
def _in_mounts_of(place: Place) -> Generator[None]:
    """This thread in the mount namespace of a box, for the body's time. Raises: OSError."""
    own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{place.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if kernel.process_start(place.pid) != place.start:
                raise ProcessLookupError(f"{place.pid} is another process by now")
            kernel.setns(theirs, kernel.CLONE_NEWNS)
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            kernel.setns(own, kernel.CLONE_NEWNS)
    finally:
        os.close(own)
