"""The digest of a directory tree: what a sandbox can see of it, and nothing that differs between two equal builds.

Covered: paths, kinds, modes, owners, contents and link targets. Not covered: times. One algorithm for images of all
origins. Standard library only, because it also runs inside (`unpack.py`); never follows a link.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import NamedTuple

_BLOCK = 256 * 1024


class TreeFacts(NamedTuple):
    """What was found. `special` are the paths of device nodes, sockets and fifos, which no image may have."""

    digest: str
    size_bytes: int
    files: int
    special: tuple[str, ...]


def measure_tree(top: str | os.PathLike[str]) -> TreeFacts:
    """Digest the tree below `top` (~0.7 s for 180 MB in 8000 files, in the page cache). Raises: OSError."""
    root = os.path.abspath(os.fsencode(top))
    prefix = len(root.rstrip(b"/")) + 1
    total = hashlib.sha256()
    size = files = 0
    special: list[str] = []
    for path in _walk(root):
        facts = os.lstat(path)
        relative = path[prefix:] or b"."
        kind, content = _content(path, facts)
        if kind == b"?":
            special.append(os.fsdecode(relative))
        if kind == b"f":
            files += 1
            size += facts.st_size
        head = b"%s %o %d %d %d\0" % (kind, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, len(relative))
        total.update(head + relative + content)
    return TreeFacts(total.hexdigest(), size, files, tuple(special))


def _walk(top: bytes) -> list[bytes]:
    """Every path below `top` and itself, sorted by bytes."""
    found = [top]
    pending = [top]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                found.append(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    found.sort()
    return found


def _content(path: bytes, facts: os.stat_result) -> tuple[bytes, bytes]:
    if stat.S_ISREG(facts.st_mode):
        digest = hashlib.sha256()
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while chunk := os.read(fd, _BLOCK):
                digest.update(chunk)
        finally:
            os.close(fd)
        return b"f", digest.digest()
    if stat.S_ISLNK(facts.st_mode):
        return b"l", hashlib.sha256(os.readlink(path)).digest()
    return (b"d", b"") if stat.S_ISDIR(facts.st_mode) else (b"?", b"")
