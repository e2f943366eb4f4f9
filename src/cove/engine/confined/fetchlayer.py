"""Makes a sandbox's own layer of an archive that `keeplayer.py` wrote, or that a stranger says it wrote. Runs inside.

The archive is `/archive`, the layer `/target`, which is empty; `/marks` gets the paths of opaque directories, each
ended by a NUL: that attribute takes a right which nobody gets who reads strangers' bytes. One line of JSON comes in,
lines go out: `{"done": N}`, then `{"digest": ..., "files": N}` or `{"error": kind, "text": ...}`. It is strict, because
what we write is simple: parents first, nothing twice, no link on any way, no device but overlay's mark (0/0).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from typing import Any

from cove.engine.confined.layer import CHUNK, Budget, Layer, Reporter, say
from cove.engine.confined.tarstream import (
    DIRECTORY,
    HARDLINK,
    MAX_DIGITS,
    REGULAR,
    SYMLINK,
    Entry,
    LayerError,
    TarStream,
)
from cove.engine.confined.unpack import close_the_door, owner

ARCHIVE, MARKS = "/archive", "/marks"
SPECIAL_MODES = {b"3": stat.S_IFCHR, b"6": stat.S_IFIFO, REGULAR: stat.S_IFSOCK}
"""A character device is always overlay's mark: its numbers are not read. A regular file comes here as a socket."""

MOST_PATH = 4094
MOST_DEPTH = 2048
MOST_PIECES = 4096
MOST_MARKS = 8 * 1024 * 1024
OPAQUE = b"trusted.overlay.opaque"
KEPT_ATTRIBUTES = (b"user.", b"system.posix_acl_")
LARGEST = 2**63 - 1
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Fetcher:
    """Puts the entries of one archive into the empty root that it is chrooted to."""

    def __init__(self, tar: TarStream, budget: Budget, marks: int) -> None:
        self._tar = tar
        self._budget = budget
        self._marks = marks
        self._marked = 0
        self._times: list[tuple[bytes, int]] = []
        self._last: tuple[bytes, int] | None = None

    def run(self) -> None:
        """All of it. Raises: LayerError, OSError."""
        try:
            for entry in self._tar.entries():
                self._budget.add_file()
                self._put(entry, parts_of(entry.name))
            for path, moment in reversed(self._times):
                os.utime(b"/" + path, ns=(moment, moment), follow_symlinks=False)
        except FileExistsError as error:
            raise LayerError("the archive has something twice") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LayerError("the archive has something in a directory that it does not have") from error
        finally:
            if self._last is not None:
                os.close(self._last[1])

    def _put(self, entry: Entry, parts: list[bytes]) -> None:
        if not parts:
            if entry.kind != DIRECTORY:
                raise LayerError("the archive's top is no directory")
            self._dress(os.open(b"/", _FOLDER), entry)
            self._note_folder(b"", entry)
            return
        folder = self._folder(parts[:-1])
        name = parts[-1]
        if entry.kind == REGULAR and not entry.attributes.get(b"cove.socket"):
            self._put_file(folder, name, entry)
        elif entry.kind == DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=folder)
            self._dress(os.open(name, _FOLDER, dir_fd=folder), entry)
            self._note_folder(b"/".join(parts), entry)
        elif entry.kind == HARDLINK:
            self._link(folder, name, parts_of(entry.link))
        else:
            self._put_special(folder, name, entry)

    def _put_special(self, folder: int, name: bytes, entry: Entry) -> None:
        """What cannot be opened: links, sockets, pipes, overlay's marks."""
        if entry.kind == SYMLINK:
            if not entry.link or len(entry.link) > MOST_PATH or b"\0" in entry.link:
                raise LayerError("the archive has a symbolic link to no valid path")
            os.symlink(entry.link, name, dir_fd=folder)
        elif entry.kind in SPECIAL_MODES:
            os.mknod(name, SPECIAL_MODES[entry.kind] | 0o600, 0, dir_fd=folder)
        else:
            raise LayerError("the archive has a device")
        os.chown(name, owner(entry.uid), owner(entry.gid), dir_fd=folder, follow_symlinks=False)
        if entry.kind != SYMLINK:
            os.chmod(name, entry.mode, dir_fd=folder)
        moment = moment_of(entry)
        os.utime(name, ns=(moment, moment), dir_fd=folder, follow_symlinks=False)

    def _link(self, folder: int, name: bytes, source: list[bytes]) -> None:
        if not source:
            raise LayerError("the archive has a hard link to its top")
        at = open_folder(source[:-1])
        try:
            os.link(source[-1], name, src_dir_fd=at, dst_dir_fd=folder, follow_symlinks=False)
        except PermissionError as error:
            raise LayerError("the archive has a hard link to a directory") from error
        finally:
            os.close(at)

    def _folder(self, parts: list[bytes]) -> int:
        """The directory of an entry; it stays open for the next one in it."""
        path = b"/".join(parts)
        if self._last is None or self._last[0] != path:
            if self._last is not None:
                os.close(self._last[1])
                self._last = None
            self._last = (path, open_folder(parts))
        return self._last[1]

    def _put_file(self, folder: int, name: bytes, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            size, pieces = pieces_of(entry)
            for at, length in pieces:
                self._fill(fd, at, length)
            if size != (pieces[-1][0] + pieces[-1][1] if pieces else 0):
                os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        self._dress(fd, entry)

    def _fill(self, fd: int, at: int, length: int) -> None:
        while length:
            chunk = self._tar.read(min(CHUNK, length))
            if not chunk:
                raise LayerError("the archive is cut off")
            self._budget.add_bytes(len(chunk))
            length -= len(chunk)
            while chunk:
                count = os.pwrite(fd, chunk, at)
                at += count
                chunk = chunk[count:]

    def _note_folder(self, path: bytes, entry: Entry) -> None:
        self._times.append((path, moment_of(entry)))
        if entry.attributes.get(OPAQUE) in {b"y", b"x"}:
            record = path + b"\0"
            self._marked += len(record)
            if self._marked > MOST_MARKS:
                raise LayerError("the archive has too many opaque directories", "limit")
            os.write(self._marks, record)

    def _dress(self, fd: int, entry: Entry) -> None:
        """Owner, mode, attributes and time; closes `fd`."""
        try:
            os.fchown(fd, owner(entry.uid), owner(entry.gid))
            os.fchmod(fd, entry.mode)  # after the owner: a change of that takes setuid away
            for key, value in entry.attributes.items():
                if key.startswith(KEPT_ATTRIBUTES) and not key.startswith(b"user.overlay."):
                    with contextlib.suppress(OSError):  # more than the file system takes: as a copy would lose it
                        os.setxattr(fd, key, value)
            moment = moment_of(entry)
            os.utime(fd, ns=(moment, moment))
        finally:
            os.close(fd)


def parts_of(name: bytes) -> list[bytes]:
    """The names on the way to an entry, none for the top. Raises: LayerError."""
    if len(name) > MOST_PATH or b"\0" in name:
        raise LayerError("the archive has a path that no system takes")
    parts = name.rstrip(b"/").split(b"/")
    if parts[0] != b"." or any(part in {b"", b".", b".."} for part in parts[1:]) or len(parts) > MOST_DEPTH:
        raise LayerError("the archive has a path that leads elsewhere")
    return parts[1:]


def open_folder(parts: list[bytes]) -> int:
    """A directory below the root; no link on the way is followed."""
    at = os.open(b"/", _FOLDER)
    for part in parts:
        try:
            below = os.open(part, _FOLDER, dir_fd=at)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise LayerError("the archive has something behind a link") from error
            raise
        finally:
            os.close(at)
        at = below
    return at


def pieces_of(entry: Entry) -> tuple[int, list[tuple[int, int]]]:
    """Size of a file and where its data go. Raises: LayerError."""
    text = entry.attributes.get(b"cove.sparse")
    if text is None:
        return entry.size, [(0, entry.size)] if entry.size else []
    words = text.split(b";")
    if len(words) > MOST_PIECES + 1:
        raise LayerError("the archive has a file with too many holes")
    size, at, total = number(words[0]), 0, 0
    pieces: list[tuple[int, int]] = []
    for word in words[1:]:
        start, _, length = word.partition(b",")
        piece = (number(start), number(length))
        if piece[0] < at or not piece[1]:
            raise LayerError("the archive has a file with damaged holes")
        at = piece[0] + piece[1]
        total += piece[1]
        pieces.append(piece)
    if at > size or total != entry.size:
        raise LayerError("the archive has a file with damaged holes")
    return size, pieces


def number(text: bytes) -> int:
    """Digits, within what a file offset may be. Raises: LayerError."""
    if not text.isdigit() or len(text) > MAX_DIGITS or int(text) > LARGEST:
        raise LayerError("the archive has a number that is none")
    return int(text)


def moment_of(entry: Entry) -> int:
    text = entry.attributes.get(b"cove.mtime")
    return entry.mtime_ns if text is None else min(number(text), (2**32 - 1) * 10**9)


def fetch(order: dict[str, Any]) -> dict[str, object]:
    budget = Budget(order["most_bytes"], order["most_files"], order["most_ratio"])
    layer = Layer(ARCHIVE, budget, Reporter())
    marks = os.open(MARKS, os.O_WRONLY | os.O_CLOEXEC)
    close_the_door()
    os.umask(0)
    try:
        layer.start()
        Fetcher(TarStream(layer.read), budget, marks).run()
        digest, _ = layer.finish()
    finally:
        layer.close()
    if order["digest"] not in {"", digest}:
        raise LayerError("the files are not what their digest says")
    return {"digest": digest, "files": budget.files}


def main() -> int:
    order = json.loads(sys.stdin.readline())
    try:
        say(fetch(order))
    except LayerError as error:
        say({"error": error.kind, "text": str(error)})
    except MemoryError:
        say({"error": "limit", "text": "it needs too much memory to unpack"})
    except OSError as error:
        kind = "space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "bad"
        say({"error": kind, "text": f"its files cannot be written: {os.strerror(error.errno or 0)}"})
    return 0
