"""Meters count exactly, whatever happens in between: other limits, pauses, lost processes, stopped clocks."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.core.metering import Metering, MeteringSettings
from cove.core.prices import Prices, charge
from cove.engine.clock import ManualClock
from cove.model.errors import EngineFailure
from cove.model.quota import millicpus
from cove.model.sandbox import MIB, IdleAction, Limits, Sandbox, Usage
from cove.model.state import EndReason, State
from cove.model.usage import Amounts, PausedBilling, UsageGroup, UsageQuery
from cove.store.store import Store, open_store

GIB = 1024 * MIB
ONE = Sandbox(
    id="00000000000000aa",
    project="p",
    name="one",
    state=State.PENDING,
    image="base",
    driver="stub",
    limits=Limits(cpus=1.0, memory_bytes=GIB),
    metadata={},
    isolation=None,
    dialect="native",
    created_by="key:k",
    created_at=0.0,
    expires_at=None,
    idle_timeout_s=None,
    idle_action=IdleAction.NONE,
    last_active_at=0.0,
    key="k1",
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "cove.db") as one:
        yield one


def metering(store: Store, clock: ManualClock, *, boot: str = "b1", **settings: object) -> Metering:
    return Metering(store, clock, MeteringSettings(**settings), boot)  # type: ignore[arg-type]


async def write(one: Metering, store: Store, sandbox: Sandbox) -> None:
    """As the journal does."""
    turn = one.turn(sandbox)
    if turn is not None:
        await store.usage.save(turn.flush)


async def spans(store: Store, *groups: UsageGroup, **query: object) -> list[Amounts]:
    rows = await store.usage.report(UsageQuery(groups=groups, **query), limit=10_000)  # type: ignore[arg-type]
    return [row.amounts for row in rows]


async def test_a_life_is_billed_by_its_segments(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    await write(one, store, ONE)
    clock.advance(5)  # not running yet: free
    await write(one, store, replace(ONE, state=State.RUNNING))
    clock.advance(60)
    bigger = replace(ONE, state=State.RUNNING, limits=Limits(cpus=2.5, memory_bytes=4 * GIB))
    await write(one, store, bigger)
    clock.advance(10)
    await write(one, store, replace(bigger, state=State.PAUSED))
    clock.advance(100)
    await write(one, store, bigger)
    clock.advance(1)
    ended = replace(
        bigger, state=State.TERMINATED, ended_at=clock.now(), end_reason=EndReason.REQUESTED,
        usage=Usage(cpu_ms=1234, memory_peak_bytes=7, disk_bytes=8, sent_bytes=3, received_bytes=4),
    )  # fmt: skip
    await write(one, store, ended)
    bill = one.bill(ONE.id)
    assert bill is not None
    assert (bill.ended_at, bill.memory_peak_bytes, bill.disk_bytes, bill.key) == (clock.now(), 7, 8, "k1")
    assert (bill.amounts.running_ms, bill.amounts.paused_ms) == (71_000, 100_000)
    assert bill.amounts.vcpu_us == (60 + 25 + 2.5) * 10**6
    assert bill.amounts.mib_ms == 1024 * 1000 * (60 + 4 * 10 + 4 * 100 + 4 * 1)
    assert (bill.amounts.cpu_ms, bill.amounts.sent_bytes, bill.amounts.received_bytes) == (1234, 3, 4)
    assert await spans(store) == [bill.amounts]


@pytest.mark.parametrize(
    ("how", "vcpu_s", "gib_s"),
    [(PausedBilling.MEMORY, 0, 50), (PausedBilling.NOTHING, 0, 0), (PausedBilling.ALL, 50, 50)],
)
async def test_a_pause_is_billed_as_the_settings_say(
    store: Store, clock: ManualClock, how: PausedBilling, vcpu_s: int, gib_s: int
) -> None:
    one = metering(store, clock, paused=how)
    await write(one, store, replace(ONE, state=State.RUNNING))
    await write(one, store, replace(ONE, state=State.PAUSED))
    clock.advance(50)
    bill = one.bill(ONE.id)
    assert bill is not None
    assert (bill.amounts.vcpu_us, bill.amounts.mib_ms) == (vcpu_s * 10**6, gib_s * 1024 * 1000)
    assert bill.amounts.paused_ms == 50_000


async def test_the_time_without_a_server_counts_and_nothing_counts_twice(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    running = replace(ONE, state=State.RUNNING)
    await write(one, store, running)
    clock.advance(7)
    await one.flush()
    clock.advance(3)  # read by nobody: the server is killed
    for _ in range(3):
        clock.advance(3600)
        one = metering(store, clock)
        one.adopt(running)
    await one.flush()
    bill = one.bill(ONE.id)
    assert bill is not None
    assert bill.amounts.running_ms == 10_000 + 3 * 3_600_000
    assert await spans(store) == [bill.amounts]


async def test_after_a_reboot_what_was_not_read_is_lost_and_no_more(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    await write(one, store, replace(ONE, state=State.RUNNING))
    clock.advance(7)
    await one.flush()
    clock.advance(3)
    again = metering(store, ManualClock(clock.now() + 600), boot="b2")
    await write(again, store, replace(ONE, state=State.TERMINATED, ended_at=99.0, end_reason=EndReason.LOST))
    bill = again.bill(ONE.id)
    assert bill is not None
    assert (bill.amounts.running_ms, bill.ended_at) == (7000, 99.0)
    assert await spans(store) == [bill.amounts]


async def test_steps_of_the_wall_clock_change_no_bill(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    await write(one, store, replace(ONE, state=State.RUNNING))
    for jump in (-7200, 86_400 * 40, -86_400 * 90, 3600):
        clock.advance(10)
        clock.jump_wall(jump)
        clock.advance(10)
        await one.flush()
    bill = one.bill(ONE.id)
    assert bill is not None
    assert bill.amounts.running_ms == 80_000
    assert await spans(store) == [bill.amounts]


async def test_hours_get_their_own_part(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    clock.jump_wall(3600 * 500_000 - 1.5 - clock.now())
    await write(one, store, replace(ONE, state=State.RUNNING))
    clock.advance(3 + 3600)
    await one.flush()
    found = [amounts.running_ms for amounts in await spans(store, UsageGroup.HOUR)]
    assert found == [1500, 3_600_000, 1500]
    assert [amounts.running_ms for amounts in await spans(store, since=3600 * 500_000, until=3600 * 500_001)] == [
        3_600_000
    ]


async def test_a_change_that_was_not_written_did_not_happen(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    running = replace(ONE, state=State.RUNNING)
    await write(one, store, running)
    clock.advance(10)
    turn = one.turn(replace(running, state=State.PAUSED))
    assert turn is not None
    one.take_back(turn)
    clock.advance(10)
    bill = one.bill(ONE.id)
    assert bill is not None
    assert (bill.amounts.running_ms, bill.amounts.paused_ms) == (20_000, 0)
    await one.flush()
    assert await spans(store) == [bill.amounts]


async def test_a_create_that_was_not_written_has_no_bill(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    other = replace(ONE, id="00000000000000bb", state=State.RUNNING)
    await write(one, store, other)
    clock.advance(10)
    await one.advance()
    turn = one.turn(replace(ONE, state=State.RUNNING))
    assert turn is not None
    one.take_back(turn)
    clock.advance(10)
    await one.flush()
    assert one.bill(ONE.id) is None
    assert [amounts.running_ms for amounts in await spans(store, UsageGroup.SANDBOX)] == [20_000]


async def test_what_cannot_be_written_is_written_later(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    running = replace(ONE, state=State.RUNNING)
    await write(one, store, running)
    store.usage._writer._connection.execute("PRAGMA query_only = ON")
    clock.advance(10)
    with pytest.raises(EngineFailure):
        await one.flush()
    clock.advance(10)
    ended = one.turn(replace(running, state=State.TERMINATED, ended_at=clock.now()))
    assert ended is not None
    one.keep(ended)
    store.usage._writer._connection.execute("PRAGMA query_only = OFF")
    clock.advance(10)
    await one.flush()
    bill = metering(store, clock).bill(ONE.id)
    assert bill is not None
    assert (bill.amounts.running_ms, bill.ended_at is None) == (20_000, False)
    assert await spans(store) == [bill.amounts]


async def test_measured_numbers_only_grow(store: Store, clock: ManualClock) -> None:
    one = metering(store, clock)
    await write(one, store, replace(ONE, state=State.RUNNING))
    for cpu_ms in (100, 50, 70, 250):
        one.measured(ONE.id, Usage(cpu_ms=cpu_ms, memory_peak_bytes=cpu_ms, disk_bytes=cpu_ms))
    bill = one.bill(ONE.id)
    assert bill is not None
    assert (bill.amounts.cpu_ms, bill.memory_peak_bytes, bill.disk_bytes) == (250, 250, 250)


class Walk:
    """Everything that can happen to several sandboxes, beside a count of its own."""

    def __init__(self, store: Store, clock: ManualClock, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - a test's dice
        self.prices = Prices(vcpu_hour=self.dice.randrange(10**9), gib_hour=self.dice.randrange(10**9))
        self.store, self.clock = store, clock
        self.meters = metering(store, clock, prices=self.prices)
        self.live: dict[str, Sandbox] = {}
        self.told: dict[str, list[int]] = {}
        self.deeds = (self.create, self.pause, self.pause, self.resize, self.end, self.flush, self.crash, self.jump)

    async def step(self) -> None:
        before = self.clock.monotonic()
        self.clock.advance(self.dice.choice([0, 1, 17, 999, 60_000, 5_000_000]) / 1000)
        passed_ms = int(self.clock.monotonic() * 1000) - int(before * 1000)
        for sandbox_id, sandbox in self.live.items():
            is_running = sandbox.state is State.RUNNING
            self.told[sandbox_id][0] += passed_ms * millicpus(sandbox.limits.cpus) * is_running
            self.told[sandbox_id][1] += passed_ms * (sandbox.limits.memory_bytes // MIB)
        await self.dice.choice(self.deeds)()

    def limits(self) -> Limits:
        cpus = self.dice.choice([0.05, 0.1, 0.3, 1.0, 7.7])
        return Limits(cpus=cpus, memory_bytes=self.dice.randrange(32, 9000) * MIB)

    async def change(self, **changes: object) -> None:
        if self.live:
            sandbox_id = self.dice.choice(sorted(self.live))
            self.live[sandbox_id] = replace(self.live[sandbox_id], **changes)
            await write(self.meters, self.store, self.live[sandbox_id])

    async def create(self) -> None:
        sandbox_id = f"{len(self.told):016x}"
        key, project = self.dice.choice("ab"), self.dice.choice("pq")
        made = replace(ONE, id=sandbox_id, state=State.RUNNING, limits=self.limits(), key=key, project=project)
        self.live[sandbox_id], self.told[sandbox_id] = made, [0, 0]
        await write(self.meters, self.store, made)

    async def pause(self) -> None:
        await self.change(state=self.dice.choice([State.RUNNING, State.PAUSED]))

    async def resize(self) -> None:
        await self.change(limits=self.limits())

    async def end(self) -> None:
        await self.change(state=State.TERMINATED, ended_at=self.clock.now())
        self.live = {of: one for of, one in self.live.items() if one.state is not State.TERMINATED}

    async def flush(self) -> None:
        await self.meters.flush()

    async def crash(self) -> None:
        self.meters = metering(self.store, self.clock, prices=self.prices)
        for sandbox in self.live.values():
            self.meters.adopt(sandbox)

    async def jump(self) -> None:
        self.clock.jump_wall(self.dice.choice([-4000, 4000]))


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_the_parts_are_the_whole(store: Store, clock: ManualClock, seed: int) -> None:
    walk = Walk(store, clock, seed)
    for _ in range(150):
        await walk.step()
    bills = {sandbox_id: walk.meters.bill(sandbox_id) for sandbox_id in walk.told}
    await walk.meters.flush()
    whole = Amounts()
    for sandbox_id, (vcpu_us, mib_ms) in walk.told.items():
        bill = bills[sandbox_id]
        assert bill is not None
        assert (bill.amounts.vcpu_us, bill.amounts.mib_ms) == (vcpu_us, mib_ms)
        cost, _ = charge(walk.prices, vcpu_us=vcpu_us, mib_ms=mib_ms, traffic_bytes=0, carry=0)
        assert bill.amounts.cost_nano == cost
        whole += bill.amounts
    by_key = (UsageGroup.PROJECT, UsageGroup.KEY)
    for groups in ((), (UsageGroup.SANDBOX,), by_key, (UsageGroup.DAY,), (UsageGroup.HOUR,)):
        assert sum(await spans(store, *groups), Amounts()) == whole
    assert sum(cost for _, _, cost in store.usage.spent()) == whole.cost_nano
    while await store.usage.roll_up(before=2**40):
        pass
    assert await spans(store) == [whole]
    assert await spans(store, UsageGroup.HOUR) == await spans(store, UsageGroup.DAY)
