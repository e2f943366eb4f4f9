"""Watched directories. The agent watches, and keeps what happened; here are scopes, limits and waking.

Whoever follows a watch, or waits for its next event, holds the sandbox awake; a watch that nobody follows does not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from cove.core.access import require
from cove.core.directory import Directory
from cove.core.execs import LONG_POLL_S
from cove.core.validation import check_command_id, check_count, check_path, check_timeout
from cove.engine.driver import Box
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, NotFound, SandboxGone, Unsupported
from cove.model.ids import new_core_id
from cove.model.watches import ASKABLE, Watch, WatchEnd, WatchEnded, WatchEvent, WatchSpec

FEATURE: Final = "watch"
KEEP_EVENTS: Final = (16, 65536)
PAGE_EVENTS: Final = (1, 65536)
MAX_GLOB: Final = 1024


class Watches:
    """Every operation on watches. All raise Forbidden, NotFound, Gone and SandboxError beside what they name."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def start(self, who: Principal, ref: str, spec: WatchSpec) -> Watch:
        """Begin to watch. What happens after the answer is kept, whoever reads it and when.

        Raises: BadRequest, FileError (no such directory), Conflict (too many), Unsupported (an agent of before).
        """
        require(who, Scope.FILES)
        _check(spec)
        async with self._directory.live(who, ref).lease() as box:
            _check_can(box)
            return await box.agent.watch_start(f"w{new_core_id()[:12]}", spec)

    async def list(self, who: Principal, ref: str) -> list[Watch]:
        """The watches that the sandbox knows, oldest first."""
        require(who, Scope.FILES)
        async with self._directory.live(who, ref).lease() as box:
            return await box.agent.watches() if _can(box) else []

    async def get(self, who: Principal, ref: str, watch_id: str) -> Watch:
        """One watch. Raises: NotFound."""
        check_command_id(watch_id)
        for watch in await self.list(who, ref):
            if watch.id == watch_id:
                return watch
        raise NotFound("no such watch")

    async def stop(self, who: Principal, ref: str, watch_id: str) -> None:
        """End a watch and forget its events. Raises: NotFound."""
        require(who, Scope.FILES)
        check_command_id(watch_id)
        async with self._directory.live(who, ref).lease() as box:
            _check_can(box)
            await box.agent.watch_stop(watch_id)

    @asynccontextmanager
    async def events(  # noqa: PLR0913 - what to read, all by name
        self,
        who: Principal,
        ref: str,
        watch_id: str,
        *,
        cursor: int = 0,
        follow: bool = False,
        limit: int = 1000,
        wait_s: float = 0.0,
    ) -> AsyncGenerator[AsyncIterator[WatchEvent]]:
        """Kept events from `cursor` on; the last is WatchEnded (all was read) or WatchPaused. Leaving stops no watch.

        Without `follow`: at most `limit`, and `wait_s` for the first one. Raises: NotFound, BadRequest.
        """
        require(who, Scope.FILES)
        check_command_id(watch_id)
        check_count(cursor, (0, 2**63 - 1), "cursor")
        check_count(limit, PAGE_EVENTS, "limit")
        check_timeout(wait_s, "wait_s", LONG_POLL_S)
        async with self._directory.live(who, ref).lease() as box:
            _check_can(box)
            async with box.agent.watch_events(
                watch_id, cursor=cursor, follow=follow, limit=limit, wait_s=wait_s
            ) as events:
                yield _ended_surely(events)


def _check(spec: WatchSpec) -> None:
    check_path(spec.path)
    check_count(spec.keep_events, KEEP_EVENTS, "keep_events")
    if not spec.kinds <= ASKABLE:
        raise BadRequest(f"kinds must be some of {', '.join(sorted(ASKABLE))}", field="kinds")
    if spec.glob is not None and (not spec.glob or len(spec.glob.encode()) > MAX_GLOB or "\0" in spec.glob):
        raise BadRequest("glob must have 1 to 1024 bytes and no NUL", field="glob")


def _can(box: Box) -> bool:
    return FEATURE in box.agent.hello.features


def _check_can(box: Box) -> None:
    if not _can(box):
        raise Unsupported("this sandbox was made by an older version of Cove and cannot watch: make a new one")


async def _ended_surely(events: AsyncIterator[WatchEvent]) -> AsyncIterator[WatchEvent]:
    """The events, with an end even if the sandbox died."""
    try:
        async for event in events:
            yield event
    except SandboxGone:
        yield WatchEnded(WatchEnd.SANDBOX_GONE, None)
