from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cove.model.errors import EngineFailure
from cove.model.quota import Quota
from cove.model.usage import Amounts, SandboxUsage, UsageGroup, UsageQuery
from cove.store import usage
from cove.store.quotas import QuotaRow
from cove.store.store import Store, open_store
from cove.store.usage import Flush, MeterRow, SpanRow

DAY = 86400


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "cove.db") as one:
        yield one


def meter(sandbox: str, *, ended_at: float | None = None, cost: int = 0) -> MeterRow:
    bill = SandboxUsage(
        sandbox=sandbox,
        project="p",
        key="k",
        name="n",
        started_at=1.0,
        ended_at=ended_at,
        amounts=Amounts(cost_nano=cost),
    )
    return MeterRow(usage=bill, boot="b", at_ms=5, rate="{}", carry=7)


async def test_a_meter_is_read_as_it_was_written(store: Store) -> None:
    await store.usage.save(Flush(meters=(meter("a", cost=2**62),)))
    assert store.usage.meter("a") == meter("a", cost=2**62)
    assert store.usage.meter("b") is None
    await store.usage.save(Flush(meters=(meter("a", ended_at=9.0, cost=3),)))
    assert store.usage.meter("a") == meter("a", ended_at=9.0, cost=3)


async def test_a_flush_is_whole_or_nothing(store: Store) -> None:
    good = SpanRow(0, "p", "k", "a", Amounts(cost_nano=5))
    bad = SpanRow(0, "p", "k", "b", Amounts(cost_nano=2**63))
    with pytest.raises(EngineFailure):
        await store.usage.save(Flush(meters=(meter("a"),), spans=(good, bad)))
    assert store.usage.meter("a") is None
    assert store.usage.spent() == []


async def test_spans_are_added_to_and_rolled_up_by_day_in_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "BATCH", 7)
    hours = [SpanRow(hour * 3600, "p", "k", sandbox, Amounts(cpu_ms=1)) for hour in range(48) for sandbox in "ab"]
    await store.usage.save(Flush(spans=tuple(hours)))
    await store.usage.save(Flush(spans=tuple(hours)))
    by_hour = await store.usage.report(UsageQuery(groups=(UsageGroup.HOUR,)), limit=100)
    assert [(row.at, row.amounts.cpu_ms, row.sandboxes) for row in by_hour][:2] == [(0, 4, 2), (3600, 4, 2)]
    rounds = 0
    while await store.usage.roll_up(before=DAY):
        rounds += 1
    assert rounds == 7
    rows = await store.usage.report(UsageQuery(groups=(UsageGroup.DAY, UsageGroup.SANDBOX)), limit=100)
    assert [(row.at, row.sandbox, row.amounts.cpu_ms) for row in rows] == [
        (0, "a", 48), (0, "b", 48), (DAY, "a", 48), (DAY, "b", 48),
    ]  # fmt: skip
    assert len(await store.usage.report(UsageQuery(groups=(UsageGroup.HOUR,)), limit=100)) == 1 + 24
    while await store.usage.purge(before=DAY):
        pass
    assert [row.at for row in await store.usage.report(UsageQuery(groups=(UsageGroup.DAY,)), limit=9)] == [DAY]


async def test_purging_leaves_live_meters_and_sums_over_everything(store: Store) -> None:
    span = SpanRow(0, "p", "k", "a", Amounts(cost_nano=5))
    await store.usage.save(Flush(meters=(meter("a", ended_at=1.0), meter("b")), spans=(span,)))
    while await store.usage.purge(before=1e12):
        pass
    assert store.usage.meter("a") is None
    assert store.usage.meter("b") is not None
    assert store.usage.spent() == [("p", "k", 5)]
    assert store.usage.spent_since(0) == []


async def test_quotas_and_makers_are_remembered(tmp_path: Path) -> None:
    rows = [
        QuotaRow(subject="project", id="p", quota=Quota(sandboxes=3, cpus=0.5)),
        QuotaRow(subject="key", id="k", quota=None, parent="m"),
    ]
    async with open_store(tmp_path / "cove.db") as store:
        for row in (*rows, QuotaRow(subject="project", id="p", quota=Quota()), rows[0]):
            await store.quotas.save(row)
    async with open_store(tmp_path / "cove.db") as store:
        assert sorted(store.quotas.all(), key=lambda row: row.id) == [rows[1], rows[0]]
