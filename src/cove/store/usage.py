"""Rows of usage: each sandbox's meter, what was used in each span of time, and what was spent in all.

A flush writes meters (absolute) and spans (added to) in one savepoint, so nothing is counted twice or by half.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from cove.model.usage import AMOUNTS, DAY_S, Amounts, SandboxUsage, UsageGroup, UsageQuery, UsageRow
from cove.store.reader import Reader, Value
from cove.store.writer import Writer

_AMOUNTS: Final = ", ".join(AMOUNTS)
_METER: Final = (
    "sandbox, project, key, name, started_at, ended_at, boot, at_ms, rate, carry, memory_peak_bytes, disk_bytes"
)
_MARKS: Final = ", ".join("?" * (len(_METER.split(", ")) + len(AMOUNTS)))
# What is formatted into SQL, here and below, are the constants above and column names of `_COLUMNS`.
_SAVE_METER: Final = f"""
INSERT INTO usage_sandboxes ({_METER}, {_AMOUNTS}) VALUES ({_MARKS})
ON CONFLICT (sandbox) DO UPDATE SET
    name = excluded.name, ended_at = excluded.ended_at, boot = excluded.boot, at_ms = excluded.at_ms,
    rate = excluded.rate, carry = excluded.carry, memory_peak_bytes = excluded.memory_peak_bytes,
    disk_bytes = excluded.disk_bytes, {", ".join(f"{name} = excluded.{name}" for name in AMOUNTS)}
"""  # noqa: S608
_ADD_SPAN: Final = f"""
INSERT INTO usage_spans (start, span, project, key, sandbox, {_AMOUNTS})
VALUES (?, ?, ?, ?, ?, {", ".join("?" * len(AMOUNTS))})
ON CONFLICT (start, span, project, key, sandbox) DO UPDATE SET
    {", ".join(f"{name} = usage_spans.{name} + excluded.{name}" for name in AMOUNTS)}
"""  # noqa: S608
_ENDED: Final = f"""
SELECT count(*), {", ".join(f"sum({name})" for name in AMOUNTS)} FROM usage_sandboxes
WHERE project = ? AND ended_at IS NOT NULL
"""  # noqa: S608
_ADD_SPENT: Final = """
INSERT INTO usage_spent (project, key, cost_nano) VALUES (?, ?, ?)
ON CONFLICT (project, key) DO UPDATE SET cost_nano = usage_spent.cost_nano + excluded.cost_nano
"""
_ONE: Final = f"SELECT {_METER}, {_AMOUNTS} FROM usage_sandboxes WHERE sandbox = ?"  # noqa: S608
_SPENT: Final = "SELECT project, key, cost_nano FROM usage_spent"
_SPENT_SINCE: Final = "SELECT project, key, sum(cost_nano) FROM usage_spans WHERE start >= ? GROUP BY project, key"
_OLD_HOURS: Final = f"""
SELECT start, project, key, sandbox, {_AMOUNTS} FROM usage_spans WHERE span = 'hour' AND start < ? LIMIT ?
"""  # noqa: S608
_FORGET_SPAN: Final = """
DELETE FROM usage_spans WHERE start = ? AND span = 'hour' AND project = ? AND key = ? AND sandbox = ?
"""
_PURGE_SPANS: Final = """
DELETE FROM usage_spans WHERE (start, span, project, key, sandbox) IN
    (SELECT start, span, project, key, sandbox FROM usage_spans WHERE start < ? LIMIT ?)
"""
_PURGE_METERS: Final = """
DELETE FROM usage_sandboxes WHERE sandbox IN (SELECT sandbox FROM usage_sandboxes WHERE ended_at < ? LIMIT ?)
"""
_COLUMNS: Final[Mapping[UsageGroup, str]] = {
    UsageGroup.PROJECT: "project",
    UsageGroup.KEY: "key",
    UsageGroup.SANDBOX: "sandbox",
    UsageGroup.DAY: f"start - start % {DAY_S}",
    UsageGroup.HOUR: "start",
}

BATCH: Final = 500
"""Rows rolled up or purged in one transaction, so that no create waits behind a big one."""


class MeterRow(Struct, frozen=True, kw_only=True):
    """A meter as it is written. `rate` is the core's, as JSON."""

    usage: SandboxUsage
    boot: str
    at_ms: int
    rate: str
    carry: int


class SpanRow(Struct, frozen=True):
    """What is to be added to one hour of one sandbox."""

    start: int
    project: str
    key: str
    sandbox: str
    amounts: Amounts


class Flush(Struct, frozen=True, kw_only=True):
    """What is written in one go."""

    meters: tuple[MeterRow, ...] = ()
    spans: tuple[SpanRow, ...] = ()


class UsageRows:
    """The tables of usage. `reports` is a connection of its own: a report may read millions of rows, in a thread."""

    def __init__(self, reader: Reader, writer: Writer, reports: Reader) -> None:
        self._reader = reader
        self._writer = writer
        self._reports = reports
        self._reporting = asyncio.Lock()

    async def save(self, flush: Flush) -> None:
        """Write meters and add to spans: all or nothing."""
        await self._writer.write(flushing(flush))

    def meter(self, sandbox_id: str) -> MeterRow | None:
        """One sandbox's meter."""
        row = self._reader.one(_ONE, (sandbox_id,))
        return None if row is None else _meter(row)

    def spent(self) -> list[tuple[str, str, int]]:
        """What each key of each project ever spent: project, key, nano-units."""
        return [(project, key, int(cost)) for project, key, cost in self._reader.all(_SPENT, ())]

    def spent_since(self, start: int) -> list[tuple[str, str, int]]:
        """The same, since the beginning of a day."""
        return [(project, key, int(cost)) for project, key, cost in self._reader.all(_SPENT_SINCE, (start,))]

    async def report(self, query: UsageQuery, *, limit: int, offset: int = 0) -> list[UsageRow]:
        """Lines of a report in the order of its groups. Sums are whole numbers.

        A day's span counts whole if it begins in the asked time.
        """
        names = [f"{_COLUMNS[group]} AS g{number}" for number, group in enumerate(query.groups)]
        sums = [f"sum({name})" for name in AMOUNTS]
        where, values = _where(query)
        sql = f"SELECT {', '.join([*names, 'count(DISTINCT sandbox)', *sums])} FROM usage_spans{where}"  # noqa: S608
        if names:
            keys = ", ".join(f"g{number}" for number in range(len(names)))
            sql += f" GROUP BY {keys} ORDER BY {keys} LIMIT ? OFFSET ?"
            values = (*values, limit, offset)
        async with self._reporting:
            rows = await asyncio.to_thread(self._reports.all, sql, values)
        return [_row(query.groups, row) for row in rows]

    async def ended(self, project: str) -> tuple[int, Amounts]:
        """How many sandboxes of a project have ended, and what they used together."""
        async with self._reporting:
            rows = await asyncio.to_thread(self._reports.all, _ENDED, (project,))
        count, *sums = rows[0]
        amounts = {name: value or 0 for name, value in zip(AMOUNTS, sums, strict=True)}
        return int(count or 0), msgspec.convert(amounts, Amounts)

    async def roll_up(self, *, before: int) -> int:
        """Merge hours that began before that time into days; returns how many, BATCH at most."""
        return await self._writer.write(lambda db: _roll_up(db, before))

    async def purge(self, *, before: float) -> int:
        """Forget spans and ended sandboxes of before that time; returns how many, BATCH of each at most."""

        def purge(db: sqlite3.Connection) -> int:
            spans = db.execute(_PURGE_SPANS, (int(before), BATCH)).rowcount
            return spans + db.execute(_PURGE_METERS, (before, BATCH)).rowcount

        return await self._writer.write(purge)


def _where(query: UsageQuery) -> tuple[str, tuple[Value, ...]]:
    clauses: list[str] = []
    values: list[Value] = []
    for clause, value in (
        ("start >= ?", query.since),
        ("start < ?", query.until),
        ("project = ?", query.project),
        ("key = ?", query.key),
        ("sandbox = ?", query.sandbox),
    ):
        if value is not None:
            clauses.append(clause)
            values.append(value)
    return (f" WHERE {' AND '.join(clauses)}" if clauses else ""), tuple(values)


def flushing(flush: Flush) -> Callable[[sqlite3.Connection], None]:
    """The write of a flush, for callers that put more into the same savepoint."""
    meters = [_meter_values(one) for one in flush.meters]
    spans = [(one.start, "hour", one.project, one.key, one.sandbox, *_amounts(one.amounts)) for one in flush.spans]
    spent: dict[tuple[str, str], int] = {}
    for one in flush.spans:
        pair = one.project, one.key
        spent[pair] = spent.get(pair, 0) + one.amounts.cost_nano
    totals = [(project, key, cost) for (project, key), cost in spent.items() if cost]

    def write(db: sqlite3.Connection) -> None:
        db.executemany(_SAVE_METER, meters)
        db.executemany(_ADD_SPAN, spans)
        db.executemany(_ADD_SPENT, totals)

    return write


def _amounts(amounts: Amounts) -> tuple[int, ...]:
    return tuple(getattr(amounts, name) for name in AMOUNTS)


def _meter_values(row: MeterRow) -> tuple[Value, ...]:
    used = row.usage
    who = (used.sandbox, used.project, used.key, used.name, used.started_at, used.ended_at)
    return (
        *who, row.boot, row.at_ms, row.rate, row.carry, used.memory_peak_bytes, used.disk_bytes, *_amounts(used.amounts)
    )  # fmt: skip


def _meter(row: tuple[Value, ...]) -> MeterRow:
    fields = dict(zip((*_METER.split(", "), *AMOUNTS), row, strict=True))
    amounts = {name: fields[name] for name in AMOUNTS}
    return msgspec.convert({**fields, "usage": {**fields, "amounts": amounts}}, MeterRow)


def _row(groups: tuple[UsageGroup, ...], row: tuple[Value, ...]) -> UsageRow:
    fields: dict[str, Value] = {}
    for group, value in zip(groups, row, strict=False):
        fields["at" if group in {UsageGroup.DAY, UsageGroup.HOUR} else group.value] = value
    count, *sums = row[len(groups) :]
    amounts = {name: value or 0 for name, value in zip(AMOUNTS, sums, strict=True)}
    return msgspec.convert({**fields, "sandboxes": count, "amounts": amounts}, UsageRow)


def _roll_up(db: sqlite3.Connection, before: int) -> int:
    rows = db.execute(_OLD_HOURS, (before, BATCH)).fetchall()
    for start, project, key, sandbox, *amounts in rows:
        db.execute(_ADD_SPAN, (start - start % DAY_S, "day", project, key, sandbox, *amounts))
        db.execute(_FORGET_SPAN, (start, project, key, sandbox))
    return len(rows)
