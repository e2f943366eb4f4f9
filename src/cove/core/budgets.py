"""What every project and key has spent, and what happens when that is more than its budget.

The sums are kept in memory: read once at the start, then added to by the meters. A create is checked against the
money of that moment; what runs is looked at with every reading of the meters, so a budget is passed by what runs costs
between two readings at most.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from cove.core.audit import Audit
from cove.core.metering import Metering
from cove.core.quotabook import QuotaBook
from cove.engine.clock import Clock
from cove.engine.supervisor import Supervisor
from cove.model.errors import BudgetExceeded, CoveError
from cove.model.quota import SUBJECT_KEY, BudgetAction, BudgetPeriod, Quota
from cove.model.sandbox import Sandbox
from cove.model.state import EndReason, State
from cove.model.usage import DAY_S, NANO, money
from cove.store.store import Store

log = logging.getLogger(__name__)

WARN_AT: Final = 0.8
"""The part of a budget at which a warning is told."""


class _Spent:
    """What one subject has spent, and from when the periods' sums are."""

    __slots__ = ("day", "day_start", "month", "month_start", "total")

    def __init__(self) -> None:
        self.total = self.day = self.month = 0
        self.day_start = self.month_start = 0


def period_start(period: BudgetPeriod, now: float) -> int:
    """When the period began that `now` is in, in Unix seconds (UTC). TOTAL: 0."""
    if period is BudgetPeriod.TOTAL:
        return 0
    moment = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return int((moment if period is BudgetPeriod.DAY else moment.replace(day=1)).timestamp())


def period_end(period: BudgetPeriod, now: float) -> int | None:
    """When it ends. TOTAL: never."""
    if period is BudgetPeriod.TOTAL:
        return None
    begun = datetime.fromtimestamp(period_start(period, now), UTC)
    if period is BudgetPeriod.DAY:
        return int((begun + timedelta(days=1)).timestamp())
    return int((begun + timedelta(days=32)).replace(day=1).timestamp())


class Budgets:
    """The money of all subjects."""

    def __init__(self, book: QuotaBook, store: Store, clock: Clock, metering: Metering, audit: Audit) -> None:
        self._book = book
        self._clock = clock
        self._metering = metering
        self._audit = audit
        self._store = store
        self._spent: dict[str, _Spent] = {}
        self._told: dict[tuple[str, str], int] = {}
        self._day = self._month = 0
        for project, key, cost in store.usage.spent():
            for subject in book.chain(project, key):
                self._of(subject).total += cost
        self._read_periods(clock.now())
        metering.on_cost = self._add

    def spent(self, subject: str, period: BudgetPeriod) -> int:
        """What a subject has spent in the period that is now."""
        spent = self._spent.get(subject)
        if spent is None:
            return 0
        if period is BudgetPeriod.TOTAL:
            return spent.total
        start = period_start(period, self._clock.now())
        if period is BudgetPeriod.DAY:
            return spent.day if spent.day_start == start else 0
        return spent.month if spent.month_start == start else 0

    def now(self) -> float:
        """The moment by which periods are told."""
        return self._clock.now()

    async def settle(self) -> None:
        """Read the meters, so that sums are of now."""
        await self._metering.advance()

    def has_budget(self, subjects: Iterable[str]) -> bool:
        """Whether one of them is limited in money."""
        return any(self._book.quota(one).budget_nano is not None for one in subjects)

    def check(self, subjects: Iterable[str]) -> None:
        """Raises: BudgetExceeded when the budget of one of them is used up, as of the last `settle`."""
        for subject in subjects:
            quota = self._book.quota(subject)
            if self._is_used_up(subject, quota):
                raise self._error(subject, quota)

    def check_resume(self, sandbox: Sandbox) -> None:
        """Raises: BudgetExceeded for a paused sandbox that a used-up budget keeps paused."""
        kept = [
            one
            for one in self._book.chain(sandbox.project, sandbox.key)
            if self._book.quota(one).budget_action is not BudgetAction.REFUSE
        ]
        self.check(kept)

    async def enforce(self, supervisors: Iterable[Supervisor]) -> None:
        """Warn of budgets that run out, and pause or stop what runs on one that has."""
        over = [subject for subject in sorted(self._book.limited) if self._warned(subject)]
        if not over:
            return
        for supervisor in tuple(supervisors):
            sandbox = supervisor.sandbox
            chain = self._book.chain(sandbox.project, sandbox.key)
            for subject in over:
                if subject in chain:
                    await self._act(supervisor, subject)

    def _warned(self, subject: str) -> bool:
        """Whether its budget is used up; told once in a period, and once before."""
        quota = self._book.quota(subject)
        if quota.budget_nano is None:
            return False
        spent = self.spent(subject, quota.budget_period)
        is_over = spent >= quota.budget_nano
        if is_over:
            self._tell("quota.budget-exceeded", subject, quota, spent)
        elif spent >= quota.budget_nano * WARN_AT:
            self._tell("quota.budget-warning", subject, quota, spent)
        return is_over

    def _tell(self, event: str, subject: str, quota: Quota, spent: int) -> None:
        start = period_start(quota.budget_period, self._clock.now())
        mark = hash((start, quota.budget_nano, quota.budget_period))
        if self._told.get((event, subject)) == mark:
            return
        self._told[event, subject] = mark
        log.warning("%s: %s has spent %s of %s", event, subject, money(spent), money(quota.budget_nano or 0))
        kind, _, of = subject.partition(":")
        key = self._store.keys.by_id(of) if kind == SUBJECT_KEY else None
        project = of if kind != SUBJECT_KEY else "" if key is None else key.project
        data = {"subject": subject, "spent": money(spent), "budget": money(quota.budget_nano or 0)}
        self._audit.note(event, project=project, sandbox=None, data=data)

    async def _act(self, supervisor: Supervisor, subject: str) -> None:
        quota, sandbox = self._book.quota(subject), supervisor.sandbox
        if quota.budget_action is BudgetAction.STOP and sandbox.state in {State.RUNNING, State.PAUSED}:
            supervisor.end_soon(EndReason.BUDGET, f"the budget of this {subject.partition(':')[0]} is used up")
        elif quota.budget_action is BudgetAction.PAUSE and sandbox.state is State.RUNNING:
            try:
                await supervisor.pause()
            except CoveError as error:
                log.warning("sandbox %s was not paused for its budget: %s %s", sandbox.id, error, error.internal)

    def _is_used_up(self, subject: str, quota: Quota) -> bool:
        return quota.budget_nano is not None and self.spent(subject, quota.budget_period) >= quota.budget_nano

    def _error(self, subject: str, quota: Quota) -> BudgetExceeded:
        whose = "key" if subject.startswith(SUBJECT_KEY) else "project"
        now = self._clock.now()
        end = period_end(quota.budget_period, now)
        limit, used = quota.budget_nano or 0, self.spent(subject, quota.budget_period)
        per = "" if end is None else f" per {quota.budget_period.value}"
        return BudgetExceeded(
            f"this {whose} has spent {money(used)} of its budget of {money(limit)}{per}",
            field="budget",
            limit=limit / NANO,
            used=used / NANO,
            retry_after_s=None if end is None else max(1, int(end - now) + 1),
        )

    def _of(self, subject: str) -> _Spent:
        spent = self._spent.get(subject)
        if spent is None:
            spent = self._spent[subject] = _Spent()
        return spent

    def _go_back(self, day: int) -> None:
        """The wall clock was ahead for a while: what was spent before that is spent still."""
        try:
            self._read_periods(day)
        except CoveError as error:
            log.warning("what budgets have spent could not be read: %s %s", error, error.internal)

    def _read_periods(self, now: float) -> None:
        """What was spent in the periods that `now` is in, as far as it is written. Raises: EngineFailure."""
        day, month = period_start(BudgetPeriod.DAY, now), period_start(BudgetPeriod.MONTH, now)
        of_month, of_day = self._store.usage.spent_since(month), self._store.usage.spent_since(day)
        for spent in self._spent.values():
            spent.month, spent.month_start, spent.day, spent.day_start = 0, month, 0, day
        for project, key, cost in of_month:
            for subject in self._book.chain(project, key):
                spent = self._of(subject)
                spent.month, spent.month_start = spent.month + cost, month
        for project, key, cost in of_day:
            for subject in self._book.chain(project, key):
                spent = self._of(subject)
                spent.day, spent.day_start = spent.day + cost, day

    def _add(self, project: str, key: str, hour: int, nano: int) -> None:
        """Told by the meters. What belongs to an hour of a period that is over does not count for the new one."""
        day = int(self._clock.now()) // DAY_S * DAY_S
        if day != self._day:
            before, self._day, self._month = self._day, day, period_start(BudgetPeriod.MONTH, day)
            if day < before:
                self._go_back(day)
        month = self._month
        for subject in self._book.chain(project, key):
            spent = self._of(subject)
            spent.total += nano
            if spent.day_start != day:
                spent.day_start, spent.day = day, 0
            if spent.month_start != month:
                spent.month_start, spent.month = month, 0
            spent.day += nano if hour >= day else 0
            spent.month += nano if hour >= month else 0
