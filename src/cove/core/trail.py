"""Reading the audit trail: pages, the live tail, exports with their signed head, the key to verify them, retention.

Reads look at a bounded window at a time and let the loop turn in between, because a chain may have millions of lines
and a filter may match none of them.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from msgspec.structs import replace

from cove.core.access import may_see, require
from cove.core.audit import Audit
from cove.core.directory import Directory
from cove.core.validation import check_page
from cove.engine.clock import Clock, sleep
from cove.model.access import Principal, Scope
from cove.model.audit import SERVER_PROJECT, AuditEntry, AuditFilter, AuditLink, AuditPage
from cove.model.auditchain import head_line, is_as_sealed, line_of, rendered
from cove.model.errors import BadRequest, CoveError, EngineFailure, NotFound
from cove.model.ids import is_core_id
from cove.store.audit import CUT_BATCH
from cove.store.store import Store

log = logging.getLogger(__name__)

WINDOW: Final = 1024
"""Numbers of lines that one read looks at: 3 ms on the loop at most, whatever the filter."""

PIECE: Final = 256
"""Lines that one read returns."""

TURN: Final = 32
"""Lines that are checked and told anew before others have a turn: each takes 0.1 ms."""

RETENTION_S: Final = 3600.0
"""How often lines that are past their time are removed."""

EVENT_CHARS: Final = 64


class Trail:
    """Every way to read the trail. All raise Forbidden, and NotFound for what the key cannot see."""

    def __init__(self, audit: Audit, store: Store, directory: Directory, clock: Clock) -> None:
        self._audit = audit
        self._store = store
        self._rows = store.audit
        self._directory = directory
        self._clock = clock

    async def page(  # noqa: PLR0913 - what to read, all by name
        self,
        who: Principal,
        wanted: AuditFilter | None = None,
        *,
        project: str | None = None,
        limit: int = 100,
        cursor: int | None = None,
        newest: bool = False,
    ) -> AuditPage:
        """Lines from after `cursor` on; with `newest` those before it, newest first. Raises: BadRequest."""
        require(who, Scope.READ)
        check_page(limit)
        chain, wanted = self._found(who, wanted, project)
        known = self._rows.chain(chain, None)
        low, high = self._first(chain), known.link.seq
        if cursor is not None:
            low, high = (low, min(high, cursor)) if newest else (max(low, cursor + 1), high)
        found: list[AuditEntry] = []
        while low < high and len(found) <= limit:
            step = min(WINDOW, high - low)  # of one sandbox, too: it may have made all of them
            room = min(limit + 1 - len(found), PIECE)
            if newest:
                piece = self._rows.last(chain, wanted, first=high - step, end=high, limit=room)
                high = piece[-1].seq if len(piece) == room else high - step
            else:
                piece = self._rows.window(chain, wanted, first=low, end=low + step, limit=room)
                low = piece[-1].seq + 1 if len(piece) == room else low + step
            found += piece
            await asyncio.sleep(0)
        entries = tuple(found[:limit])
        return AuditPage(entries=entries, cursor=entries[-1].seq if len(found) > limit else None)

    @asynccontextmanager
    async def follow(
        self,
        who: Principal,
        wanted: AuditFilter | None = None,
        *,
        project: str | None = None,
        cursor: int | None = None,
    ) -> AsyncGenerator[AsyncIterator[AuditEntry]]:
        """Lines as they come, without end; from after `cursor` on, None: from now on. Raises: BadRequest."""
        require(who, Scope.READ)
        chain, wanted = self._found(who, wanted, project)
        start = self._rows.chain(chain, None).link.seq if cursor is None else cursor + 1
        lines = self._followed(chain, wanted, start)
        try:
            yield lines
        finally:
            await lines.aclose()

    async def _followed(self, chain: str, wanted: AuditFilter, start: int) -> AsyncGenerator[AuditEntry]:
        while True:
            end = self._rows.chain(chain, None).link.seq
            if start >= end:
                await self._audit.news()
                continue
            async for entry in self._between(chain, wanted, start, end):
                yield entry
            start = end

    @asynccontextmanager
    async def export(
        self, who: Principal, *, sandbox: str | None = None, project: str | None = None
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """All lines of a project, or of one sandbox, as they can be verified; the last is the signed head.

        Raises, also while iterating: EngineFailure (lines were removed by retention meanwhile).
        """
        require(who, Scope.READ)
        chain, wanted = self._found(who, AuditFilter(sandbox=sandbox), project)
        lines = self._exported(chain, wanted)
        try:
            yield lines
        finally:
            await lines.aclose()

    async def _exported(self, project: str, wanted: AuditFilter) -> AsyncGenerator[bytes]:
        sandbox = wanted.sandbox
        whole, chain = self._rows.chain(project, None), self._rows.chain(project, sandbox)
        if chain.anchor is not None:
            yield chain.anchor.encode()
        elif sandbox is not None:
            yield self._audit.sign(project, sandbox, AuditLink(), "start").encode()
        due = chain.first_seq
        async for entry in self._between(project, wanted, 0, whole.link.seq):
            number = entry.seq if sandbox is None else entry.sandbox_seq
            if number is not None and number < due:
                continue  # older than the key: it cannot be verified with this one
            if number != due:
                raise EngineFailure("lines of the trail were removed meanwhile: ask again")
            due += 1
            yield rendered(line_of(entry, of_sandbox=sandbox is not None))
        if due != chain.link.seq:
            raise EngineFailure("lines of the trail are missing", internal=f"{project} {sandbox}: {due}")
        yield head_line(
            self._audit.key_of(project),
            project=project,
            sandbox=sandbox,
            link=chain.link,
            count=due - chain.first_seq,
            at=self._clock.now(),
        )

    @asynccontextmanager
    async def retold(
        self, who: Principal, sandbox: str, telling: Callable[[Callable[[str], str]], Callable[[AuditEntry], bytes]]
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """A sandbox's lines in the form of another protocol, in which they can be verified too.

        `telling` gets what signs a text: HMAC-SHA256 in hex, by the key of `key` as the text that it shows. It gives
        what makes a line of an entry, or nothing. Every entry is verified before. Raises, also while iterating:
        EngineFailure (one is not as it was written).
        """
        require(who, Scope.READ)
        await self._audit.caught_up()
        project, wanted = self._found(who, AuditFilter(sandbox=sandbox), None)
        secret = self._audit.key_of(project).hex().encode()
        tell = telling(lambda text: hmac.new(secret, text.encode("utf-8", "surrogatepass"), "sha256").hexdigest())
        lines = self._retold(project, wanted, tell)
        try:
            yield lines
        finally:
            await lines.aclose()

    async def _retold(
        self, project: str, wanted: AuditFilter, tell: Callable[[AuditEntry], bytes]
    ) -> AsyncGenerator[bytes]:
        key, before = self._audit.key_of(project), ""
        due = self._rows.chain(project, wanted.sandbox).first_seq
        is_first = due > 0  # older ones are not there any more, so what came before this one is not known
        async for entry in self._between(project, wanted, 0, self._rows.chain(project, None).link.seq):
            if entry.sandbox_seq is None or entry.sandbox_seq < due:
                continue  # older than the key: it cannot be verified with this one
            if not is_first and not is_as_sealed(key, entry, before):
                raise EngineFailure("a line of this audit trail is not as it was written", internal=f"line {entry.seq}")
            is_first, before = False, entry.sandbox_hmac or ""
            if entry.sandbox_seq % TURN == 0:
                await asyncio.sleep(0)
            if line := tell(entry):
                yield line

    async def _between(self, chain: str, wanted: AuditFilter, start: int, end: int) -> AsyncGenerator[AuditEntry]:
        """Lines with numbers from `start` on and below `end`."""
        start = max(start, self._first(chain))
        while start < end:
            stop = min(start + WINDOW, end)
            found = self._rows.window(chain, wanted, first=start, end=stop, limit=PIECE)
            for entry in found:
                yield entry
            start = found[-1].seq + 1 if len(found) == PIECE else stop
            await asyncio.sleep(0)

    async def key(self, who: Principal, project: str | None = None) -> tuple[str, str]:
        """The project, and the key that verifies (and could forge) its exports, as hex. For an admin only.

        Not before it is on record. Raises: CapacityExceeded.
        """
        require(who, Scope.ADMIN)
        self._audit.check()
        chain = self._project(who, project)
        await self._audit.kept(self._audit.note("audit.key_shown", project=chain, sandbox=None, data={}, who=who))
        return chain, self._audit.key_of(chain).hex()

    async def retain_forever(self, retention_s: float) -> None:
        """Remove what is older than that, until cancelled."""
        while True:
            await sleep(self._clock, RETENTION_S)
            await self.retain(retention_s)

    async def retain(self, retention_s: float) -> None:
        """Remove, in every project, the beginning of the chain that is older than that."""
        before = self._clock.now() - retention_s
        try:
            for project in self._rows.projects():
                while await self._rows.cut(project, before=before, sign=self._audit.sign) == CUT_BATCH:
                    await asyncio.sleep(0.05)  # others write too
        except CoveError as error:
            log.warning("old lines of the audit trail could not be removed: %s %s", error, error.internal)

    def _found(self, who: Principal, wanted: AuditFilter | None, project: str | None) -> tuple[str, AuditFilter]:
        """Whose chain, and the filter with the sandbox's id in place of its name."""
        wanted = wanted or AuditFilter()
        if wanted.event is not None and not 0 < len(wanted.event) <= EVENT_CHARS:
            raise BadRequest(f"event has 1-{EVENT_CHARS} characters", field="event")
        if wanted.sandbox is None:
            return self._project(who, project), wanted
        sandbox, owner = self._sandbox(who, wanted.sandbox)
        if project is not None and project != owner:
            raise NotFound("no such sandbox")
        return owner, replace(wanted, sandbox=sandbox)

    def _project(self, who: Principal, project: str | None) -> str:
        if project is None or project == who.project:
            return who.project
        if not who.can(Scope.ADMIN):
            raise NotFound("no such project", field="project")
        if project != SERVER_PROJECT and self._store.projects.get(project) is None:
            raise NotFound("no such project", field="project")
        return project

    def _sandbox(self, who: Principal, ref: str) -> tuple[str, str]:
        """Id and project of a sandbox, also of one that nothing but the trail remembers."""
        try:
            sandbox = self._directory.known(who, ref)
        except NotFound:
            project = self._rows.project_of(ref) if is_core_id(ref) else None
            if project is None or not may_see(who, project):
                raise
            return ref, project
        return sandbox.id, sandbox.project

    def _first(self, project: str) -> int:
        """The number of the oldest line that is there."""
        found = self._rows.window(project, AuditFilter(), first=0, end=2**62, limit=1)
        return found[0].seq if found else 0
