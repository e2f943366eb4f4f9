"""Makes one layer of a tree: a tar archive packed by gzip, with its digests. Runs inside (`enter.py`), read-only.

The tree is `/target`, the layer becomes `/layer`, which is there, empty. Lines of JSON go out: `{"done": N}` bytes of
the tree, then `{"digest": ..., "diff_id": ..., "size": N}` or `{"error": kind, "text": ...}`. Two packs of one tree
are equal, byte for byte. Links are never followed; special files are left out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import tarfile
import zlib
from typing import IO, TYPE_CHECKING

from cove.engine.confined.layer import Reporter, say

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TOP, OUT = b"/target", "/layer"
LEVEL = 1
"""Of gzip: the higher ones cost several times the time for a tenth of the size."""


class Sink(io.RawIOBase):
    """Counts, digests and packs what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self._gzip = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
        self.size = 0

    def write(self, data: ReadableBuffer, /) -> int:
        data = bytes(data)
        self._plain.update(data)
        self._put(self._gzip.compress(data))
        return len(data)

    def finish(self) -> dict[str, object]:
        self._put(self._gzip.flush())
        digest, diff_id = self._packed.hexdigest(), self._plain.hexdigest()
        return {"digest": f"sha256:{digest}", "diff_id": f"sha256:{diff_id}", "size": self.size}

    def _put(self, packed: bytes) -> None:
        self._packed.update(packed)
        self.size += len(packed)
        while packed:
            packed = packed[self._file.write(packed) :]


class Packer:
    """Adds every entry of the tree, parents first, in byte order of paths."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._report = Reporter()
        self._seen: dict[tuple[int, int], str] = {}

    def add_tree(self, path: bytes) -> None:
        pending = [path]
        while pending:
            folder = pending.pop()
            self._add(folder)
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    self._add(entry.path)
            pending += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]

    def _add(self, path: bytes) -> None:
        facts = os.lstat(path)
        member = tarfile.TarInfo("./" + os.fsdecode(path[len(TOP) + 1 :]) if path != TOP else "./")
        member.mode, member.uid, member.gid = stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid
        member.mtime = int(facts.st_mtime)
        if stat.S_ISLNK(facts.st_mode):
            member.type, member.linkname = tarfile.SYMTYPE, os.fsdecode(os.readlink(path))
        elif stat.S_ISDIR(facts.st_mode):
            member.type = tarfile.DIRTYPE
        elif not stat.S_ISREG(facts.st_mode):
            return
        member.pax_headers = _attributes(path)
        first = self._seen.setdefault((facts.st_dev, facts.st_ino), member.name)
        if stat.S_ISREG(facts.st_mode) and first != member.name:
            member.type, member.linkname, member.pax_headers = tarfile.LNKTYPE, first, {}
        if member.isreg():
            self._add_file(path, member, facts.st_size)
        else:
            self._tar.addfile(member)

    def _add_file(self, path: bytes, member: tarfile.TarInfo, size: int) -> None:
        member.size = size
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            self._tar.addfile(member, file)
        self._report.add(size)


def _attributes(path: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for key in os.listxattr(path, follow_symlinks=False):
            if key.startswith("user."):
                value = os.getxattr(path, key, follow_symlinks=False)
                found[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    return found


def main() -> int:
    try:
        with open(OUT, "wb", buffering=0) as file:
            sink = Sink(file)
            with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                Packer(tar).add_tree(TOP)
            facts = sink.finish()
        say(facts)
    except OSError as error:
        kind = "space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "bad"
        say({"error": kind, "text": f"the image cannot be read: {os.strerror(error.errno or 0)}"})
    return 0
