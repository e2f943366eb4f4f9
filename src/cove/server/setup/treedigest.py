"""Names a directory tree by its content, so that two trees with one digest are the same bytes. Pure reading.

What counts: each path in byte order, its type, permission bits, owner, group, and a file's content or a link's target.
What does not: times, hard links, extended attributes (images carry none: `images.py` removes file capabilities).
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from msgspec import Struct


class TreeFacts(Struct, frozen=True, kw_only=True):
    """What `measure_tree` found. `size_bytes` is the sum of file sizes."""

    digest: str
    size_bytes: int
    files: int
    special: tuple[str, ...]


def measure_tree(top: Path) -> TreeFacts:
    """Digest the tree below `top` (~1 s for 150 MB in 8000 files). Device nodes, sockets and fifos land in `special`.

    Raises: OSError when a file cannot be read.
    """
    total = hashlib.sha256()
    size = files = 0
    special: list[str] = []
    for path in _walk(os.fsencode(top)):
        facts = os.lstat(path)
        relative = os.path.relpath(path, os.fsencode(top))
        kind, content = _content(path, facts)
        if kind == b"?":
            special.append(os.fsdecode(relative))
        if kind == b"f":
            files += 1
            size += facts.st_size
        head = b"%s %o %d %d %d\0" % (kind, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, len(relative))
        total.update(head + relative + content)
    return TreeFacts(digest=total.hexdigest(), size_bytes=size, files=files, special=tuple(special))


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
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a path in bytes, as names in images need not be UTF-8
            return b"f", hashlib.file_digest(file, "sha256").digest()
    if stat.S_ISLNK(facts.st_mode):
        return b"l", hashlib.sha256(os.readlink(path)).digest()  # noqa: PTH115 - bytes again
    return (b"d", b"") if stat.S_ISDIR(facts.st_mode) else (b"?", b"")
