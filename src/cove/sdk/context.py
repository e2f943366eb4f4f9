"""A local directory as the tar that a build takes, made as it is sent. Memory stays flat.

`.dockerignore` at its top is honoured (patterns with `*`, `?`, `**` and `!`, the last match wins). Links go as they
are and are not followed; sockets, pipes and devices stay behind.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from typing import Final

PIECE_BYTES: Final = 256 * 1024
OUTSIDE: Final = ".cove-build"
"""Directory of the tar for a Dockerfile or recipe that does not lie in the context."""

_BLOCK: Final = 512


def context_of(directory: str | os.PathLike[str], file: str | os.PathLike[str] | None) -> tuple[Iterator[bytes], str]:
    """Return the tar of `directory`, piece by piece, and the name that `file` (None: Dockerfile) has in it.

    Raises: OSError.
    """
    top = os.path.realpath(directory)
    path = os.path.realpath(f"{top}/Dockerfile" if file is None else file)
    os.stat(path)  # noqa: PTH116 - the usual slip, told before anything is sent
    os.scandir(top).close()
    below = os.path.relpath(path, top)
    if not below.startswith(".."):
        return _pieces(top, keep=below), below
    name = f"{OUTSIDE}/{os.path.basename(path)}"  # noqa: PTH119 - pathlib costs 4 ms
    return _pieces(top, outside=(path, name)), name


def _pieces(top: str, *, keep: str = "", outside: tuple[str, str] | None = None) -> Iterator[bytes]:
    is_ignored = _ignore_rules(f"{top}/.dockerignore")
    if outside is not None:
        yield from _member(*outside)
    for folder, directories, files in os.walk(top):
        relative = os.path.relpath(folder, top)
        for name in sorted([*directories, *files]):
            path = name if relative == "." else f"{relative}/{name}"
            if path == keep or not is_ignored(path):
                yield from _member(f"{top}/{path}", path)
        directories.sort()
    yield bytes(2 * _BLOCK)


def _member(path: str, name: str) -> Iterator[bytes]:
    """Yield one entry; a file that changes its size meanwhile is cut or filled up to what was announced."""
    facts = os.lstat(path)
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = facts.st_mode & 0o777, int(facts.st_mtime)
    if os.path.islink(path):  # noqa: PTH114 - pathlib costs 4 ms
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)  # noqa: PTH115
        yield info.tobuf(tarfile.PAX_FORMAT)
    elif os.path.isdir(path):  # noqa: PTH112
        info.type = tarfile.DIRTYPE
        yield info.tobuf(tarfile.PAX_FORMAT)
    elif os.path.isfile(path):  # noqa: PTH113
        with open(path, "rb") as file:  # noqa: PTH123
            info.size = left = os.fstat(file.fileno()).st_size
            yield info.tobuf(tarfile.PAX_FORMAT)
            while left and (piece := file.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield piece
        while left:
            piece = bytes(min(PIECE_BYTES, left))
            left -= len(piece)
            yield piece
        yield bytes(-info.size % _BLOCK)


class _Rules:
    """The patterns of a `.dockerignore`; without one, nothing is ignored."""

    def __init__(self, lines: list[str]) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for line in lines:
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            keeps = pattern.startswith("!")
            cleaned = pattern.removeprefix("!").strip().strip("/").removeprefix("./")
            if cleaned:
                self._rules.append((keeps, _pattern(cleaned)))

    def __call__(self, path: str) -> bool:
        ignored = False
        for keeps, pattern in self._rules:
            if pattern.fullmatch(path):
                ignored = not keeps
        return ignored


def _ignore_rules(path: str) -> _Rules:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib costs 4 ms
            return _Rules(file.read().splitlines())
    except FileNotFoundError:
        return _Rules([])


def _pattern(text: str) -> re.Pattern[str]:
    """Return the expression for a pattern; it matches what lies below a directory too."""
    parts = [_WILD.get(token, re.escape(token)) for token in re.split(r"(\*\*/|\*\*|\*|\?)", text)]
    return re.compile("".join(parts) + r"(?:/.*)?", re.DOTALL)


_WILD: Final = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
