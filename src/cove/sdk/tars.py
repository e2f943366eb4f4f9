"""Directories of this machine as tar streams, and tar streams as directories. Knows nothing of a server.

What comes out of a sandbox is hostile, so `Unpacker` is strict where the standard library is helpful: headers are
bounded before they are read, every path is walked by descriptor and no link on the way is followed, nothing is written
through what is there, links lead to the inside or are left out, and special bits and owners are dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cove.sdk.errors import BadAnswer
from cove.sdk.tree_models import TreeCopy

PIECE_BYTES: Final = 256 * 1024
BLOCK: Final = 512
MAX_HEADER_BYTES: Final = 1024 * 1024
"""Of a PAX header: a path has 4 KiB, a link's target as many."""

MAX_MEMBERS: Final = 1_000_000
_OPEN_BELOW: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE)
_NOT_OURS: Final = (tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE)
"""They change what follows or claim more than there is; a sandbox's agent sends none."""


@dataclass
class Tally:
    """What a copy has carried so far."""

    files: int = 0
    bytes: int = 0
    skipped: int = 0

    def done(self) -> TreeCopy:
        """Return it as a value."""
        return TreeCopy(self.files, self.bytes, self.skipped)


# ---- out of this machine


def packed(local: str, tally: Tally) -> Iterator[bytes]:
    """Yield the directory `local` as a tar, names relative to it; links that lead out and special files are left out.

    Raises: OSError; one of EBUSY when a file becomes shorter while it is read.
    """
    yield from _packed(local, "", tally)
    yield bytes(2 * BLOCK)


def _packed(local: str, below: str, tally: Tally) -> Iterator[bytes]:
    for entry in sorted(os.scandir(local), key=lambda one: one.name):
        facts = entry.stat(follow_symlinks=False)
        name = f"{below}{entry.name}"
        member = tarfile.TarInfo(name)
        member.mode, member.mtime = stat.S_IMODE(facts.st_mode) & 0o777, int(facts.st_mtime)
        if stat.S_ISDIR(facts.st_mode):
            member.type = tarfile.DIRTYPE
            yield _header(member)
            yield from _packed(entry.path, f"{name}/", tally)
        elif stat.S_ISREG(facts.st_mode):
            yield from _file(member, entry.path, tally)
        elif stat.S_ISLNK(facts.st_mode) and stays_inside(name, target := os.readlink(entry.path)):  # noqa: PTH115 - text
            member.type, member.linkname = tarfile.SYMTYPE, target
            tally.files += 1
            yield _header(member)
        else:
            tally.skipped += 1


def _file(member: tarfile.TarInfo, local: str, tally: Tally) -> Iterator[bytes]:
    fd = os.open(local, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            tally.skipped += 1
            return
        member.size = left = facts.st_size
        yield _header(member)
        while left:
            piece = file.read(min(PIECE_BYTES, left))
            if not piece:
                raise OSError(errno.EBUSY, "it became shorter while it was read", local)
            left -= len(piece)
            yield piece
    tally.files += 1
    tally.bytes += member.size
    if rest := -member.size % BLOCK:
        yield bytes(rest)


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


# ---- onto this machine


def stays_inside(name: str, target: str) -> bool:
    """Whether a link `name` of a directory, to `target`, leads to something below that directory.

    `..` counts only at the beginning, where the directories are known to be real: after a name it would depend on
    what that name is.
    """
    if target.startswith("/"):
        return False
    depth, at_start = name.count("/"), True
    for part in target.split("/"):
        if part == "..":
            depth -= 1
            if depth < 0 or not at_start:
                return False
        elif part not in {"", "."}:
            at_start = False
    return True


def checked_path(name: str) -> str:
    """Return a member's path below the target, "" for the target itself.

    Raises: BadAnswer (absolute, `..`, NUL).
    """
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise BadAnswer(f"the sandbox named a file {name[:200]!r}")
    return "/".join(parts)


@dataclass
class _Member:
    """What the header before the bytes at hand has announced."""

    kind: bytes = b""
    path: str = ""
    target: str = ""
    mode: int = 0
    mtime: int = 0
    size: int = 0


@dataclass
class Unpacker:
    """Writes a tar stream below the directory `local`: `feed` it pieces, then `close`; `drop` after a failure.

    A file is written beside its place and renamed, so a break leaves no half file. `max_bytes` None: what there is
    room for now.
    """

    local: str
    max_bytes: int | None = None
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        os.makedirs(self.local, exist_ok=True)  # noqa: PTH103 - pathlib costs 4 ms of every command
        self._top = os.open(self.local, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._room = self.max_bytes if self.max_bytes is not None else _free(self._top)
        self._buffer = bytearray()
        self._member = _Member()
        self._left = 0  # of the member's content
        self._padding = 0
        self._pax: dict[str, str] = {}
        self._file = -1
        self._temporary = ""
        self._name = ""
        self._directory = -1  # of the file: the top or the parent, not ours to close
        self._parent = -1
        self._parent_path = ""
        self._members = 0
        self._is_over = False

    def feed(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises: BadAnswer (no tar, or one that reaches outside), OSError.
        """
        rest = memoryview(piece)
        while rest and not self._is_over:
            if self._left:
                rest = self._content(rest)
            elif self._padding:
                taken = min(self._padding, len(rest))
                self._padding -= taken
                rest = rest[taken:]
            else:
                wanted = BLOCK - len(self._buffer)
                self._buffer += rest[:wanted]
                rest = rest[wanted:]
                if len(self._buffer) == BLOCK:
                    block = bytes(self._buffer)
                    self._buffer.clear()
                    self._block(block)

    def close(self) -> TreeCopy:
        """Finish, and return what there was.

        Raises: BadAnswer when the archive is not whole.
        """
        self.drop()
        if not self._is_over:
            raise BadAnswer("the directory's archive ended in the middle", retryable=True)
        return self.tally.done()

    def drop(self) -> None:
        """Let go of everything; a half-written file is removed. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
        if self._parent >= 0:
            os.close(self._parent)
            self._parent = -1
        if self._top >= 0:
            os.close(self._top)
            self._top = -1

    def _block(self, block: bytes) -> None:
        if not any(block):
            self._is_over = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BadAnswer("the directory's archive is damaged") from error
        if info.size < 0:
            raise BadAnswer("the directory's archive is damaged")
        pax, self._pax = self._pax, {}
        self._left, self._padding = info.size, -info.size % BLOCK
        if info.type in {tarfile.XHDTYPE, tarfile.XGLTYPE}:
            if info.size > MAX_HEADER_BYTES:
                raise BadAnswer("the directory's archive has a header larger than 1 MiB")
            self._member = _Member(kind=info.type)
            if not info.size:
                self._end_content()
            return
        self._begin(info, pax)

    def _begin(self, info: tarfile.TarInfo, pax: dict[str, str]) -> None:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise BadAnswer("the directory's archive has more than 1000000 entries")
        size = pax.get("size", "")
        if size:
            if not size.isascii() or not size.isdigit() or len(size) > 18:  # noqa: PLR2004 - below 2^63
                raise BadAnswer("the directory's archive is damaged")
            info.size = int(size)
            self._left, self._padding = info.size, -info.size % BLOCK
        self._member = member = _Member(
            info.type,
            checked_path(pax.get("path", info.name)),
            pax.get("linkpath", info.linkname),
            info.mode & 0o777,
            min(max(int(info.mtime), 0), 2**40),
            info.size,
        )
        if info.type in _NOT_OURS or any(key.startswith("GNU.sparse.") for key in pax):
            raise BadAnswer("the directory's archive has a member of a kind that is not taken")
        if member.kind in _FILES and member.path:
            self._open(member)
        else:
            self._link_or_directory(member)
        if not self._left:
            self._end_content()

    def _content(self, piece: memoryview) -> memoryview:
        taken = piece[: self._left]
        if self._file >= 0:
            at = 0
            while at < len(taken):
                at += os.write(self._file, taken[at:])
        elif self._member.kind == tarfile.XHDTYPE:
            self._buffer += taken
        self._left -= len(taken)
        if not self._left:
            self._end_content()
        return piece[len(taken) :]

    def _end_content(self) -> None:
        member = self._member
        if member.kind == tarfile.XHDTYPE:
            self._pax = _pax_records(bytes(self._buffer))
            self._buffer.clear()
        elif self._file >= 0:
            os.fchmod(self._file, member.mode)
            os.utime(self._file, (member.mtime, member.mtime))
            os.close(self._file)
            self._file = -1
            _rename(self._temporary, self._name, self._directory)
            self.tally.files += 1
            self.tally.bytes += member.size

    def _open(self, member: _Member) -> None:
        if member.size > self._room:
            if self.max_bytes is not None:
                raise OSError(errno.EFBIG, f"the directory has more than {self.max_bytes} bytes", self.local)
            raise OSError(errno.ENOSPC, "there is no room for what the directory has", self.local)
        self._room -= member.size
        directory, name = self._reach(member.path)
        self._directory, self._name, self._temporary = directory, name, _beside()
        self._file = os.open(self._temporary, _OPEN_NEW, 0o600, dir_fd=directory)

    def _link_or_directory(self, member: _Member) -> None:
        if not member.path:
            return
        directory, name = self._reach(member.path)
        match member.kind:
            case tarfile.DIRTYPE:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=directory)
                opened = _opened(name, directory)
                try:
                    os.fchmod(opened, member.mode | 0o700)
                finally:
                    os.close(opened)
            case tarfile.SYMTYPE if stays_inside(member.path, member.target):
                temporary = _beside()
                os.symlink(member.target, temporary, dir_fd=directory)
                _rename(temporary, name, directory)
                self.tally.files += 1
            case tarfile.LNKTYPE:
                self._hard_link(member, directory, name)
            case _:
                self.tally.skipped += 1

    def _hard_link(self, member: _Member, directory: int, name: str) -> None:
        target = checked_path(member.target)
        held = os.dup(directory)  # the walk to the target forgets the directory that was reached before
        try:
            source, base = self._reach(target)
            if not target or not stat.S_ISREG(os.stat(base, dir_fd=source, follow_symlinks=False).st_mode):
                raise BadAnswer("the directory's archive links to what is no file")
            temporary = _beside()
            os.link(base, temporary, src_dir_fd=source, dst_dir_fd=held, follow_symlinks=False)
            _rename(temporary, name, held)
        finally:
            os.close(held)
        self.tally.files += 1

    def _reach(self, path: str) -> tuple[int, str]:
        """Return the open directory of `path`, valid until the next call, and the last name in it."""
        below, _, name = path.rpartition("/")
        if not below:
            return self._top, name
        if self._parent >= 0 and self._parent_path == below:
            return self._parent, name
        if self._parent >= 0:
            os.close(self._parent)
            self._parent = -1
        directory = self._top
        for part in below.split("/"):
            try:
                following = self._step(directory, part)
            finally:
                if directory != self._top:
                    os.close(directory)
            directory = following
        self._parent, self._parent_path = directory, below
        return directory, name

    def _step(self, directory: int, name: str) -> int:
        try:
            return _opened(name, directory)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=directory)
            return _opened(name, directory)


def _opened(name: str, directory: int) -> int:
    """Open a directory, never through a link. Not by O_DIRECTORY: beside it gVisor ignores O_NOFOLLOW."""
    fd = os.open(name, _OPEN_BELOW, dir_fd=directory)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
    return fd


def _pax_records(data: bytes) -> dict[str, str]:
    """Read `LENGTH KEY=VALUE` lines (pax(1), "pax Extended Header"). Raises: BadAnswer."""
    records: dict[str, str] = {}
    while data and data[0]:
        digits, blank, _ = data[:20].partition(b" ")
        length = int(digits) if blank and digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if length > len(data) or not equals or not record.endswith(b"\n"):
            raise BadAnswer("the directory's archive is damaged")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


def _beside() -> str:
    return f".cove-{os.getpid()}-{os.urandom(6).hex()}"


def _rename(temporary: str, name: str, directory: int) -> None:
    try:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:  # after a failure, and because rename(2) of two names of one file does nothing and leaves both
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)


def _free(fd: int) -> int:
    facts = os.fstatvfs(fd)
    return facts.f_bavail * facts.f_frsize
