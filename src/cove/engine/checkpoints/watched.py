"""Which files and directories the programs of a box watch (inotify), by their paths.

The kernel tells a watch only by the number of its inode, and an overlay opens no file by a handle: criu needs to be
told where to look. It looks through all below a place before it tries the next, while the box stands still; so the
places are found beforehand, beside the loop and within bounds.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cove.engine import kernel

_WATCH: Final = re.compile(rb"^inotify wd:[0-9a-f]+ ino:([0-9a-f]+) ", re.MULTILINE)
_KIND: Final = "anon_inode:inotify"
_MOST_WATCHES: Final = 2048
_MOST_ENTRIES: Final = 500_000
_LIMIT_S: Final = 10.0
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def watched_inodes(pids: Iterable[int], proc: Path = Path("/proc")) -> set[int]:
    """The numbers of what the processes watch, at most 2048."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in (proc / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()) == _KIND:
                        info = (proc / str(pid) / "fdinfo" / link.name).read_bytes()
                        found |= {int(one, 16) for one in _WATCH.findall(info)}
        if len(found) > _MOST_WATCHES:
            break
    return found


def places_of(inodes: set[int], rootfs: Path) -> tuple[str, ...]:
    """Where below `rootfs` they are, as paths inside; those nearest to the root first. No link is followed. Blocks.

    What is not found within the bounds is missing. Raises: OSError when the root cannot be opened.
    """
    found: list[str] = []
    ends, seen = time.monotonic() + _LIMIT_S, 0
    root = os.open(rootfs, _FLAGS | os.O_CLOEXEC)
    try:
        device = os.fstat(root).st_dev
        if os.fstat(root).st_ino in inodes:
            found.append("/")
        waiting = deque([""])
        while waiting and len(found) < _MOST_WATCHES:
            above = waiting.popleft()
            try:
                folder = kernel.open_in_root(root, above or "/", _FLAGS)
            except OSError:
                continue  # gone meanwhile, or replaced by a link
            try:
                for entry in os.scandir(folder):
                    seen += 1
                    path = f"{above}/{entry.name}"
                    with contextlib.suppress(OSError):
                        about = entry.stat(follow_symlinks=False)
                        if about.st_ino in inodes:
                            found.append(path)
                        if stat.S_ISDIR(about.st_mode) and about.st_dev == device:
                            waiting.append(path)
            finally:
                os.close(folder)
            if seen > _MOST_ENTRIES or time.monotonic() > ends:
                break
    finally:
        os.close(root)
    return tuple(found)
