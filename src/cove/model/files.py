"""Files in a sandbox: frozen values, no I/O. Paths are absolute, as the sandbox sees them."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class FileKind(StrEnum):
    """What a directory entry is. A link is reported as such, never followed for `kind`."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


class FileInfo(Struct, frozen=True, kw_only=True):
    """One directory entry. `mode` has the permission bits only; `mtime` is Unix seconds; owners are ids inside."""

    path: str
    name: str
    kind: FileKind
    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    target: str | None = None


class FilePage(Struct, frozen=True, kw_only=True):
    """One page of a directory, in name order. `cursor` None: that was the last page."""

    entries: tuple[FileInfo, ...]
    cursor: str | None


class Attributes(Struct, frozen=True, kw_only=True):
    """What is to change of an entry; -1 and "" leave as it is.

    `owner` and `group` are names of the sandbox's own passwd and group, or numbers. `recursive`: also of all below a
    directory, links excepted for modes; `directory_mode` then is for directories, -1: the same as `mode`.
    """

    mode: int = -1
    uid: int = -1
    gid: int = -1
    owner: str = ""
    group: str = ""
    recursive: bool = False
    directory_mode: int = -1
