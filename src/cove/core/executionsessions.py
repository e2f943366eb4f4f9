"""Sessions of executions: found or made by the caller's own id, one execution at a time, ended when nobody comes.

The store has the session, so it outlives the server as its sandbox does. The sandbox is made when it is first needed,
with the settings of the session's first execution, and ended by its own idle timer. What runs is one execution; others
wait in the order in which they came. Files may be put and got meanwhile.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Final

import msgspec

from cove.core.access import require
from cove.core.directory import Directory
from cove.core.sandboxes import Sandboxes
from cove.core.secrets import Secrets
from cove.engine.clock import Clock, sleep
from cove.model.access import Principal, Scope
from cove.model.credentials import Secret
from cove.model.errors import BadRequest, CapacityExceeded, CoveError, FileError, NotFound, SandboxGone, TooLarge
from cove.model.execution import ExecutionSettings, WrongRuntime
from cove.model.executionsession import Cleared, ExecutionSession, SessionInfo
from cove.model.request import SandboxFilter
from cove.model.sandbox import Sandbox
from cove.store.executionsessions import ExecutionSessionRows

log = logging.getLogger(__name__)

SESSION_IDLE_S: Final = 3600.0
WAITING: Final = 64
"""Most executions that wait for their turn in one session."""

SESSIONS: Final = 1000
"""Most sessions of a project."""

ID_BYTES: Final = 1024
PRUNE_S: Final = 60.0
LABEL: Final = "session"
"""Metadata of a session's sandbox: the session's id, as much as there is room for."""

KEPT: Final = MappingProxyType({"execution": "kept"})
"""Metadata of a sandbox that one execution without a session left behind, because it was to."""

_LABEL_CHARS: Final = 200
_PAGE: Final = 100
_CONTEXT: Final = "execution-session"

Make = Callable[[ExecutionSettings, float | None, dict[str, str]], Awaitable[Sandbox]]
"""Makes the sandbox of a session, with its idle time and metadata."""


class _Place:
    """Whose turn it is in one session."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class _Clearing:
    """A clearing of one project that is under way, and what the last one came to."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.times = 0
        self.last = (Cleared(removed=0), Cleared(removed=0))


class Taken:
    """A session whose turn somebody has. `settings` are those of its first execution.

    `is_fresh`: it has no sandbox yet, or got it in this turn.
    """

    def __init__(
        self, session: ExecutionSession, settings: ExecutionSettings, make: Callable[[], Awaitable[Sandbox]]
    ) -> None:
        self.session = session
        self.settings = settings
        self.is_fresh = session.sandbox is None
        self._id = session.sandbox
        self._make = make

    async def sandbox(self) -> str:
        """The id of its sandbox, which is made at the first call. Raises: SandboxGone (removed meanwhile), as create.

        Cancelling ends what was being made.
        """
        if self._id is None:
            self._id = (await self._make()).id
        return self._id


class ExecutionSessions:
    """Every operation on sessions. `idle_s` None: they end only when they are removed."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        rows: ExecutionSessionRows,
        *,
        sandboxes: Sandboxes,
        directory: Directory,
        secrets: Secrets,
        clock: Clock,
        idle_s: float | None = SESSION_IDLE_S,
    ) -> None:
        self._rows = rows
        self._sandboxes = sandboxes
        self._directory = directory
        self._secrets = secrets
        self._clock = clock
        self._idle_s = idle_s
        self._places: dict[tuple[str, str], _Place] = {}
        self._clearing: dict[str, _Clearing] = {}
        secrets.holders.append(lambda: rows.reseal(self._resealed))

    @asynccontextmanager
    async def take(
        self, who: Principal, session_id: str, runtime: str, settings: ExecutionSettings, make: Make
    ) -> AsyncGenerator[Taken]:
        """Have the turn in a session, which is made if there is none of that id; `settings` count only then.

        Raises: Forbidden, BadRequest, WrongRuntime, CapacityExceeded (too many wait, or too many sessions).
        """
        require(who, Scope.CREATE)
        require(who, Scope.EXEC)
        _check_id(session_id)
        key = (who.project, session_id)
        _check_runtime(self._living(*key), runtime)  # at once, where that can be: it need not wait to be refused
        place = self._places.setdefault(key, _Place())
        if place.users > WAITING:
            raise CapacityExceeded(f"{WAITING} executions wait for their turn in this session", retry_after_s=1)
        place.users += 1
        try:
            async with place.lock:
                session = await self._found_or_made(who, session_id, runtime, settings)
                await self._rows.touch(*key, at=self._clock.now())
                yield self._taken(who, session, make)
                await self._rows.touch(*key, at=self._clock.now())
        finally:
            place.users -= 1
            if not place.users:
                self._places.pop(key, None)

    def list(self, who: Principal) -> list[SessionInfo]:
        """The sessions of the caller's project, oldest first. Raises: Forbidden."""
        require(who, Scope.READ)
        return [self._info(one) for one in self._rows.of_project(who.project) if self._is_living(one)]

    async def use(self, who: Principal, session_id: str) -> str:
        """The sandbox of a session, for work with its files. Raises: NotFound, FileError (it has none yet)."""
        require(who, Scope.FILES)
        session = self._living(who.project, session_id)
        if session is None:
            raise NotFound("Session not found", field="sessionId")
        if session.sandbox is None:
            raise FileError("this session has no files yet: nothing has run in it", reason="not_found")
        await self._rows.touch(who.project, session_id, at=self._clock.now())
        return session.sandbox

    async def remove(self, who: Principal, session_id: str) -> bool:
        """End a session at once, with what runs in it; whether there was one. Raises: Forbidden, CoveError."""
        require(who, Scope.DESTROY)
        session = self._living(who.project, session_id)
        if session is None:
            return False
        await self._rows.remove(session)
        if session.sandbox is not None:
            await self._end(who, session.sandbox)
        return True

    async def clear(self, who: Principal) -> tuple[Cleared, Cleared]:
        """End all sessions of the caller's project, and what executions left behind in it; how many were each.

        Who asks while somebody else's is under way gets what came of that. Raises: Forbidden.
        """
        require(who, Scope.DESTROY)
        clearing = self._clearing.setdefault(who.project, _Clearing())
        clearing.users += 1
        try:
            seen = clearing.times
            async with clearing.lock:
                if clearing.times == seen:
                    clearing.last = await self._clear_sessions(who), await self._clear_kept(who)
                    clearing.times += 1
                return clearing.last
        finally:
            clearing.users -= 1
            if not clearing.users:
                self._clearing.pop(who.project, None)

    async def prune_forever(self) -> None:
        """Forget sessions whose sandbox has ended, and those that were never used and are idle."""
        while True:
            await sleep(self._clock, PRUNE_S)
            try:
                await self.prune()
            except CoveError as error:
                log.warning("sessions were not pruned: %s %s", error.public, error.internal)

    async def prune(self) -> None:
        """Do it once. Raises: CoveError."""
        for session in self._rows.all():
            if not self._is_living(session):
                await self._rows.remove(session)

    # Parts.

    async def _clear_sessions(self, who: Principal) -> Cleared:
        removed, errors = 0, builtins.list[str]()
        for session in self._rows.of_project(who.project):
            try:
                removed += await self.remove(who, session.id)
            except CoveError as error:
                log.warning("a session could not be ended: %s %s", error.public, error.internal)
                errors.append(error.public)
        return Cleared(removed=removed, errors=tuple(errors))

    async def _clear_kept(self, who: Principal) -> Cleared:
        removed, errors = 0, builtins.list[str]()
        for sandbox_id in self._kept(who):
            try:
                await self._end(who, sandbox_id)
                removed += 1
            except CoveError as error:
                log.warning("a sandbox could not be ended: %s %s", error.public, error.internal)
                errors.append(error.public)
        return Cleared(removed=removed, errors=tuple(errors))

    def _kept(self, who: Principal) -> builtins.list[str]:
        found, cursor = builtins.list[str](), None
        while True:
            page = self._sandboxes.list(who, SandboxFilter(metadata=dict(KEPT)), limit=_PAGE, cursor=cursor)
            found += [one.id for one in page.sandboxes]
            cursor = page.cursor
            if cursor is None:
                return found

    async def _found_or_made(
        self, who: Principal, session_id: str, runtime: str, settings: ExecutionSettings
    ) -> ExecutionSession:
        found = self._rows.get(who.project, session_id)
        if found is not None and self._is_living(found):
            _check_runtime(found, runtime)
            return found
        if found is not None:
            await self._rows.remove(found)
        if self._rows.count(who.project) >= SESSIONS:
            raise CapacityExceeded(f"a project has at most {SESSIONS} sessions", retry_after_s=60)
        now = self._clock.now()
        sealed = self._secrets.seal(Secret(_encode(settings)), _CONTEXT, who.project, session_id)
        session = ExecutionSession(
            project=who.project,
            id=session_id,
            runtime=runtime,
            settings=sealed,
            sandbox=None,
            created_at=now,
            last_used_at=now,
        )
        await self._rows.add(session)
        return session

    def _taken(self, who: Principal, session: ExecutionSession, make: Make) -> Taken:
        opened = self._secrets.open(session.settings, _CONTEXT, session.project, session.id)
        settings = msgspec.json.decode(opened.reveal(), type=ExecutionSettings)

        async def make_it() -> Sandbox:
            sandbox = await make(settings, self._idle_s, {LABEL: session.id.replace("\0", "")[:_LABEL_CHARS]})
            if not await self._rows.attach(session, sandbox.id):
                await self._end(who, sandbox.id)
                raise SandboxGone("the session was removed")
            return sandbox

        return Taken(session, settings, make_it)

    async def _end(self, who: Principal, sandbox_id: str) -> None:
        with suppress(NotFound):  # it has ended, and was forgotten
            await self._sandboxes.destroy(who, sandbox_id)

    def _living(self, project: str, session_id: str) -> ExecutionSession | None:
        session = self._rows.get(project, session_id) if _is_text(session_id) else None
        return session if session is not None and self._is_living(session) else None

    def _is_living(self, session: ExecutionSession) -> bool:
        """Whether its sandbox is there; without one: whether it was used not long ago."""
        if session.sandbox is not None:
            return self._directory.by_id(session.sandbox) is not None
        is_idle = self._idle_s is not None and self._clock.now() - session.last_used_at > self._idle_s
        return not is_idle or (session.project, session.id) in self._places

    def _info(self, session: ExecutionSession) -> SessionInfo:
        return SessionInfo(
            id=session.id,
            runtime=session.runtime,
            sandbox=session.sandbox,
            is_active=(session.project, session.id) in self._places,
            last_used_at=session.last_used_at,
        )

    def _resealed(self, session: ExecutionSession) -> str | None:
        """In the writer's thread."""
        return self._secrets.resealed(session.settings, _CONTEXT, session.project, session.id)


def _encode(settings: ExecutionSettings) -> str:
    return msgspec.json.encode(settings).decode()


def _check_id(session_id: str) -> None:
    """Raises: BadRequest, TooLarge."""
    if not _is_text(session_id):
        raise BadRequest("a session's id is text", field="sessionId")
    if not 0 < len(session_id.encode()) <= ID_BYTES:
        raise TooLarge(f"a session's id has 1-{ID_BYTES} bytes", field="sessionId")


def _is_text(text: str) -> bool:
    """Whether it is Unicode: JSON can spell half a character, which nothing can keep."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _check_runtime(session: ExecutionSession | None, runtime: str) -> None:
    """Raises: WrongRuntime."""
    if session is not None and session.runtime != runtime:
        raise WrongRuntime(session.runtime, runtime)
