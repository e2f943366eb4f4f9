"""Work on whole directory trees in a sandbox: what is asked for and what comes of it. Frozen values, no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

WALK_TIMEOUT_S: Final = 300.0
"""How long a walk over a tree takes at most, unless its caller says otherwise."""

FILE_BYTES: Final = 10 * 1024 * 1024
"""Larger files are not searched or rewritten, unless the caller says otherwise."""

LINE_BYTES: Final = 500
"""So much of a matching line is shown."""


class Stopped(StrEnum):
    """Why a walk ended before it had seen everything."""

    LIMIT = "limit"
    TIMEOUT = "timeout"


class Walk(Struct, frozen=True, kw_only=True):
    """Which part of a tree is meant.

    `depth` 0: all of it, 1: the directory's own entries. A glob without a slash is matched against names, one with a
    slash against paths below the root; `**` crosses directories. What matches `exclude` is neither shown nor entered.
    """

    depth: int = 0
    glob: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    timeout_s: float = WALK_TIMEOUT_S


class Search(Struct, frozen=True, kw_only=True):
    """What is looked for, line by line: a regular expression (RE2), or with `literal` the text itself."""

    pattern: str
    literal: bool = False
    ignore_case: bool = False
    max_file_bytes: int = FILE_BYTES
    max_line_bytes: int = LINE_BYTES


class FindEnd(Struct, frozen=True, kw_only=True):
    """The end of a list: how many entries came, how many could not be read. `stopped` None: it is complete."""

    entries: int
    unreadable: int
    stopped: Stopped | None


class Match(Struct, frozen=True, kw_only=True):
    """A line that matches. `column` counts bytes from 1; `text` is the line, or (`cut`) the part around the match."""

    path: str
    line: int
    column: int
    length: int
    text: str
    cut: bool


class SearchEnd(Struct, frozen=True, kw_only=True):
    """The end of a search: `files` were searched, the others left out for the reason that the field names."""

    matches: int
    files: int
    binary: int
    too_large: int
    unreadable: int
    stopped: Stopped | None


class Replaced(Struct, frozen=True, kw_only=True):
    """A file that was rewritten, or would be."""

    path: str
    replacements: int


class Replacement(Struct, frozen=True, kw_only=True):
    """What a replacement did. `searched` counts the files that were looked through."""

    files: tuple[Replaced, ...]
    replacements: int
    searched: int
    binary: int
    too_large: int
    unreadable: int
    stopped: Stopped | None


class TreeUsage(Struct, frozen=True, kw_only=True):
    """What a tree holds: `bytes` of its files, `allocated_bytes` on the disk. Hard links count once."""

    bytes: int
    allocated_bytes: int
    files: int
    directories: int
    symlinks: int
    others: int
    unreadable: int
    stopped: Stopped | None


class Unpacking(Struct, frozen=True, kw_only=True):
    """How an archive is to be unpacked.

    `owner` and `group` are names or numbers inside; `owners`: each member's as the archive says. `special`: setuid,
    setgid and sticky bits too. `any_links`: symbolic links that lead out of the directory too. `max_bytes` 0: any.
    """

    owner: str = ""
    group: str = ""
    owners: bool = False
    special: bool = False
    any_links: bool = False
    max_bytes: int = 0


class Unpacked(Struct, frozen=True, kw_only=True):
    """What was unpacked."""

    entries: int
    bytes: int
