"""The requests about directory trees, as data, and their streams of lines. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

from cove.sdk import models, tree_models
from cove.sdk.errors import BadAnswer, FileError, from_problem
from cove.sdk.file_calls import file_path
from cove.sdk.models import FileInfo
from cove.sdk.transport import Call, Retry
from cove.sdk.tree_models import Match, Replacement, TreeUsage
from cove.sdk.units import Duration, parse_seconds
from cove.sdk.wire import box_path, checked, nothing

T = TypeVar("T")
Patterns = str | Sequence[str]
"""One glob, or several of which any may match."""

MAX_LINE_BYTES: Final = 1024 * 1024
LONGEST_S: Final = 3600.0
"""The server's own bound of a walk, sent where the caller gives none."""


def _list(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _flag(value: bool) -> str | None:  # noqa: FBT001 - a value to be spelled
    return "true" if value else None


def _seconds(timeout: Duration | None) -> float:
    return parse_seconds(timeout, "timeout") or LONGEST_S


def find(  # noqa: PLR0913 - the wire's own options
    ref: str,
    path: str,
    *,
    glob: Patterns,
    exclude: Patterns,
    kind: Patterns,
    depth: int,
    limit: int,
    timeout: Duration | None,
) -> Call[None]:
    """GET …/files/find: a stream of entries."""
    query: dict[str, str | list[str] | None] = {
        "path": file_path(path),
        "glob": _list(glob),
        "exclude": _list(exclude),
        "kind": _list(kind),
        "depth": str(depth),
        "limit": str(limit),
        "timeout_s": str(_seconds(timeout)),
    }
    return Call("GET", box_path(ref, "/files/find"), nothing, query=query, retry=Retry.LOST)


def search(  # noqa: PLR0913 - the wire's own options
    ref: str,
    path: str,
    pattern: str,
    *,
    literal: bool,
    ignore_case: bool,
    glob: Patterns,
    exclude: Patterns,
    depth: int,
    limit: int,
    timeout: Duration | None,
) -> Call[None]:
    """GET …/files/search: a stream of matches."""
    query: dict[str, str | list[str] | None] = {
        "path": file_path(path),
        "pattern": pattern,
        "literal": _flag(literal),
        "ignore_case": _flag(ignore_case),
        "glob": _list(glob),
        "exclude": _list(exclude),
        "depth": str(depth),
        "limit": str(limit),
        "timeout_s": str(_seconds(timeout)),
    }
    return Call("GET", box_path(ref, "/files/search"), nothing, query=query, retry=Retry.LOST)


def replace(  # noqa: PLR0913 - the wire's own options
    ref: str,
    path: str,
    pattern: str,
    replacement: str,
    *,
    literal: bool,
    ignore_case: bool,
    glob: Patterns,
    exclude: Patterns,
    depth: int,
    limit: int,
    dry_run: bool,
    timeout: Duration | None,
) -> Call[Replacement]:
    """POST …/files/replace."""
    body = {
        "path": file_path(path),
        "pattern": pattern,
        "replacement": replacement,
        "literal": literal,
        "ignore_case": ignore_case,
        "glob": _list(glob),
        "exclude": _list(exclude),
        "depth": depth,
        "limit": limit,
        "dry_run": dry_run,
        "timeout_s": _seconds(timeout),
    }

    def parse(wire: Any) -> Replacement:
        return tree_models.replacement(checked(wire))

    return Call("POST", box_path(ref, "/files/replace"), parse, json=body)


def usage(ref: str, path: str, *, exclude: Patterns, timeout: Duration | None) -> Call[TreeUsage]:
    """GET …/files/usage."""
    query: dict[str, str | list[str] | None] = {
        "path": file_path(path),
        "exclude": _list(exclude),
        "timeout_s": str(_seconds(timeout)),
    }

    def parse(wire: Any) -> TreeUsage:
        return tree_models.usage(checked(wire))

    return Call("GET", box_path(ref, "/files/usage"), parse, query=query, retry=Retry.LOST)


def pack(ref: str, path: str, *, exclude: Patterns, gzip: bool, max_bytes: int) -> Call[None]:
    """GET …/files/archive: a tar stream."""
    query: dict[str, str | list[str] | None] = {
        "path": file_path(path),
        "exclude": _list(exclude),
        "gzip": _flag(gzip),
        "max_bytes": str(max_bytes) if max_bytes else None,
    }
    return Call("GET", box_path(ref, "/files/archive"), nothing, query=query, retry=Retry.LOST)


def unpack(  # noqa: PLR0913 - the wire's own options
    ref: str, path: str, data: Any, *, owner: str, group: str, owners: bool, special: bool, any_links: bool
) -> Call[int]:
    """PUT …/files/archive: a tar of any size, packed by gzip or not at all; gives the number of its entries."""
    query = {
        "path": file_path(path),
        "owner": owner or None,
        "group": group or None,
        "owners": _flag(owners),
        "special": _flag(special),
        "any_links": _flag(any_links),
    }

    def parse(wire: Any) -> int:
        return int(checked(wire).get("entries") or 0)

    return Call("PUT", box_path(ref, "/files/archive"), parse, query=query, body=data)


def link(  # noqa: PLR0913 - the wire's own options
    ref: str, path: str, target: str, *, hard: bool, overwrite: bool, parents: bool
) -> Call[FileInfo]:
    """POST …/files/link."""
    body = {"path": file_path(path), "target": target, "hard": hard, "overwrite": overwrite, "parents": parents}

    def parse(wire: Any) -> FileInfo:
        return models.file(checked(wire))

    return Call("POST", box_path(ref, "/files/link"), parse, json=body)


class LineParser(Generic[T]):
    """Lines of a stream as they arrive: feed it bytes, it yields values; `close` checks that the stream was whole."""

    def __init__(self, read: Callable[[dict[str, Any]], T]) -> None:
        self._read = read
        self._rest = b""
        self._end: dict[str, Any] | None = None

    def feed(self, piece: bytes) -> Iterator[T]:
        """Take the next bytes and yield the values that they complete.

        Raises: BadAnswer (no such lines), whatever the server says in a line of its own.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise BadAnswer("the server sent a line longer than 1 MiB")
        for line in lines:
            if line:
                yield from self._take(line)

    def close(self) -> None:
        """Look at how it ended.

        Raises: BadAnswer (in the middle), FileError (its time was over before all was seen).
        """
        if self._end is None:
            raise BadAnswer("the server's answer ended in the middle", retryable=True)
        if self._end.get("stopped") == "timeout":
            raise FileError("the time was over before all was seen", reason="busy", hint="give a smaller tree, or time")

    def _take(self, line: bytes) -> Iterator[T]:
        try:
            wire = checked(json.loads(line))
        except ValueError as error:
            raise BadAnswer("the server sent a line that is not JSON") from error
        if "error" in wire:
            raise from_problem(checked(wire["error"]))
        if "end" in wire and "path" not in wire:
            self._end = checked(wire["end"])
            return
        try:
            value = self._read(wire)
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer("the server sent a line of another form") from error
        yield value


def entries() -> LineParser[FileInfo]:
    """Return the reader of `find`."""
    return LineParser(models.file)


def matches() -> LineParser[Match]:
    """Return the reader of `search`."""
    return LineParser(tree_models.match)
