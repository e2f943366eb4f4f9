"""Applies layers to an empty directory and digests the result. Runs inside (`enter.py`), chrooted to `/target`.

One line of JSON comes in (see `engine/images/unpack.py`), lines of JSON go out: `{"done": N}` compressed bytes, then
`{"tree": ...}` or `{"error": kind, "text": ...}`. Rules of applying: OCI image-spec, layer.md. What a layer asks for
and does not get: setuid and setgid bits (a directory keeps setgid), file capabilities and all attributes but `user.*`,
device nodes, fifos, owners beyond 65535. Links are made as they are; they lead nowhere outside of a root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import posixpath
import shutil
import stat
import struct
import sys
from typing import Any

from cove.engine.confined.layer import CHUNK, NOBODY, Budget, Layer, Reporter, say
from cove.engine.confined.measure import measure_tree
from cove.engine.confined.tarstream import (
    DIRECTORY,
    HARDLINK,
    REGULAR,
    SPECIAL,
    SYMLINK,
    Entry,
    LayerError,
    TarStream,
)

MAX_PATH = 4094
"""With the slash before and the NUL behind it is what the kernel takes (PATH_MAX, 4096)."""

MAX_ID = 65535
KEPT_MODE = {REGULAR: 0o1777, DIRECTORY: 0o3777}
WHITEOUT, OPAQUE = b".wh.", b".wh..wh..opq"
TARGET = "/target"


class Applier:
    """Puts one layer's entries into the root it is chrooted to."""

    def __init__(self, tar: TarStream, budget: Budget) -> None:
        self._tar = tar
        self._budget = budget
        self._made: set[bytes] = set()
        self._made_above: set[bytes] = set()
        self._skipped: set[bytes] = set()
        self._times: dict[bytes, int] = {}
        self._last: tuple[bytes, int] | None = None

    def apply(self) -> None:
        """Every entry, then the times of directories, which entries in them would change."""
        try:
            self._apply()
        finally:
            self._forget()

    def _apply(self) -> None:
        for entry in self._tar.entries():
            if entry.kind != REGULAR:
                self._forget()  # it may move, replace or remove directories
            path = cleaned(entry.name)
            folder, name = posixpath.split(path)
            if name == OPAQUE:
                self._forget()
                self._empty(folder)
            elif name.startswith(WHITEOUT):
                self._forget()
                self._white_out(folder, name)
            elif path == b"":
                self._dress_directory(b"/", entry)
            elif path.startswith(b"dev/"):
                self._skip(path)
            else:
                self._put(entry, path)
        for path, moment in self._times.items():
            with contextlib.suppress(OSError):  # replaced or whited out since
                os.utime(b"/" + path, ns=(moment, moment), follow_symlinks=False)

    def _put(self, entry: Entry, path: bytes) -> None:
        if entry.kind in SPECIAL:
            self._skip(path)
            self._clear(path, keep_directory=False)
            return
        if entry.kind == HARDLINK and cleaned(entry.link) in self._skipped:
            return
        self._budget.add_file()
        if entry.kind == REGULAR:
            self._put_file(entry, path)
        else:
            parent = self._parent(path)
            try:
                self._clear_at(parent, path, keep_directory=entry.kind == DIRECTORY)
                self._make(entry, path, parent)
            finally:
                os.close(parent)
        self._note(path)

    def _put_file(self, entry: Entry, path: bytes) -> None:
        """A regular file. Nearly all entries are: its directory stays open for the next one in it."""
        folder, name = posixpath.split(path)
        if self._last is None or self._last[0] != folder:
            self._forget()
            self._last = (folder, self._parent(path))
        parent = self._last[1]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        except FileExistsError:
            self._clear_at(parent, path, keep_directory=False)
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        self._fill(fd, entry)

    def _forget(self) -> None:
        """Close the directory that was kept open."""
        if self._last is not None:
            os.close(self._last[1])
            self._last = None

    def _skip(self, path: bytes) -> None:
        """Remember what was left out; it counts, or memory would have no limit."""
        self._budget.add_file()
        self._skipped.add(path)

    def _note(self, path: bytes) -> None:
        """Remember that this layer made it: its own whiteouts do not hide it."""
        self._made.add(path)
        above = posixpath.dirname(path)
        while above not in self._made_above:
            self._made_above.add(above)
            above = posixpath.dirname(above)

    def _make(self, entry: Entry, path: bytes, parent: int) -> None:
        name = posixpath.basename(path)
        if entry.kind == DIRECTORY:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            self._dress(fd, entry)
            self._times[path] = entry.mtime_ns
        elif entry.kind == SYMLINK:
            if not entry.link or len(entry.link) > MAX_PATH or b"\0" in entry.link:
                raise LayerError("a layer has a symbolic link to no valid path")
            os.symlink(entry.link, name, dir_fd=parent)
            os.chown(name, owner(entry.uid), owner(entry.gid), dir_fd=parent, follow_symlinks=False)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
        else:
            self._link(cleaned(entry.link), name, parent)

    def _link(self, target: bytes, name: bytes, parent: int) -> None:
        source = self._parent(target)
        try:
            os.link(posixpath.basename(target), name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:
            raise LayerError("a layer has a hard link to something that is not there") from error
        finally:
            os.close(source)

    def _fill(self, fd: int, entry: Entry) -> None:
        try:
            while chunk := self._tar.read(CHUNK):
                self._budget.add_bytes(len(chunk))
                while chunk:
                    chunk = chunk[os.write(fd, chunk) :]
        except BaseException:
            os.close(fd)
            raise
        self._dress(fd, entry)

    def _dress_directory(self, path: bytes, entry: Entry) -> None:
        if entry.kind == DIRECTORY:
            self._dress(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), entry)

    def _dress(self, fd: int, entry: Entry) -> None:
        """Owner, mode, attributes and time; closes `fd`."""
        try:
            uid, gid = owner(entry.uid), owner(entry.gid)
            facts = os.fstat(fd)  # a new file is root's already, but below a setgid directory
            if (facts.st_uid, facts.st_gid) != (uid, gid):
                os.fchown(fd, uid, gid)
            os.fchmod(fd, entry.mode & KEPT_MODE[entry.kind])
            for key, value in entry.attributes.items():
                if key.startswith(b"user.") and not key.startswith(b"user.overlay."):
                    with contextlib.suppress(OSError):  # more than the file system takes: as a copy would lose it
                        os.setxattr(fd, key, value)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _parent(self, path: bytes) -> int:
        """The directory that `path` lies in, made where missing; links on the way are followed, within the root."""
        folder = posixpath.dirname(path)
        try:
            return open_folder(folder)
        except FileNotFoundError:
            self._make_folders(folder)
            return open_folder(folder)

    def _make_folders(self, folder: bytes) -> None:
        at = open_folder(b"")
        try:
            for part in folder.split(b"/"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=at)
                    self._budget.add_file()
                below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = below
        finally:
            os.close(at)

    def _white_out(self, folder: bytes, name: bytes) -> None:
        hidden = name.removeprefix(WHITEOUT)
        if hidden in {b"", b".", b".."} or hidden.startswith(WHITEOUT):
            return  # aufs' own bookkeeping
        path = posixpath.join(folder, hidden)
        self._remove_lower(path)

    def _empty(self, folder: bytes) -> None:
        """An opaque directory: nothing of the layers below shows through."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(b"/" + folder):
                self._remove_lower(posixpath.join(folder, name))

    def _remove_lower(self, path: bytes) -> None:
        """Remove what lower layers put at `path`; what this layer made stays."""
        full = b"/" + path
        is_ours = path in self._made
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if stat.S_ISDIR(os.lstat(full).st_mode) and (is_ours or path in self._made_above):
                for name in os.listdir(full):
                    self._remove_lower(posixpath.join(path, name))
            elif not is_ours:
                remove(full)

    def _clear(self, path: bytes, *, keep_directory: bool) -> None:
        try:
            parent = open_folder(posixpath.dirname(path))
        except OSError:
            return
        try:
            self._clear_at(parent, path, keep_directory=keep_directory)
        finally:
            os.close(parent)

    def _clear_at(self, parent: int, path: bytes, *, keep_directory: bool) -> None:
        """Make room for an entry. A directory over a directory keeps what is in it."""
        name = posixpath.basename(path)
        try:
            facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(facts.st_mode):
            os.unlink(name, dir_fd=parent)
        elif not keep_directory:
            remove(b"/" + path)


def cleaned(name: bytes) -> bytes:
    """A path below the root: no `..`, no leading slash; empty for the root itself."""
    path = posixpath.normpath(b"/" + name).lstrip(b"/")
    if b"\0" in name or len(path) > MAX_PATH:
        raise LayerError("a layer has a path that no system takes")
    return path


def owner(number: int) -> int:
    """Ids beyond those a sandbox has belong to nobody."""
    return number if 0 <= number <= MAX_ID else NOBODY


def open_folder(folder: bytes) -> int:
    """A directory below the root."""
    return os.open(b"/" + folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def remove(path: bytes) -> None:
    """Remove whatever is there, links as links."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def empty_dev() -> None:
    """A real `/dev` becomes empty; one that is something else stays, every sandbox covers it with its own."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(b"/dev").st_mode):
            for name in os.listdir(b"/dev"):
                remove(b"/dev/" + name)


def close_the_door() -> None:
    """Enter the target for good: without CAP_SYS_CHROOT there is no way back, and the ids need not change any more."""
    os.chroot(TARGET)
    os.chdir("/")
    libc = ctypes.CDLL(None, use_errno=True)
    mask = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    data = ctypes.create_string_buffer(struct.pack("=IIIIII", mask, mask, 0, 0, 0, 0), 24)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def sync_root() -> None:
    """All of it on the disk before anybody gives it a name."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(b"/", os.O_RDONLY | os.O_DIRECTORY)
    if libc.syncfs(fd) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(fd)


def unpack(order: dict[str, Any]) -> None:
    budget = Budget(order["most_bytes"], order["most_files"], order["most_ratio"])
    reporter = Reporter()
    layers = [Layer(layer["path"], budget, reporter) for layer in order["layers"]]
    close_the_door()
    try:
        apply_all(order["layers"], layers, budget)
    finally:
        for layer in layers:
            layer.close()
    empty_dev()
    sync_root()


def apply_all(orders: list[dict[str, str]], layers: list[Layer], budget: Budget) -> None:
    for described, layer in zip(orders, layers, strict=True):
        layer.start()
        Applier(TarStream(layer.read), budget).apply()
        digest, diff_id = layer.finish()
        if described["digest"] not in {"", digest}:
            raise LayerError("a layer is not what its digest says")
        if described["diff_id"] not in {"", diff_id}:
            raise LayerError("a layer's content is not what the image's configuration says")


def main() -> int:
    sys.setrecursionlimit(10_000)
    order = json.loads(sys.stdin.readline())
    try:
        if order["layers"] is not None:
            unpack(order)
        else:
            close_the_door()
        say({"tree": measure_tree("/")._asdict()})
    except LayerError as error:
        say({"error": error.kind, "text": str(error)})
    except MemoryError:
        say({"error": "limit", "text": "the image's layers need too much memory to unpack"})
    except OSError as error:
        kind = "space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "bad"
        say({"error": kind, "text": f"a layer cannot be unpacked: {os.strerror(error.errno or 0)}"})
    return 0
