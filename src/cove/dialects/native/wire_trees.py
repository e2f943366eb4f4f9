"""What goes over the wire about directory trees in the native API: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from cove.dialects.native.wire import FileInfo, Mode, Owner, Path, PathQuery, Request
from cove.model.trees import FILE_BYTES, LINE_BYTES, WALK_TIMEOUT_S

Kind = Literal["file", "directory", "symlink", "other"]
Reason = Literal["limit", "timeout"]
Depth = Annotated[int, Meta(ge=0, le=1024, description="Levels below the directory; 0: all.")]
Glob = Annotated[
    tuple[str, ...],
    Meta(description="May be repeated. Without a slash: of names; with one: of paths below; `**` crosses directories."),
]
Exclude = Annotated[tuple[str, ...], Meta(description="Globs of what is neither shown nor entered. May be repeated.")]
Timeout = Annotated[float, Meta(ge=1, le=3600)]
FileBytes = Annotated[int, Meta(ge=1, le=1024**3, description="Larger files are left out.")]
LineBytes = Annotated[int, Meta(ge=16, le=4096, description="So much of a line is shown.")]
Principal = Annotated[str, Meta(max_length=255, description="A name of the sandbox's own, or a number.")]
MaxBytes = Annotated[int, Meta(ge=0, description="Refused beyond; 0: any size.")]


class FindQuery(PathQuery, frozen=True):
    """What to list."""

    glob: Glob = ()
    exclude: Exclude = ()
    kind: tuple[Kind, ...] = ()
    depth: Depth = 0
    limit: Annotated[int, Meta(ge=0)] = 0
    timeout_s: Timeout = WALK_TIMEOUT_S


class SearchQuery(PathQuery, frozen=True):
    """What to search for, and where."""

    pattern: Annotated[str, Meta(min_length=1, max_length=1024)]
    literal: bool = False
    ignore_case: bool = False
    glob: Glob = ()
    exclude: Exclude = ()
    depth: Depth = 0
    limit: Annotated[int, Meta(ge=0)] = 1000
    max_file_bytes: FileBytes = FILE_BYTES
    max_line_bytes: LineBytes = LINE_BYTES
    timeout_s: Timeout = WALK_TIMEOUT_S


class Replace(Request, frozen=True):
    """What to replace, by what, and where."""

    path: Path
    pattern: Annotated[str, Meta(min_length=1, max_length=1024 * 1024)]
    replacement: Annotated[str, Meta(max_length=1024 * 1024)]
    literal: bool = False
    ignore_case: bool = False
    glob: Glob = ()
    exclude: Exclude = ()
    depth: Depth = 0
    limit: Annotated[int, Meta(ge=1, le=10_000, description="Files.")] = 1000
    max_file_bytes: Annotated[int, Meta(ge=1, le=16 * 1024**2, description="Larger files are left out.")] = FILE_BYTES
    dry_run: bool = False
    timeout_s: Timeout = WALK_TIMEOUT_S


class UsageQuery(PathQuery, frozen=True):
    """What to add up."""

    exclude: Exclude = ()
    timeout_s: Timeout = WALK_TIMEOUT_S


class PackQuery(PathQuery, frozen=True):
    """What to pack."""

    exclude: Exclude = ()
    gzip: bool = False
    max_bytes: MaxBytes = 0


class UnpackQuery(PathQuery, frozen=True):
    """How to unpack."""

    owner: Principal = ""
    group: Principal = ""
    owners: Annotated[bool, Meta(description="Owners as the archive says, by number.")] = False
    special: Annotated[bool, Meta(description="Setuid, setgid and sticky bits too.")] = False
    any_links: Annotated[bool, Meta(description="Symbolic links that lead out of the directory too.")] = False
    max_bytes: MaxBytes = 0


class Link(Request, frozen=True):
    """A link to be. `hard`: another name of the file `target`."""

    path: Path
    target: Annotated[str, Meta(min_length=1, max_length=4095)]
    hard: bool = False
    overwrite: bool = False
    parents: bool = False


class SetAttributes(Request, frozen=True):
    """Attributes to change; what is not named stays. `directory_mode`: of directories, where `recursive`."""

    path: Path
    mode: Mode | None = None
    uid: Owner | None = None
    gid: Owner | None = None
    owner: Principal = ""
    group: Principal = ""
    recursive: bool = False
    directory_mode: Mode | None = None


class FindEnd(Struct, frozen=True, kw_only=True):
    """How a list ended. `stopped` null: it is complete but for `unreadable` entries."""

    entries: int
    unreadable: int
    stopped: Reason | None


class SearchEnd(Struct, frozen=True, kw_only=True):
    """How a search ended; `files` were searched, the others left out."""

    matches: int
    files: int
    binary: int
    too_large: int
    unreadable: int
    stopped: Reason | None


class Match(Struct, frozen=True, kw_only=True):
    """A line that matches; `column` and `length` are bytes, `text` is cut if `cut`."""

    path: str
    line: int
    column: int
    length: int
    text: str
    cut: bool


class FoundLine(FileInfo, frozen=True, kw_only=True):
    """A line of a list: an entry, or the last one, which has `end` alone."""

    end: FindEnd | None = None


class MatchLine(Match, frozen=True, kw_only=True):
    """A line of a search: a match, or the last one, which has `end` alone."""

    end: SearchEnd | None = None


class Replaced(Struct, frozen=True, kw_only=True):
    """A rewritten file."""

    path: str
    replacements: int


class Replacement(Struct, frozen=True, kw_only=True):
    """What was replaced, or would be."""

    files: tuple[Replaced, ...]
    replacements: int
    searched: int
    binary: int
    too_large: int
    unreadable: int
    stopped: Reason | None


class TreeUsage(Struct, frozen=True, kw_only=True):
    """What a tree holds; a file with several names counts once."""

    bytes: int
    allocated_bytes: int
    files: int
    directories: int
    symlinks: int
    others: int
    unreadable: int
    stopped: Reason | None


class Unpacked(Struct, frozen=True, kw_only=True):
    """What was unpacked."""

    entries: int
    bytes: int
