"""Writes a sandbox's own layer as a tar archive, with everything that makes it what it is. Runs inside, read-only.

The layer is `/target`, the archive becomes `/archive`, which is there, empty. One line of JSON comes in (the bounds),
lines go out: `{"done": N}` bytes, then `{"digest": ..., "size": N, "files": N}` or `{"error": kind, "text": ...}`. Two
archives of one layer are equal. Links are never followed. Beside what tar knows, as extended attributes of our own
(`cove.*`): where a file with holes has data, times to the nanosecond, sockets. A character device 0/0 is overlay's mark
of a removed file; any other device is refused, because no sandbox can make one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from cove.engine.confined.layer import Reporter, say
from cove.engine.confined.tarstream import LayerError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TOP, OUT = b"/target", "/archive"
MOST_PIECES = 4096
MOST_PATH = 4000
CHUNK = 1024 * 1024
OPAQUE = "trusted.overlay.opaque"
KEPT_ATTRIBUTES = ("user.", "system.posix_acl_")


class Sink(io.RawIOBase):
    """Counts and digests what is written to it, up to a bound."""

    def __init__(self, file: IO[bytes], most_bytes: int) -> None:
        super().__init__()
        self._file = file
        self._most = most_bytes
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data)
        self._digest.update(view)
        self.size += len(view)
        if self.size > self._most:
            raise LayerError(f"the sandbox's files take more than {self._most >> 20} MiB", "limit")
        length = len(view)
        while view:
            view = view[self._file.write(view) :]
        return length

    def digest(self) -> str:
        return self._digest.hexdigest()


class Keeper:
    """Adds every entry of the tree, parents first, in byte order of names."""

    def __init__(self, tar: tarfile.TarFile, most_files: int) -> None:
        self._tar = tar
        self._most = most_files
        self._report = Reporter()
        self._seen: dict[tuple[int, int], str] = {}
        self.files = 0

    def add_tree(self, top: bytes) -> None:
        pending = [top]
        while pending:
            folder = pending.pop()
            self._add(folder, top)
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    self._add(entry.path, top)
            pending += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]

    def _add(self, path: bytes, top: bytes) -> None:
        self.files += 1
        if self.files > self._most:
            raise LayerError(f"the sandbox has more than {self._most} files", "limit")
        if len(path) > MOST_PATH:
            raise LayerError("the sandbox has a path of more than 4000 bytes", "limit")
        facts = os.lstat(path)
        member = tarfile.TarInfo("." + os.fsdecode(path[len(top) :]))
        member.mode, member.uid, member.gid = stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid
        member.mtime = max(0, int(facts.st_mtime))
        first = self._seen.get((facts.st_dev, facts.st_ino)) if facts.st_nlink > 1 else None
        if first is not None and not stat.S_ISDIR(facts.st_mode):
            member.type, member.linkname = tarfile.LNKTYPE, first
            self._tar.addfile(member)
            return
        self._seen[facts.st_dev, facts.st_ino] = member.name
        if facts.st_nlink == 1 or stat.S_ISDIR(facts.st_mode):
            del self._seen[facts.st_dev, facts.st_ino]
        attributes = _attributes(path, facts.st_mode)
        attributes["SCHILY.xattr.cove.mtime"] = str(max(0, facts.st_mtime_ns))
        member.pax_headers = attributes
        self._put(path, member, facts, attributes)

    def _put(self, path: bytes, member: tarfile.TarInfo, facts: os.stat_result, attributes: dict[str, str]) -> None:
        mode = facts.st_mode
        if stat.S_ISREG(mode):
            self._put_file(path, member, facts.st_size, attributes)
            return
        if stat.S_ISDIR(mode):
            member.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(mode):
            member.type, member.linkname = tarfile.SYMTYPE, os.fsdecode(os.readlink(path))
        elif stat.S_ISFIFO(mode):
            member.type = tarfile.FIFOTYPE
        elif stat.S_ISSOCK(mode):
            attributes["SCHILY.xattr.cove.socket"] = "1"
        elif stat.S_ISCHR(mode) and facts.st_rdev == 0:
            member.type = tarfile.CHRTYPE
        else:
            raise LayerError("the sandbox's files have a device, which no sandbox can make")
        self._tar.addfile(member)

    def _put_file(self, path: bytes, member: tarfile.TarInfo, size: int, attributes: dict[str, str]) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            pieces = fewer(list(data_of(fd, size)))
            if pieces != [(0, size)] and (size or pieces):
                text = ";".join([str(size), *(f"{at},{length}" for at, length in pieces)])
                attributes["SCHILY.xattr.cove.sparse"] = text
            member.size = sum(length for _, length in pieces)
            self._tar.addfile(member, _Pieces(fd, pieces) if member.size else None)
        finally:
            os.close(fd)
        self._report.add(member.size)


class _Pieces(io.RawIOBase):
    """The data of a file, without its holes, as one stream."""

    def __init__(self, fd: int, pieces: list[tuple[int, int]]) -> None:
        super().__init__()
        self._fd = fd
        self._pieces = pieces[::-1]

    def read(self, size: int = -1, /) -> bytes:
        parts: list[bytes] = []
        while size > 0 and self._pieces:
            at, length = self._pieces.pop()
            data = os.pread(self._fd, min(size, length), at)
            if not data:
                data = bytes(min(size, length, CHUNK))  # it became shorter: a member has the size it announced
            if len(data) < length:
                self._pieces.append((at + len(data), length - len(data)))
            size -= len(data)
            parts.append(data)
        return b"".join(parts)


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file has data: offset and length."""
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        if end <= at:
            return
        yield at, end - at
        at = end


def fewer(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most MOST_PIECES: small holes become zeros."""
    gap = 4096
    while len(pieces) > MOST_PIECES:
        gap *= 4
        joined = pieces[:1]
        for at, length in pieces[1:]:
            last_at, last_length = joined[-1]
            if at - (last_at + last_length) < gap:
                joined[-1] = (last_at, at + length - last_at)
            else:
                joined.append((at, length))
        pieces = joined
    return pieces


def _attributes(path: bytes, mode: int) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for key in os.listxattr(path, follow_symlinks=False):
            if key.startswith(KEPT_ATTRIBUTES) or (key == OPAQUE and stat.S_ISDIR(mode)):
                value = os.getxattr(path, key, follow_symlinks=False)
                found[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    return found


def main() -> int:
    order = json.loads(sys.stdin.readline())
    try:
        with open(OUT, "wb", buffering=0) as file:
            sink = Sink(file, order["most_bytes"])
            with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                keeper = Keeper(tar, order["most_files"])
                keeper.add_tree(TOP)
            os.fsync(file.fileno())
        say({"digest": sink.digest(), "size": sink.size, "files": keeper.files})
    except LayerError as error:
        say({"error": error.kind, "text": str(error)})
    except MemoryError:
        say({"error": "limit", "text": "it has too many files"})
    except OSError as error:
        kind = "space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "bad"
        say({"error": kind, "text": f"its files cannot be read: {os.strerror(error.errno or 0)}"})
    return 0
