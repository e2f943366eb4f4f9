"""Operations on directory trees, as methods of the client: they walk in the sandbox and stream what they find.

Lists come as NDJSON in DATA, so the agent's back-pressure is credit and our memory a line and a piece, whatever the
tree is. All that arrives is hostile: lines are bounded, decoded into closed types, and their number is the caller's
business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from cove.agentlink.channel import Channel, Item, Refusal
from cove.agentlink.connection import Connection
from cove.agentlink.files import CALL_TIMEOUT_S, TREE_TIMEOUT_S, FileReader, opened_file
from cove.agentlink.frames import Kind
from cove.agentlink.refusals import file_error
from cove.agentlink.wire import MAX_PATH_TEXT, Natural, StatReply, violation
from cove.model.errors import AgentViolation
from cove.model.files import FileInfo, FileKind
from cove.model.trees import (
    FindEnd,
    Match,
    Replaced,
    Replacement,
    Search,
    SearchEnd,
    Stopped,
    TreeUsage,
    Unpacked,
    Unpacking,
    Walk,
)

MAX_LINE_BYTES: Final = 64 * 1024
LINES_AT_ONCE: Final = 256
"""So many lines are decoded between two turns of the loop: a millisecond."""

MAX_REPLACED_BYTES: Final = 16 * 1024 * 1024
"""The list of rewritten files is held whole; more than this of it is a breach."""

_GRACE_S: Final = 30.0
_REFUSAL_S: Final = 0.5
_MAX_TEXT: Final = 8192

M_co = TypeVar("M_co", covariant=True)
V = TypeVar("V")
W = TypeVar("W")


class _Reply(Protocol[M_co]):
    def to_model(self) -> M_co: ...


class MatchReply(Struct, frozen=True):
    """A line of `search`."""

    path: str
    line: Natural
    column: Natural
    length: Natural
    text: str
    cut: bool

    def to_model(self) -> Match:
        """The match as the core knows it, texts cut."""
        return Match(
            path=self.path[:MAX_PATH_TEXT],
            line=self.line,
            column=self.column,
            length=self.length,
            text=self.text[:_MAX_TEXT],
            cut=self.cut,
        )


class ReplacedReply(Struct, frozen=True):
    """A line of `replace`."""

    path: str
    replacements: Natural

    def to_model(self) -> Replaced:
        """The file as the core knows it."""
        return Replaced(path=self.path[:MAX_PATH_TEXT], replacements=self.replacements)


class FindReply(Struct, frozen=True):
    """RESULT of `find`."""

    entries: Natural
    unreadable: Natural
    stopped: Stopped | None = None

    def to_model(self) -> FindEnd:
        """The end as the core knows it."""
        return FindEnd(entries=self.entries, unreadable=self.unreadable, stopped=self.stopped)


class SearchReply(Struct, frozen=True):
    """RESULT of `search`."""

    matches: Natural
    files: Natural
    binary: Natural
    too_large: Natural
    unreadable: Natural
    stopped: Stopped | None = None

    def to_model(self) -> SearchEnd:
        """The end as the core knows it."""
        return SearchEnd(
            matches=self.matches,
            files=self.files,
            binary=self.binary,
            too_large=self.too_large,
            unreadable=self.unreadable,
            stopped=self.stopped,
        )


class ReplaceReply(Struct, frozen=True):
    """RESULT of `replace`."""

    replacements: Natural
    searched: Natural
    binary: Natural
    too_large: Natural
    unreadable: Natural
    stopped: Stopped | None = None

    def to_model(self) -> Replacement:
        """The end as the core knows it, still without the files."""
        return Replacement(
            files=(),
            replacements=self.replacements,
            searched=self.searched,
            binary=self.binary,
            too_large=self.too_large,
            unreadable=self.unreadable,
            stopped=self.stopped,
        )


class UsageReply(Struct, frozen=True):
    """RESULT of `usage`."""

    bytes: Natural
    allocated: Natural
    files: Natural
    directories: Natural
    symlinks: Natural
    others: Natural
    unreadable: Natural
    stopped: Stopped | None = None

    def to_model(self) -> TreeUsage:
        """The sum as the core knows it."""
        return TreeUsage(
            bytes=self.bytes,
            allocated_bytes=self.allocated,
            files=self.files,
            directories=self.directories,
            symlinks=self.symlinks,
            others=self.others,
            unreadable=self.unreadable,
            stopped=self.stopped,
        )


class UnpackReply(Struct, frozen=True):
    """RESULT of `unpack`."""

    entries: Natural
    bytes: Natural


class TreeCalls:
    """The part of the client that deals with trees. All raise FileError, SandboxGone, AgentTimeout, AgentViolation."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(
        self, path: str, walk: Walk, *, kinds: Sequence[FileKind] = (), limit: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[list[FileInfo] | FindEnd]]:
        """List a tree: pieces of entries, last FindEnd. Leaving the context stops the agent."""
        call = _walk_call("find", path, walk) | {"kinds": [kind.value for kind in kinds], "limit": limit}
        return self._streamed(call, StatReply, FindReply, walk)

    def search(
        self, path: str, walk: Walk, search: Search, *, limit: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Match] | SearchEnd]]:
        """Search a tree or file: pieces of matches, last SearchEnd. Leaving the context stops the agent."""
        call = _search_call("search", path, walk, search) | {"limit": limit}
        return self._streamed(call, MatchReply, SearchReply, walk)

    async def replace(  # noqa: PLR0913 - the operation's own fields
        self, path: str, walk: Walk, search: Search, replacement: str, *, limit: int, dry_run: bool = False
    ) -> Replacement:
        """Rewrite what matches in up to `limit` files, each by a rename. Cancelling leaves some rewritten."""
        call = _search_call("replace", path, walk, search)
        call |= {"replacement": replacement, "limit": limit, "dry_run": dry_run}
        files: list[Replaced] = []
        size = 0
        async with self._streamed(call, ReplacedReply, ReplaceReply, walk) as pieces:
            async for piece in pieces:
                if isinstance(piece, Replacement):
                    return Replacement(
                        files=tuple(files),
                        replacements=piece.replacements,
                        searched=piece.searched,
                        binary=piece.binary,
                        too_large=piece.too_large,
                        unreadable=piece.unreadable,
                        stopped=piece.stopped,
                    )
                files += piece
                size += sum(len(one.path) + 100 for one in piece)
                if size > MAX_REPLACED_BYTES:
                    raise self._breach("a list of rewritten files that does not end")
        raise self._breach("a replacement without its end")

    async def usage(self, path: str, walk: Walk) -> TreeUsage:
        """Add up a tree."""
        channel = self._connection.open(_walk_call("usage", path, walk))
        try:
            return (await channel.reply(UsageReply, walk.timeout_s + _GRACE_S)).to_model()
        except Refusal as refusal:
            raise file_error(refusal) from refusal
        finally:
            channel.cancel()

    def pack(
        self, path: str, *, exclude: Sequence[str] = (), gzip: bool = False, max_bytes: int = 0
    ) -> AbstractAsyncContextManager[FileReader]:
        """A directory as a tar stream, names relative to it. Leaving early stops the agent."""
        call: dict[str, object] = {"op": "pack", "path": path, "exclude": list(exclude)}
        call |= {"gzip": gzip, "max_bytes": max_bytes}
        return opened_file(self._connection.open(call, takes_output=True))

    async def unpack(self, path: str, chunks: AsyncIterable[bytes], unpacking: Unpacking) -> Unpacked:
        """Unpack a tar stream into the directory `path`, made if missing. A failure leaves what came before it."""
        call: dict[str, object] = {
            "op": "unpack",
            "path": path,
            "owner": unpacking.owner,
            "owner_group": unpacking.group,
        }
        call |= {"owners": unpacking.owners, "special": unpacking.special, "any_link": unpacking.any_links}
        channel = self._connection.open(call | {"max_bytes": unpacking.max_bytes})
        try:
            await channel.send_all(chunks, timeout_s=CALL_TIMEOUT_S)
            reply = await channel.reply(UnpackReply, TREE_TIMEOUT_S)
        except Refusal as refusal:
            raise file_error(refusal) from refusal
        finally:
            channel.cancel()
        return Unpacked(entries=reply.entries, bytes=reply.bytes)

    async def link(
        self, path: str, target: str, *, hard: bool = False, overwrite: bool = False, parents: bool = False
    ) -> FileInfo:
        """Make a symbolic link, or with `hard` another name of the file `target`."""
        call: dict[str, object] = {"op": "link", "path": path, "target": target, "hard": hard}
        channel = self._connection.open(call | {"overwrite": overwrite, "parents": parents})
        try:
            return (await channel.reply(StatReply, CALL_TIMEOUT_S)).to_model()
        except Refusal as refusal:
            raise file_error(refusal) from refusal

    def _breach(self, what: str) -> AgentViolation:
        error = violation(what)
        self._connection.abort(error)
        return error

    @asynccontextmanager
    async def _streamed(
        self, call: dict[str, object], line: type[_Reply[V]], end: type[_Reply[W]], walk: Walk
    ) -> AsyncGenerator[AsyncIterator[list[V] | W], None]:
        channel = self._connection.open(call, takes_output=True)
        try:
            # Waited for a moment: what the agent refuses is then refused before anything is told.
            first: Item | None = (Kind.DATA, b"")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFUSAL_S):
                    first = await _next(channel, None)
            yield _pieces(channel, first, line, end, walk.timeout_s + _GRACE_S)
        finally:
            channel.cancel()


async def _next(channel: Channel, timeout_s: float | None) -> Item | None:
    try:
        return await channel.next_item(timeout_s)
    except Refusal as refusal:
        raise file_error(refusal) from refusal


async def _pieces(
    channel: Channel, item: Item | None, line: type[_Reply[V]], end: type[_Reply[W]], timeout_s: float
) -> AsyncIterator[list[V] | W]:
    rest = b""
    while item is not None:
        kind, payload = item
        if kind is not Kind.DATA:
            raise channel.breach(f"{kind.name} among lines")
        *lines, rest = (rest + payload).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise channel.breach("a line that is too long")
        for start in range(0, len(lines), LINES_AT_ONCE):
            yield [_decoded(channel, each, line) for each in lines[start : start + LINES_AT_ONCE]]
        item = await _next(channel, timeout_s)
    if rest:
        raise channel.breach("half a line")
    yield channel.final(end).to_model()


def _decoded(channel: Channel, data: bytes, line: type[_Reply[V]]) -> V:
    if len(data) > MAX_LINE_BYTES:
        raise channel.breach("a line that is too long")
    return channel.decode(data, line).to_model()


def _walk_call(op: str, path: str, walk: Walk) -> dict[str, object]:
    return {
        "op": op,
        "path": path,
        "depth": walk.depth,
        "glob": list(walk.glob),
        "exclude": list(walk.exclude),
        "timeout_ms": max(1, round(walk.timeout_s * 1000)),
    }


def _search_call(op: str, path: str, walk: Walk, search: Search) -> dict[str, object]:
    return _walk_call(op, path, walk) | {
        "pattern": search.pattern,
        "literal": search.literal,
        "ignore_case": search.ignore_case,
        "max_file_bytes": search.max_file_bytes,
        "max_line_bytes": search.max_line_bytes,
    }
