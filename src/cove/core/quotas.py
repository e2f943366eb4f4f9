"""What projects and keys may use at most: who holds what, what is refused, and who may say so.

Checking and holding are one synchronous step, beside admission's in `creation.py`, so no two creates take the last
place. What is held is rebuilt at the start from the sandboxes that were adopted.

To add a limit of sandboxes: a field in `model/quota.py` and in `_Held`. Of what else is counted: `counters`, and
`check_count` called without an await before it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from cove.core.access import may_see, require
from cove.core.audit import Audit
from cove.core.budgets import Budgets, period_start
from cove.core.quotabook import DEPTH, QuotaBook, key_subject, project_subject
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Forbidden, NotFound, QuotaExceeded, QuotaTooSmall
from cove.model.quota import (
    SUBJECT_KEY,
    SUBJECT_PROJECT,
    UNLIMITED,
    BudgetPeriod,
    Quota,
    QuotaState,
    QuotaUse,
    millicpus,
)
from cove.model.sandbox import MIB, Limits, Sandbox
from cove.model.state import State
from cove.store.store import Store

MOST: Final = 2**53
"""Limits stay whole numbers in every client's JSON."""

DEEPEST: Final = DEPTH - 1
"""Keys in a row that may make each other."""

PROJECT_ONLY: Final = ("snapshots", "host_ports")


_NOUNS: Final = {
    "sandboxes": ("sandbox", "sandboxes"),
    "snapshots": ("snapshot", "snapshots"),
    "host_ports": ("port of the host", "ports of the host"),
}


class QuotaStats(Struct, frozen=True, kw_only=True):
    """How often something was refused since the start, by what ran out, and how many subjects have limits."""

    refused: dict[str, int]
    limited: int


class _Held(Struct, frozen=True):
    """What one or several sandboxes hold: their number, cores in thousandths, bytes."""

    sandboxes: int = 0
    mcpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0

    def __add__(self, other: _Held) -> _Held:
        return _Held(
            self.sandboxes + other.sandboxes,
            self.mcpus + other.mcpus,
            self.memory_bytes + other.memory_bytes,
            self.disk_bytes + other.disk_bytes,
        )

    def __mul__(self, count: int) -> _Held:
        return _Held(self.sandboxes * count, self.mcpus * count, self.memory_bytes * count, self.disk_bytes * count)

    def __neg__(self) -> _Held:
        return _Held(-self.sandboxes, -self.mcpus, -self.memory_bytes, -self.disk_bytes)


_NOTHING: Final = _Held()


class Quotas:
    """The limits, what is held under them, and the operations on both."""

    def __init__(self, book: QuotaBook, budgets: Budgets, store: Store, audit: Audit) -> None:
        self._book = book
        self._budgets = budgets
        self._store = store
        self._of_sandbox: dict[str, tuple[tuple[str, ...], _Held]] = {}
        self._held: dict[str, _Held] = {}
        self._changing: dict[str, list[_Held]] = {}
        self._refused: dict[str, int] = {}
        self.counters: dict[str, Callable[[str], int]] = {"host_ports": store.exposures.count_host_ports}
        self._audit = audit

    # Sandboxes. None of this awaits, but `prepare`.

    async def prepare(self, project: str, key: str) -> None:
        """Before `check`: have the money counted that is spent by now, where it is limited."""
        if self._budgets.has_budget(self._book.chain(project, key)):
            await self._budgets.settle()

    def check(self, project: str, key: str, limits: Limits, count: int = 1) -> None:
        """Whether so many more sandboxes fit. Raises: QuotaExceeded, QuotaTooSmall, BudgetExceeded."""
        chain = self._book.chain(project, key)
        self._fit(chain, _held(limits) * count)
        self._check_budget(chain)

    def hold(self, sandbox: Sandbox) -> None:
        """Count a sandbox until `release`. Without an await since `check`, so that nobody comes between."""
        chain, held = self._book.chain(sandbox.project, sandbox.key), _held_by(sandbox)
        self._of_sandbox[sandbox.id] = (chain, held)
        self._add(chain, held)

    def wake(self, sandbox: Sandbox) -> None:
        """Count a hibernated sandbox as one that runs. Raises: QuotaExceeded, QuotaTooSmall, where it does not fit."""
        chain, held = self._of_sandbox.get(sandbox.id, ((), _NOTHING))
        awake = _held(sandbox.limits)
        more = _Held(1 - held.sandboxes, awake.mcpus - held.mcpus, awake.memory_bytes - held.memory_bytes)
        self._fit(chain, more, whole=awake)
        self._hold_of(sandbox.id, awake)

    def rest(self, sandbox: Sandbox) -> None:
        """Count a sandbox that came to rest as hibernated. Again: nothing."""
        self._hold_of(sandbox.id, _held_by(sandbox))

    def release(self, sandbox_id: str) -> None:
        """It has ended. Again: nothing."""
        chain, held = self._of_sandbox.pop(sandbox_id, ((), _NOTHING))
        self._add(chain, -held)

    @contextmanager
    def changing(self, sandbox: Sandbox, limits: Limits, now: Callable[[], Sandbox]) -> Generator[None]:
        """Hold what a sandbox is to get beyond what it has, while its limits change; then count what it has in fact.

        Raises: QuotaExceeded, QuotaTooSmall, BudgetExceeded, where it is to get more.
        """
        chain, held = self._of_sandbox.get(sandbox.id, ((), _NOTHING))
        wanted = _held_by(replace(sandbox, limits=limits))
        more = _grown(held, wanted)
        if more != _NOTHING:
            self._fit(chain, more, whole=wanted)
            self._check_budget(chain)
        under_way = self._changing.setdefault(sandbox.id, [])
        under_way.append(wanted)
        self._hold_of(sandbox.id, held + more)
        try:
            yield
        finally:
            under_way.remove(wanted)
            fact = _held_by(now())
            for other in under_way:  # what a change beside this one shall come to is not given away in between
                fact += _grown(fact, other)
            self._hold_of(sandbox.id, fact)
            if not under_way:
                self._changing.pop(sandbox.id, None)

    def check_count(self, project: str, field: str) -> None:
        """Whether a project may have one more of what is counted by `counters[field]`. Raises: QuotaExceeded."""
        limit: int | None = getattr(self._book.quota(project_subject(project)), field)
        if limit is None:
            return
        used = self._count(field, project)
        if used >= limit:
            self._refuse(project_subject(project), field, _told(field, limit), limit, used)

    # What is allowed and used.

    async def of_project(self, who: Principal, project: str) -> QuotaState:
        """A project's limits and use. Raises: Forbidden, NotFound."""
        require(who, Scope.READ)
        self._project(who, project)
        await self._budgets.settle()
        return self._state(SUBJECT_PROJECT, project, project)

    async def of_key(self, who: Principal, key_id: str) -> QuotaState:
        """A key's limits and use: one's own, or with the scope `keys` those of the project's. Raises: NotFound."""
        require(who, Scope.READ)
        key = self._store.keys.by_id(key_id)
        if key is None or not may_see(who, key.project) or (key.id != who.key_id and not who.can(Scope.KEYS)):
            raise NotFound("no such key")
        await self._budgets.settle()
        return self._state(SUBJECT_KEY, key.id, key.project)

    async def of_caller(self, who: Principal) -> tuple[QuotaState, ...]:
        """All that limits the caller: its project's, its key's, and those of the keys that made it. Raises: Forbidden.

        The makers' ids are told; what else they made is not.
        """
        require(who, Scope.READ)
        await self._budgets.settle()
        parts = [subject.partition(":") for subject in self._book.chain(who.project, who.key_id)]
        return tuple(self._state(kind, of, who.project) for kind, _, of in parts)

    async def set_project(self, who: Principal, project: str, quota: Quota) -> QuotaState:
        """Replace a project's limits. What is there already stays. Raises: Forbidden, NotFound, BadRequest."""
        require(who, Scope.ADMIN)
        self._project(who, project)
        check_quota(quota)
        await self._book.set(SUBJECT_PROJECT, project, None if quota == UNLIMITED else quota)
        await self._note(who, project_subject(project), project, quota)
        return self._state(SUBJECT_PROJECT, project, project)

    async def set_key(self, who: Principal, key_id: str, quota: Quota) -> QuotaState:
        """Replace a key's limits, beside its project's. Raises: Forbidden, NotFound, BadRequest."""
        require(who, Scope.ADMIN)
        key = self._store.keys.by_id(key_id)
        if key is None:
            raise NotFound("no such key")
        check_quota(quota, of_key=True)
        await self._book.set(SUBJECT_KEY, key_id, None if quota == UNLIMITED else quota)
        await self._note(who, key_subject(key_id), key.project, quota)
        return self._state(SUBJECT_KEY, key_id, key.project)

    async def add_key(self, who: Principal, key_id: str, quota: Quota | None) -> None:
        """Limits of a key that `who` is about to make. What it does counts for its maker, too, unless that is an admin.

        Raises: BadRequest, Forbidden (more than the maker's own; too many keys that made each other).
        """
        if quota is not None:
            check_quota(quota, of_key=True)
        if who.can(Scope.ADMIN):
            await self._book.add_key(key_id, quota, None)
            return
        chain = self._book.chain(who.project, who.key_id)[1:]
        if len(chain) > DEEPEST:
            raise Forbidden(f"at most {DEEPEST} keys may make each other: use one nearer to the first")
        for subject in chain:
            _refuse_wider(quota, self._book.quota(subject))
        await self._book.add_key(key_id, quota, who.key_id)

    def stats(self) -> QuotaStats:
        """Numbers for the metrics."""
        return QuotaStats(refused=dict(self._refused), limited=len(self._book.limited))

    async def _note(self, who: Principal, subject: str, project: str, quota: Quota) -> None:
        said = {name: value for name, value in asdict(quota).items() if value is not None}
        facts = {"subject": subject, **said}
        await self._audit.kept(self._audit.note("quota.changed", project=project, sandbox=None, data=facts, who=who))

    def _state(self, kind: str, of: str, project: str) -> QuotaState:
        subject = f"{kind}:{of}"
        quota, held = self._book.quota(subject), self._held.get(subject, _NOTHING)
        spent = self._budgets.spent(subject, quota.budget_period)
        since = period_start(quota.budget_period, self._budgets.now())
        of_project = kind == SUBJECT_PROJECT
        use = QuotaUse(
            sandboxes=held.sandboxes,
            cpus=held.mcpus / 1000,
            memory_bytes=held.memory_bytes,
            disk_bytes=held.disk_bytes,
            snapshots=self._count("snapshots", project) if of_project else 0,
            host_ports=self._count("host_ports", project) if of_project else 0,
            spent_nano=spent,
            spent_since=None if quota.budget_period is BudgetPeriod.TOTAL else since,
        )
        return QuotaState(subject=kind, id=of, quota=quota, use=use)

    def _project(self, who: Principal, project: str) -> None:
        if not may_see(who, project) or self._store.projects.get(project) is None:
            raise NotFound("no such project")

    def _count(self, field: str, project: str) -> int:
        counter = self.counters.get(field)
        return 0 if counter is None else counter(project)

    def _check_budget(self, chain: tuple[str, ...]) -> None:
        try:
            self._budgets.check(chain)
        except QuotaExceeded as error:
            self._count_refusal(error.field or "")
            raise

    def _fit(self, chain: tuple[str, ...], more: _Held, *, whole: _Held | None = None) -> None:
        """Raises: QuotaTooSmall where even `whole` (None: `more`) alone is too much, QuotaExceeded."""
        whole = whole or more
        for subject in chain:
            quota = self._book.quota(subject)
            if quota is UNLIMITED:
                continue
            held = self._held.get(subject, _NOTHING)
            for field, limit in _limits(quota):
                asked, used, alone = _part(more, field), _part(held, field), _part(whole, field)
                if not asked or used + asked <= limit:
                    continue
                if alone > limit:
                    self._refuse(subject, field, _told(field, limit), limit, used, kind=QuotaTooSmall)
                self._refuse(subject, field, _told(field, limit), limit, used)

    def _refuse(  # noqa: PLR0913 - what is told of a refusal
        self,
        subject: str,
        field: str,
        allowed: str,
        limit: int,
        used: int,
        *,
        kind: type[QuotaExceeded] = QuotaExceeded,
    ) -> None:
        self._count_refusal(field)
        whose = subject.partition(":")[0]
        if kind is QuotaTooSmall:
            public = f"the quota of this {whose} is {allowed} in all: this asks for more"
        else:
            public = f"the quota of this {whose} is {allowed}; in use: {_told(field, used)}"
        shown = (limit / 1000, used / 1000) if field == "cpus" else (limit, used)
        raise kind(public, field=field, limit=shown[0], used=shown[1])

    def _count_refusal(self, field: str) -> None:
        self._refused[field] = self._refused.get(field, 0) + 1

    def _hold_of(self, sandbox_id: str, now: _Held) -> None:
        """Count anew what a sandbox holds, unless it has ended."""
        if sandbox_id in self._of_sandbox:
            chain, held = self._of_sandbox[sandbox_id]
            self._of_sandbox[sandbox_id] = (chain, now)
            self._add(chain, -held + now)

    def _add(self, chain: tuple[str, ...], held: _Held) -> None:
        for subject in chain:
            total = self._held.get(subject, _NOTHING) + held
            if total == _NOTHING:
                self._held.pop(subject, None)
            else:
                self._held[subject] = total


def check_quota(quota: Quota, *, of_key: bool = False) -> None:
    """Raises: BadRequest for a limit below 0, an absurd one, or one that a key cannot have."""
    for field in (
        "sandboxes",
        "cpus",
        "memory_bytes",
        "disk_bytes",
        *PROJECT_ONLY,
        "requests_per_minute",
        "budget_nano",
    ):
        value = getattr(quota, field)
        name = "budget" if field == "budget_nano" else field
        if value is None:
            continue
        if of_key and field in PROJECT_ONLY:
            raise BadRequest(f"{name} can be limited for projects only", field=name)
        least = 1 if field == "requests_per_minute" else 0
        if not least <= value <= (2**62 if field == "budget_nano" else MOST):
            raise BadRequest(f"{name} must be {least} or more", field=name)


def _refuse_wider(quota: Quota | None, of_maker: Quota) -> None:
    """Nobody gives what they do not have; a limit that is left out is the maker's."""
    for field in ("sandboxes", "cpus", "memory_bytes", "disk_bytes", "requests_per_minute"):
        own, given = getattr(of_maker, field), None if quota is None else getattr(quota, field)
        if own is not None and given is not None and given > own:
            raise Forbidden(f"a key cannot give more {field} than it has: {own}")


def _held(limits: Limits) -> _Held:
    return _Held(1, millicpus(limits.cpus), limits.memory_bytes, limits.disk_bytes)


def _held_by(sandbox: Sandbox) -> _Held:
    """A hibernated one holds disk space only, for its files and for its memory."""
    if sandbox.state is State.HIBERNATED:
        return _Held(disk_bytes=sandbox.limits.disk_bytes + sandbox.kept_bytes)
    return _held(sandbox.limits)


def _grown(held: _Held, wanted: _Held) -> _Held:
    """What `wanted` has more of."""
    return _Held(
        0,
        max(wanted.mcpus - held.mcpus, 0),
        max(wanted.memory_bytes - held.memory_bytes, 0),
        max(wanted.disk_bytes - held.disk_bytes, 0),
    )


def _limits(quota: Quota) -> list[tuple[str, int]]:
    found: list[tuple[str, int | None]] = [
        ("sandboxes", quota.sandboxes),
        ("cpus", None if quota.cpus is None else millicpus(quota.cpus)),
        ("memory_bytes", quota.memory_bytes),
        ("disk_bytes", quota.disk_bytes),
    ]
    return [(field, limit) for field, limit in found if limit is not None]


def _part(held: _Held, field: str) -> int:
    return held.mcpus if field == "cpus" else int(getattr(held, field))


def _told(field: str, amount: int) -> str:
    """An amount with its unit."""
    if field == "cpus":
        return f"{amount / 1000:g} cpus"
    if field in {"memory_bytes", "disk_bytes"}:
        return f"{amount // MIB} MiB of {field.removesuffix('_bytes')}"
    return f"{amount} {_NOUNS[field][amount != 1]}"
