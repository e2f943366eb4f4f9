"""Watching directories in the sandbox, as methods of the client. The agent is hostile: what it says is checked here.

Events come as lines of JSON over DATA, so that credit bounds them; a line has a largest size, and so has every text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Final, TypeVar

from msgspec import Meta, Struct

from cove.agentlink.channel import Channel, Refusal
from cove.agentlink.connection import Connection
from cove.agentlink.files import CALL_TIMEOUT_S, TREE_TIMEOUT_S
from cove.agentlink.frames import Kind
from cove.agentlink.refusals import command_error, file_error
from cove.agentlink.wire import Empty, Id, Natural, seconds
from cove.model.errors import CoveError
from cove.model.watches import (
    Change,
    ChangeKind,
    Lost,
    Watch,
    WatchEnd,
    WatchEnded,
    WatchEvent,
    WatchPaused,
    WatchSpec,
)

MAX_LINE_BYTES: Final = 64 * 1024
"""Two paths of 4096 bytes, escaped by JSON to six times that, and the rest."""

_MAX_PATH_TEXT: Final = 8192
_PAGE_BYTES: Final = 1024 * 1024
_OBJECT_REASONS: Final = frozenset({"exists", "limit", "gone", "canceled"})

T = TypeVar("T")
PathText = Annotated[str, Meta(max_length=_MAX_PATH_TEXT)]


class WatchReply(Struct, frozen=True):
    """*watch*: RESULT of `watch_start`."""

    id: Id
    path: PathText
    recursive: bool
    kinds: Annotated[tuple[ChangeKind, ...], Meta(max_length=8)]
    started_at: float
    running: bool
    cursor: Natural
    oldest_cursor: Natural
    glob: Annotated[str, Meta(max_length=1024)] = ""
    reason: str = ""

    def to_model(self) -> Watch:
        """The watch as the core knows it."""
        return Watch(
            id=self.id,
            path=self.path,
            recursive=self.recursive,
            kinds=self.kinds,
            glob=self.glob or None,
            started_at=seconds(self.started_at),
            ended=None if self.running else _why(self.reason),
            cursor=self.cursor,
            oldest_cursor=self.oldest_cursor,
        )


class WatchesReply(Struct, frozen=True):
    """RESULT of `watches`."""

    watches: Annotated[tuple[WatchReply, ...], Meta(max_length=64)]


class EventsReply(Struct, frozen=True):
    """RESULT of `watch_events`."""

    cursor: Natural
    ended: bool
    reason: str = ""


class LineReply(Struct, frozen=True):
    """A line of `watch_events`: a change, or (`gap`) how many were lost."""

    kind: Annotated[str, Meta(max_length=16)]
    at: float = 0.0
    path: PathText = ""
    source: PathText | None = None
    directory: bool = False
    lost: Natural = 0


class WatchCalls:
    """The part of the client that deals with watches. All raise SandboxGone, AgentTimeout, AgentViolation."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def watch_start(self, id: str, spec: WatchSpec) -> Watch:  # noqa: A002
        """Begin to watch; what happens from the answer on is kept. A large tree takes a while.

        Raises: FileError (no such directory), Conflict (too many watches, or the machine's limit), BadRequest.
        """
        call: dict[str, object] = {"op": "watch_start", "id": id, "path": spec.path, "recursive": spec.recursive}
        call |= {"kinds": sorted(spec.kinds), "glob": spec.glob or "", "keep_events": spec.keep_events}
        try:
            return (await self._connection.open(call).reply(WatchReply, TREE_TIMEOUT_S)).to_model()
        except Refusal as refusal:
            raise _start_error(refusal) from refusal

    async def watches(self) -> list[Watch]:
        """All watches, oldest first; at most 64."""
        return [one.to_model() for one in (await self._watch_call({"op": "watches"}, WatchesReply)).watches]

    async def watch_stop(self, id: str) -> None:  # noqa: A002
        """End a watch and forget its events. Raises: NotFound."""
        await self._watch_call({"op": "watch_stop", "id": id}, Empty)

    @asynccontextmanager
    async def watch_events(
        self,
        id: str,  # noqa: A002
        *,
        cursor: int = 0,
        follow: bool = False,
        limit: int = 1000,
        wait_s: float = 0.0,
    ) -> AsyncGenerator[AsyncIterator[WatchEvent], None]:
        """Kept events from `cursor` on; the last one is WatchEnded or WatchPaused, with the cursor to go on from.

        Without `follow`: at most `limit`, and `wait_s` for the first. Leaving the context ends the reading, not the
        watch. Raises, also while iterating: NotFound, BadRequest (cursor beyond the last event).
        """
        call: dict[str, object] = {"op": "watch_events", "id": id, "cursor": cursor, "follow": follow, "limit": limit}
        call["wait_ms"] = round(wait_s * 1000)
        channel = self._connection.open(call, takes_output=True)
        try:
            events = _events(channel, cursor, None if follow else CALL_TIMEOUT_S + wait_s)
            yield events if follow else _page(channel, events, limit)
        finally:
            channel.cancel()

    async def _watch_call(self, call: Mapping[str, object], kind: type[T]) -> T:
        try:
            return await self._connection.open(call).reply(kind, CALL_TIMEOUT_S)
        except Refusal as refusal:
            raise command_error(refusal) from refusal


def _start_error(refusal: Refusal) -> CoveError:
    return command_error(refusal) if refusal.kind in _OBJECT_REASONS else file_error(refusal)


async def _events(channel: Channel, cursor: int, timeout_s: float | None) -> AsyncIterator[WatchEvent]:
    held = bytearray()
    try:
        while (item := await channel.next_item(timeout_s)) is not None:
            if item[0] is not Kind.DATA:
                raise channel.breach(f"{item[0].name} from a watch")
            *lines, rest = (held + item[1]).split(b"\n")
            held = bytearray(rest)
            if len(held) > MAX_LINE_BYTES:
                raise channel.breach("an event without end")
            for line in lines:
                event = _event(channel, line, cursor)
                cursor = event.cursor
                yield event
    except Refusal as refusal:
        raise command_error(refusal) from refusal
    reply = channel.final(EventsReply)
    if held:
        raise channel.breach("half an event")
    yield WatchEnded(_why(reply.reason), reply.cursor) if reply.ended else WatchPaused(reply.cursor)


async def _page(channel: Channel, events: AsyncIterator[WatchEvent], limit: int) -> AsyncIterator[WatchEvent]:
    """What was asked for and no more, because whoever reads a page holds all of it. It may end before the limit."""
    count, size = 0, 0
    async for event in events:
        yield event
        if isinstance(event, WatchEnded | WatchPaused):
            return
        if isinstance(event, Change):
            size += len(event.path) + len(event.source or "")
        count += 1
        if count > 2 * limit:  # a gap may stand before each
            raise channel.breach("more events than were asked for")
        if size > _PAGE_BYTES:
            yield WatchPaused(event.cursor)
            return


def _event(channel: Channel, line: bytes | bytearray, cursor: int) -> Change | Lost:
    one = channel.decode(line, LineReply)
    if one.kind == "gap":
        return Lost(one.lost, cursor + one.lost)
    try:
        kind = ChangeKind(one.kind)
    except ValueError:
        raise channel.breach("an event of a watch that is none") from None
    return Change(
        kind=kind,
        path=one.path,
        source=one.source,
        is_directory=one.directory,
        at=seconds(one.at),
        cursor=cursor + 1,
    )


def _why(reason: str) -> WatchEnd:
    try:
        return WatchEnd(reason)
    except ValueError:
        return WatchEnd.STOPPED
