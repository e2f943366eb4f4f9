"""What a sandbox at rest holds, costs and lets others do, and what must be there before it goes on."""

# ruff: noqa: ANN001, ANN003, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import pytest

from cove.core.access import LOCAL
from cove.core.accounts import AccountSettings
from cove.core.admission import AdmissionSettings, Memory
from cove.core.metering import MeteringSettings
from cove.core.prices import Prices
from cove.model.access import DEFAULT_PROJECT, Principal, Scope
from cove.model.audit import AuditFilter
from cove.model.errors import BudgetExceeded, CapacityExceeded, Conflict, QuotaExceeded, Unsupported
from cove.model.execs import ExecSpec
from cove.model.network import NetworkMode, NetworkRequest
from cove.model.quota import BudgetAction, BudgetPeriod, Quota
from cove.model.request import SandboxChange
from cove.model.sandbox import MIB, Kept, Limits, SandboxSpec
from cove.model.state import State
from cove.model.usage import NANO

SPEC = SandboxSpec(limits=Limits(cpus=0.5, memory_bytes=256 * MIB, disk_bytes=64 * MIB), idle_timeout_s=None)
DEAR = AccountSettings(metering=MeteringSettings(prices=Prices(vcpu_hour=3600 * NANO, gib_hour=0)))
"""One unit of money per vCPU-second."""

TRUE = ExecSpec(shell="true")


async def limit(core, **limits):
    await core.quotas.set_project(LOCAL, DEFAULT_PROJECT, Quota(**limits))


async def used(core):
    return (await core.quotas.of_project(LOCAL, DEFAULT_PROJECT)).use


async def test_a_hibernated_one_holds_disk_space_only(core) -> None:
    made = await core.sandboxes.create(LOCAL, SPEC)
    await core.sandboxes.hibernate(LOCAL, made.id)
    use = await used(core)
    assert (use.sandboxes, use.cpus, use.memory_bytes, use.disk_bytes) == (0, 0.0, 0, 164 * MIB)
    assert core.stats().admission.memory_promised_bytes == 0
    await core.sandboxes.resume(LOCAL, made.id)
    use = await used(core)
    assert (use.sandboxes, use.cpus, use.memory_bytes, use.disk_bytes) == (1, 0.5, 256 * MIB, 64 * MIB)
    assert core.stats().admission.memory_promised_bytes == 256 * MIB
    await core.sandboxes.hibernate(LOCAL, made.id)
    await core.sandboxes.destroy(LOCAL, made.id)
    assert (await used(core)).disk_bytes == 0


async def test_a_restart_counts_it_the_same(opened) -> None:
    async with opened() as core:
        made = await core.sandboxes.create(LOCAL, SPEC)
        await core.sandboxes.hibernate(LOCAL, made.id)
    async with opened() as core:
        assert (await used(core)).disk_bytes == 164 * MIB
        assert (await used(core)).sandboxes == 0


async def test_a_place_that_somebody_took_meanwhile_must_be_free_again(core) -> None:
    await limit(core, sandboxes=1)
    first = await core.sandboxes.create(LOCAL, SPEC)
    await core.sandboxes.hibernate(LOCAL, first.id)
    second = await core.sandboxes.create(LOCAL, SPEC)
    for _ in range(2):
        with pytest.raises(QuotaExceeded) as raised:
            await core.sandboxes.resume(LOCAL, first.id)
        assert raised.value.field == "sandboxes"
    with pytest.raises(QuotaExceeded):
        await core.execs.run(LOCAL, first.id, TRUE)
    assert core.sandboxes.get(LOCAL, first.id).state is State.HIBERNATED
    assert core.stats().admission.sandboxes == 1
    await core.sandboxes.destroy(LOCAL, second.id)
    assert (await core.execs.run(LOCAL, first.id, TRUE)).stdout == b"out"


@pytest.mark.parametrize("kind", ["memory", "sandboxes"])
async def test_a_machine_that_is_full_lets_it_rest(opened, kind: str) -> None:
    free = [8192 * MIB]
    settings = AdmissionSettings(max_sandboxes=1, keep_free_bytes=512 * MIB)
    async with opened(admission=settings, memory=lambda: Memory(16384 * MIB, free[0])) as core:
        first = await core.sandboxes.create(LOCAL, SPEC)
        await core.sandboxes.hibernate(LOCAL, first.id)
        if kind == "sandboxes":
            await core.sandboxes.create(LOCAL, SPEC)
        else:
            core.sandboxes._admission._memory = Memory(16384 * MIB, 100 * MIB)
        with pytest.raises(CapacityExceeded) as raised:
            await core.sandboxes.resume(LOCAL, first.id)
        assert raised.value.retry_after_s is not None
        assert core.sandboxes.get(LOCAL, first.id).state is State.HIBERNATED


async def test_hibernated_time_costs_nothing_and_what_it_used_is_not_forgotten(opened, clock) -> None:
    async with opened(accounts=DEAR) as core:
        made = await core.sandboxes.create(LOCAL, SPEC)
        clock.advance(10.0)
        await core.sandboxes.hibernate(LOCAL, made.id)
        clock.advance(1000.0)
        bill = await core.usage.of_sandbox(LOCAL, made.id)
        assert (bill.amounts.running_ms, bill.amounts.cost_nano) == (10_000, 5 * NANO)
        assert (bill.amounts.cpu_ms, bill.amounts.sent_bytes) == (5, 3)
    clock.advance(1000.0)
    async with opened(accounts=DEAR) as core:
        await core.sandboxes.resume(LOCAL, made.id)
        clock.advance(2.0)
        bill = await core.usage.of_sandbox(LOCAL, made.id)
        assert (bill.amounts.running_ms, bill.amounts.cost_nano) == (12_000, 6 * NANO)
        assert bill.amounts.cpu_ms == 10


async def test_a_spent_budget_keeps_it_at_rest(opened, clock) -> None:
    async with opened(accounts=DEAR) as core:
        made = await core.sandboxes.create(LOCAL, SPEC)
        clock.advance(10.0)
        await core.sandboxes.hibernate(LOCAL, made.id)
        await limit(core, budget_nano=NANO, budget_period=BudgetPeriod.TOTAL, budget_action=BudgetAction.STOP)
        await core.quotas._budgets.enforce(core.sandboxes._directory._supervisors.all())
        with pytest.raises(BudgetExceeded):
            await core.sandboxes.resume(LOCAL, made.id)
        assert core.sandboxes.get(LOCAL, made.id).state is State.HIBERNATED


async def test_what_is_asked_of_one_that_rests_changes_only_what_it_holds(core) -> None:
    await limit(core, memory_bytes=256 * MIB)
    made = await core.sandboxes.create(LOCAL, SPEC)
    await core.sandboxes.hibernate(LOCAL, made.id)
    change = SandboxChange(name="new", memory_bytes=1024 * MIB, auto_resume=False, timeout_s=60.0)
    changed = await core.sandboxes.update(LOCAL, made.id, change)
    assert (changed.state, changed.name, changed.auto_resume) == (State.HIBERNATED, "new", False)
    assert (await used(core)).memory_bytes == 0
    assert core.stats().admission.memory_promised_bytes == 0
    with pytest.raises(QuotaExceeded):
        await core.sandboxes.resume(LOCAL, "new")
    with pytest.raises(Conflict, match="hibernated; resume it first"):
        await core.execs.run(LOCAL, "new", TRUE)
    await limit(core, memory_bytes=1024 * MIB)
    assert (await core.sandboxes.resume(LOCAL, "new")).limits.memory_bytes == 1024 * MIB


async def test_whoever_may_only_read_resumes_nothing(core) -> None:
    made = await core.sandboxes.create(LOCAL, SPEC)
    reader = Principal(key_id="r", name="r", project=DEFAULT_PROJECT, scopes=frozenset({Scope.READ}))
    await core.sandboxes.hibernate(LOCAL, made.id)
    with pytest.raises(Conflict, match="is hibernated, and this key may not resume it"):
        await core.execs.list(reader, made.id)
    assert core.sandboxes.get(reader, made.id).state is State.HIBERNATED


async def test_links_to_it_follow(core, driver, eventually) -> None:
    reached = SandboxSpec(name="db", network=NetworkRequest(mode=NetworkMode.OPEN))
    target = await core.sandboxes.create(LOCAL, reached)
    linked = NetworkRequest(mode=NetworkMode.OPEN, links=("db",))
    holder = await core.sandboxes.create(LOCAL, SandboxSpec(network=linked))
    first = driver.boxes[target.id].facts.address
    assert driver.boxes[holder.id].links == {"db": first}
    await core.sandboxes.hibernate(LOCAL, target.id)
    await eventually(lambda: driver.boxes[holder.id].links == {})
    await core.sandboxes.resume(LOCAL, target.id)
    second = driver.boxes[target.id].facts.address
    assert second != first
    await eventually(lambda: driver.boxes[holder.id].links == {"db": second})
    await core.sandboxes.hibernate(LOCAL, holder.id)
    await core.sandboxes.resume(LOCAL, holder.id)
    assert driver.boxes[holder.id].links == {"db": second}


async def test_the_trail_tells_what_was_kept(core, driver) -> None:
    made = await core.sandboxes.create(LOCAL, SPEC)
    made_bytes = (await core.sandboxes.hibernate(LOCAL, made.id)).kept_bytes
    await core.sandboxes.resume(LOCAL, made.id)
    driver.boxes[made.id].has_memory = False
    with pytest.raises(Unsupported):
        await core.sandboxes.hibernate(LOCAL, made.id, memory=True)
    hibernated = await core.sandboxes.hibernate(LOCAL, made.id)
    assert hibernated.kept == Kept(memory=False, reason="this stub keeps no memory")
    lines = (await core.trail.page(LOCAL, AuditFilter(sandbox=made.id))).entries
    told = [(one.event, dict(one.data)) for one in lines if one.event != "sandbox.created"]
    assert sorted(told, key=str) == sorted(
        [
            ("sandbox.hibernated", {"memory": True, "reason": None, "size_bytes": made_bytes}),
            ("sandbox.resumed", {"was": "hibernated", "took_ms": 0.0, "memory": True, "reason": None}),
            ("sandbox.hibernated", {"memory": False, "reason": "this stub keeps no memory", "size_bytes": 0}),
        ],
        key=str,
    )
