"""What operations on directory trees find and do: frozen values, no I/O. Read leniently, as `models.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Match:
    """A line that matches. `column`, `length` are bytes; `text` is the line, or (`cut`) the part around the match."""

    path: str
    line: int
    column: int
    length: int
    text: str
    cut: bool


@dataclass(frozen=True, slots=True)
class Replacement:
    """What a replacement did, or would do: how often in each file, and which files were left out for what reason.

    `stopped` is None, or why not all was seen: `limit` or `timeout`.
    """

    files: dict[str, int]
    replacements: int
    searched: int
    binary: int
    too_large: int
    unreadable: int
    stopped: str | None


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a tree holds: `bytes` of its files, `allocated_bytes` on the disk. A file with several names counts once."""

    bytes: int
    allocated_bytes: int
    files: int
    directories: int
    symlinks: int
    others: int
    unreadable: int
    stopped: str | None


@dataclass(frozen=True, slots=True)
class TreeCopy:
    """What a directory's way in or out carried; `skipped` are links that lead out of it, and what is no file."""

    files: int
    bytes: int
    skipped: int


def match(wire: dict[str, Any]) -> Match:
    """Read a line of a search."""
    return Match(
        path=str(wire["path"]),
        line=int(wire.get("line") or 0),
        column=int(wire.get("column") or 0),
        length=int(wire.get("length") or 0),
        text=str(wire.get("text") or ""),
        cut=bool(wire.get("cut")),
    )


def replacement(wire: dict[str, Any]) -> Replacement:
    """Read what was replaced."""
    return Replacement(
        files={str(one["path"]): int(one.get("replacements") or 0) for one in wire.get("files") or ()},
        stopped=wire.get("stopped"),
        **{name: int(wire.get(name) or 0) for name in ("replacements", "searched", *_LEFT_OUT)},
    )


def usage(wire: dict[str, Any]) -> TreeUsage:
    """Read a sum."""
    names = ("bytes", "allocated_bytes", "files", "directories", "symlinks", "others", "unreadable")
    return TreeUsage(stopped=wire.get("stopped"), **{name: int(wire.get(name) or 0) for name in names})


_LEFT_OUT = ("binary", "too_large", "unreadable")
