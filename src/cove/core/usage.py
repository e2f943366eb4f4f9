"""What was used and what it costs, for those who may ask; and the chore that reads the meters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.core.access import may_see, require
from cove.core.budgets import Budgets
from cove.core.directory import Directory
from cove.core.metering import Metering
from cove.core.validation import check_page
from cove.engine.clock import Clock, sleep
from cove.engine.supervisor import Supervisor
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, CoveError, NotFound
from cove.model.ids import is_core_id
from cove.model.sandbox import Sandbox
from cove.model.state import FINAL, State
from cove.model.usage import DAY_S, HOUR_S, Amounts, SandboxUsage, UsageQuery, UsageRow
from cove.store.store import Store

log = logging.getLogger(__name__)

HOURS_KEPT_S: Final = 7 * DAY_S
"""After so long the hours of a day become one row."""

GROUPS: Final = 3
"""By how many things a report is broken down at most."""

BILLS_AT_ONCE: Final = 100
"""Bills that are looked up before others have a turn: each takes 10 µs."""

LONGEST_OFFSET: Final = 1_000_000
CURSOR_DIGITS: Final = 7


class UsageReport(Struct, frozen=True, kw_only=True):
    """Lines in the order of their groups; `cursor`: there are more. `bills`: of the sandboxes that lines are about."""

    rows: tuple[UsageRow, ...]
    cursor: str | None
    bills: dict[str, SandboxUsage]


class UsageTotals(Struct, frozen=True, kw_only=True):
    """What a project's sandboxes used: those that live, and those that have ended and are not past their time."""

    at: float
    active: Amounts
    active_count: int
    ended: Amounts
    ended_count: int


class Usages:
    """Every question about usage."""

    def __init__(self, directory: Directory, metering: Metering, store: Store) -> None:
        self._directory = directory
        self._metering = metering
        self._store = store

    async def report(
        self, who: Principal, query: UsageQuery, *, limit: int = 1000, cursor: str | None = None
    ) -> UsageReport:
        """What the caller's project used, for an admin any or all of them. Up to now.

        Raises: Forbidden, BadRequest, NotFound (another's project).
        """
        require(who, Scope.READ)
        check_page(limit)
        if len(query.groups) > GROUPS or len(set(query.groups)) < len(query.groups):
            raise BadRequest(f"group_by takes up to {GROUPS} different words", field="group_by")
        offset = _offset(cursor)
        if query.project is not None and not may_see(who, query.project):
            raise NotFound("no such project", field="project")
        if not who.can(Scope.ADMIN):
            query = replace(query, project=who.project)
        if query.since is not None:
            # What began before is in a row of its hour, so the hour is asked for.
            query = replace(query, since=query.since // HOUR_S * HOUR_S)
        await self._flush()
        rows = await self._store.usage.report(query, limit=limit + 1, offset=offset)
        shown = tuple(rows[:limit])
        bills = (self._metering.bill(row.sandbox) for row in shown if row.sandbox is not None)
        return UsageReport(
            rows=shown,
            cursor=str(offset + limit) if len(rows) > limit else None,
            bills={bill.sandbox: bill for bill in bills if bill is not None},
        )

    async def of_sandbox(self, who: Principal, ref: str) -> SandboxUsage:
        """The bill of one sandbox up to now, also of one that ended so long ago that only its bill is kept.

        Raises: Forbidden, NotFound.
        """
        require(who, Scope.READ)
        try:
            sandbox = self._directory.known(who, ref)
        except NotFound:
            bill = self._metering.bill(ref) if is_core_id(ref) else None
            if bill is None or not may_see(who, bill.project):
                raise
            return bill
        if sandbox.state not in FINAL:
            await self._measure(who, sandbox.id)
        bill = self._metering.bill(sandbox.id)
        if bill is None:  # it never ran
            return SandboxUsage(
                sandbox=sandbox.id,
                project=sandbox.project,
                key=sandbox.key,
                name=sandbox.name,
                started_at=sandbox.created_at,
                ended_at=sandbox.ended_at,
            )
        return bill

    async def bills(self, who: Principal, sandboxes: Iterable[Sandbox]) -> dict[str, SandboxUsage]:
        """The bills of sandboxes that the caller was shown, up to now, by id; of one that never ran there is none.

        Raises: Forbidden.
        """
        require(who, Scope.READ)
        found: dict[str, SandboxUsage] = {}
        for number, one in enumerate(sandboxes):
            if number % BILLS_AT_ONCE == 0:
                await asyncio.sleep(0)
            bill = self._metering.bill(one.id) if may_see(who, one.project) else None
            if bill is not None:
                found[one.id] = bill
        return found

    async def totals(self, who: Principal) -> UsageTotals:
        """What the sandboxes of the caller's own project used up to now. Raises: Forbidden."""
        require(who, Scope.READ)
        await self._flush()
        count, ended = await self._store.usage.ended(who.project)
        live = self._metering.live(who.project)
        active = sum((one.amounts for one in live), Amounts())
        return UsageTotals(
            at=self._metering.now(), active=active, active_count=len(live), ended=ended, ended_count=count
        )

    async def _measure(self, who: Principal, sandbox_id: str) -> None:
        try:
            measured = await self._directory.live(who, sandbox_id).measure()
        except CoveError:
            return  # it ended meanwhile
        self._metering.measured(sandbox_id, measured.usage)

    async def _flush(self) -> None:
        try:
            await self._metering.flush()
        except CoveError as error:
            log.warning("usage is written later: %s %s", error, error.internal)


class MeterReader:
    """Reads the meters again and again, enforces budgets, and rolls up and forgets what is old."""

    def __init__(self, metering: Metering, budgets: Budgets, store: Store, clock: Clock) -> None:
        self._metering = metering
        self._budgets = budgets
        self._store = store
        self._clock = clock
        self._tidied_at = float("-inf")

    async def read_forever(
        self, supervisors: Callable[[], Iterable[Supervisor]], *, interval_s: float, keep_s: float
    ) -> None:
        """Until cancelled."""
        while True:
            await sleep(self._clock, interval_s)
            for supervisor in tuple(supervisors()):
                await self._look(supervisor)
            await self.flush()
            await self._tidy(keep_s)
            await self._budgets.enforce(supervisors())

    async def flush(self) -> None:
        """Write all that is not written, or keep it for the next time."""
        try:
            await self._metering.flush()
        except CoveError as error:
            log.warning("usage is written later: %s %s", error, error.internal)

    async def _look(self, supervisor: Supervisor) -> None:
        """What only measuring tells. A paused one uses nothing new."""
        if supervisor.sandbox.state is not State.RUNNING:
            return
        try:
            measured = await supervisor.measure()
        except CoveError as error:
            log.info("sandbox %s could not be measured: %s %s", supervisor.sandbox.id, error, error.internal)
            return
        self._metering.measured(measured.id, measured.usage)

    async def _tidy(self, keep_s: float) -> None:
        if self._clock.monotonic() - self._tidied_at < HOUR_S:
            return
        self._tidied_at = self._clock.monotonic()
        try:
            await self._tidy_all(self._clock.now(), keep_s)
        except CoveError as error:
            log.warning("old usage is tidied up later: %s %s", error, error.internal)

    async def _tidy_all(self, now: float, keep_s: float) -> None:
        hours_before = int(now - HOURS_KEPT_S) // DAY_S * DAY_S
        while await self._store.usage.roll_up(before=hours_before):
            await sleep(self._clock, 0.1)
        while await self._store.usage.purge(before=now - keep_s):
            await sleep(self._clock, 0.1)


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (
        cursor.isascii()
        and cursor.isdigit()
        and int(cursor[:CURSOR_DIGITS]) <= LONGEST_OFFSET
        and len(cursor) <= CURSOR_DIGITS
    ):
        raise BadRequest("no such cursor", field="cursor")
    return int(cursor)
