"""Quotas hold to the last place, whoever asks at once and whatever changes meanwhile."""

# ruff: noqa: ANN001, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.core.accounts import AccountSettings
from cove.core.metering import MeteringSettings
from cove.core.prices import Prices
from cove.core.quotabook import DEPTH
from cove.model.access import DEFAULT_PROJECT, Principal, Scope
from cove.model.audit import AuditFilter
from cove.model.errors import (
    BadRequest,
    BudgetExceeded,
    CapacityExceeded,
    Forbidden,
    NotFound,
    QuotaExceeded,
    QuotaTooSmall,
)
from cove.model.quota import BudgetAction, BudgetPeriod, Quota
from cove.model.request import Idempotency, SandboxChange
from cove.model.sandbox import MIB, Limits, Sandbox, SandboxSpec
from cove.model.state import EndReason, State
from cove.model.usage import NANO, UsageGroup, UsageQuery

SMALL = SandboxSpec(limits=Limits(cpus=0.5, memory_bytes=128 * MIB, disk_bytes=64 * MIB), idle_timeout_s=None)
DEAR = AccountSettings(metering=MeteringSettings(prices=Prices(vcpu_hour=3600 * NANO, gib_hour=0)))
"""One unit of money per vCPU-second."""

MINTER = frozenset({Scope.READ, Scope.CREATE, Scope.DESTROY, Scope.KEYS})


async def limit(core, **limits):
    await core.quotas.set_project(LOCAL, DEFAULT_PROJECT, Quota(**limits))


async def key(core, who=LOCAL, *, quota=None, scopes=MINTER, project=None):
    made, text = await core.keys.mint(who, "k", project, scopes, quota=quota)
    assert made.id == core.keys.authenticate(text).key_id
    return core.keys.authenticate(text)


async def many(core, count, who=LOCAL, spec=SMALL):
    """Creates at once: the ones that were made, and why the others were not."""
    done = await asyncio.gather(*(core.sandboxes.create(who, spec) for _ in range(count)), return_exceptions=True)
    return [one for one in done if not isinstance(one, BaseException)], [
        one for one in done if isinstance(one, BaseException)
    ]


async def used(core, who=LOCAL):
    return (await core.quotas.of_project(who, who.project)).use


async def test_of_101_creates_at_once_exactly_100_fit(core) -> None:
    await limit(core, sandboxes=100)
    made, refused = await many(core, 101)
    assert (len(made), len(refused)) == (100, 1)
    assert isinstance(refused[0], QuotaExceeded)
    assert (refused[0].field, refused[0].limit, refused[0].used) == ("sandboxes", 100, 100)
    assert (await used(core)).sandboxes == 100
    await core.sandboxes.destroy(LOCAL, made[0].id)
    made, refused = await many(core, 5)
    assert (len(made), len(refused)) == (1, 4)


@pytest.mark.parametrize(
    ("limits", "fit", "field"),
    [
        ({"cpus": 2.0}, 4, "cpus"),
        ({"cpus": 0.7}, 1, "cpus"),
        ({"memory_bytes": 3 * 128 * MIB}, 3, "memory_bytes"),
        ({"disk_bytes": 5 * 64 * MIB + 1}, 5, "disk_bytes"),
    ],
)
async def test_each_sum_is_bounded_by_itself(core, limits, fit, field) -> None:
    await limit(core, **limits)
    made, refused = await many(core, 20)
    assert len(made) == fit
    assert {one.field for one in refused} == {field}


async def test_what_could_never_fit_is_told_apart(core) -> None:
    await limit(core, cpus=2.0)
    with pytest.raises(QuotaTooSmall, match="2 cpus in all") as caught:
        await core.sandboxes.create(LOCAL, replace(SMALL, limits=Limits(cpus=2.5)))
    assert (caught.value.limit, caught.value.used, caught.value.retry_after_s) == (2.0, 0.0, None)


async def test_a_create_that_fails_gives_its_place_back(core, driver) -> None:
    await limit(core, sandboxes=1)
    driver.failures = [CapacityExceeded("full", retry_after_s=1)]
    with pytest.raises(CapacityExceeded):
        await core.sandboxes.create(LOCAL, SMALL)
    assert (await used(core)).sandboxes == 0
    await core.sandboxes.create(LOCAL, SMALL)


async def test_a_repeated_request_takes_no_second_place(core) -> None:
    await limit(core, sandboxes=1)
    again = Idempotency(key="k", body_sha256="b" * 64)
    first = await core.sandboxes.create(LOCAL, SMALL, idempotency=again)
    assert (await core.sandboxes.create(LOCAL, SMALL, idempotency=again)).id == first.id
    with pytest.raises(QuotaExceeded):
        await core.sandboxes.create(LOCAL, SMALL)


async def test_larger_limits_count_and_smaller_ones_give_back(core) -> None:
    await limit(core, cpus=2.0, memory_bytes=512 * MIB)
    one = await core.sandboxes.create(LOCAL, SMALL)
    two = await core.sandboxes.create(LOCAL, SMALL)
    done = await asyncio.gather(
        *(core.sandboxes.update(LOCAL, sandbox.id, SandboxChange(cpus=1.4)) for sandbox in (one, two)),
        return_exceptions=True,
    )
    assert [isinstance(found, QuotaExceeded) for found in done] == [False, True]
    assert (await used(core)).cpus == pytest.approx(1.9)
    await core.sandboxes.update(LOCAL, one.id, SandboxChange(cpus=0.2, memory_bytes=64 * MIB))
    await core.sandboxes.update(LOCAL, two.id, SandboxChange(cpus=1.8))
    assert ((await used(core)).cpus, (await used(core)).memory_bytes) == (2.0, 192 * MIB)
    with pytest.raises(QuotaTooSmall):
        await core.sandboxes.update(LOCAL, two.id, SandboxChange(memory_bytes=513 * MIB))
    assert (await used(core)).memory_bytes == 192 * MIB


async def test_a_change_that_the_machine_refuses_holds_nothing(core, driver) -> None:
    await limit(core, cpus=2.0)
    one = await core.sandboxes.create(LOCAL, SMALL)
    driver.boxes[one.id].refuse["set_limits"] = CapacityExceeded("no", retry_after_s=1)
    with pytest.raises(CapacityExceeded):
        await core.sandboxes.update(LOCAL, one.id, SandboxChange(cpus=2.0))
    assert (await used(core)).cpus == 0.5


async def test_a_lowered_quota_ends_nothing_and_lets_things_shrink(core) -> None:
    made, _ = await many(core, 3)
    await limit(core, sandboxes=1, cpus=0.1)
    assert (await used(core)).sandboxes == 3
    await core.sandboxes.update(LOCAL, made[0].id, SandboxChange(cpus=0.1))
    with pytest.raises(QuotaExceeded):
        await core.sandboxes.create(LOCAL, replace(SMALL, limits=Limits(cpus=0.1)))


async def test_a_restart_counts_what_lives_and_keeps_the_limits(opened) -> None:
    async with opened() as core:
        await limit(core, sandboxes=3)
        who = await key(core, quota=Quota(sandboxes=2))
        made, refused = await many(core, 4, who)
        assert (len(made), len(refused)) == (2, 2)
        await core.sandboxes.destroy(who, made[0].id)
    async with opened() as core:
        assert ((await used(core)).sandboxes, (await core.quotas.of_key(LOCAL, who.key_id)).use.sandboxes) == (1, 1)
        assert len((await many(core, 5, who))[0]) == 1
        assert len((await many(core, 5))[0]) == 1


async def test_a_key_only_narrows_its_project(core) -> None:
    await limit(core, sandboxes=2)
    wide = await key(core, quota=Quota(sandboxes=50))
    assert len((await many(core, 5, wide))[0]) == 2


async def test_keys_that_a_key_makes_count_for_it(core) -> None:
    parent = await key(core, quota=Quota(sandboxes=3, cpus=100.0))
    children = [await key(core, parent) for _ in range(3)]
    children.append(await key(core, children[0], quota=Quota(sandboxes=1)))
    for child in children:
        await many(core, 2, child)
    assert (await core.quotas.of_key(LOCAL, parent.key_id)).use.sandboxes == 3
    assert (await core.quotas.of_key(LOCAL, children[3].key_id)).use.sandboxes == 0
    with pytest.raises(Forbidden, match="more sandboxes than it has: 3"):
        await key(core, parent, quota=Quota(sandboxes=4))
    with pytest.raises(Forbidden):
        await key(core, children[3], quota=Quota(sandboxes=2))


async def test_keys_cannot_make_each_other_for_ever(core) -> None:
    who = await key(core)
    for _ in range(DEPTH - 1):
        who = await key(core, who)
    with pytest.raises(Forbidden, match="may make each other"):
        await key(core, who)


async def test_only_admins_set_limits_and_others_see_their_own(core) -> None:
    await core.projects.create(LOCAL, "other")
    who = await key(core)
    stranger = await key(core, project="other")
    for refused in (
        core.quotas.set_project(who, DEFAULT_PROJECT, Quota()),
        core.quotas.set_key(who, who.key_id, Quota()),
    ):
        with pytest.raises(Forbidden):
            await refused
    assert (await core.quotas.of_key(who, who.key_id)).id == who.key_id
    assert [state.subject for state in await core.quotas.of_caller(who)] == ["project", "key"]
    for look in (
        core.quotas.of_project(stranger, DEFAULT_PROJECT),
        core.quotas.of_key(stranger, who.key_id),
        core.quotas.of_project(LOCAL, "nowhere"),
        core.quotas.of_key(LOCAL, "nothing"),
    ):
        with pytest.raises(NotFound):
            await look
    reader = await key(core, scopes=frozenset({Scope.READ}))
    with pytest.raises(NotFound):
        await core.quotas.of_key(reader, who.key_id)


@pytest.mark.parametrize("quota", [Quota(sandboxes=-1), Quota(requests_per_minute=0), Quota(memory_bytes=2**60)])
async def test_absurd_limits_are_refused(core, quota) -> None:
    with pytest.raises(BadRequest):
        await core.quotas.set_project(LOCAL, DEFAULT_PROJECT, quota)


async def test_a_key_has_no_limit_of_what_belongs_to_the_project(core) -> None:
    who = await key(core)
    with pytest.raises(BadRequest, match="projects only"):
        await core.quotas.set_key(LOCAL, who.key_id, Quota(host_ports=1))


async def test_a_budget_is_spent_to_the_end_of_its_period(opened, clock) -> None:
    async with opened(accounts=DEAR) as core:
        await limit(core, budget_nano=100 * NANO, budget_period=BudgetPeriod.DAY)
        one = await core.sandboxes.create(LOCAL, replace(SMALL, limits=Limits(cpus=1.0)))
        clock.advance(60)
        await core.sandboxes.update(LOCAL, one.id, SandboxChange(cpus=2.0))
        clock.advance(20)
        with pytest.raises(BudgetExceeded, match="has spent 100 of its budget of 100 per day") as caught:
            await core.sandboxes.create(LOCAL, SMALL)
        left_s = 86400 - clock.now() % 86400
        assert caught.value.retry_after_s == pytest.approx(left_s, abs=2)
        await core.sandboxes.destroy(LOCAL, one.id)
    async with opened(accounts=DEAR) as core:
        assert (await used(core)).spent_nano == 100 * NANO
        with pytest.raises(BudgetExceeded):
            await core.sandboxes.create(LOCAL, SMALL)
        clock.advance(left_s + 1)
        await core.sandboxes.create(LOCAL, SMALL)
        assert (await used(core)).spent_nano == 0


async def test_a_budget_over_everything_outlasts_the_records(opened, clock) -> None:
    async with opened(accounts=DEAR) as core:
        await limit(core, budget_nano=10 * NANO, budget_period=BudgetPeriod.TOTAL)
        who = await key(core)
        one = await core.sandboxes.create(who, replace(SMALL, limits=Limits(cpus=1.0)))
        clock.advance(11)
        await core.sandboxes.destroy(who, one.id)
        await core.usage.report(LOCAL, UsageQuery())
        while await core.usage._store.usage.purge(before=2**40):
            pass
    async with opened(accounts=DEAR) as core:
        with pytest.raises(BudgetExceeded) as caught:
            await core.sandboxes.create(LOCAL, SMALL)
        assert (caught.value.used, caught.value.retry_after_s) == (11, None)


@pytest.mark.parametrize("action", BudgetAction)
async def test_what_runs_on_a_spent_budget_is_ended_paused_or_left(opened, clock, eventually, action) -> None:
    async with opened(accounts=DEAR) as core:
        await limit(core, budget_nano=50 * NANO, budget_action=action)
        one = await core.sandboxes.create(LOCAL, replace(SMALL, limits=Limits(cpus=1.0)))
        other = await key(core, project=(await core.projects.create(LOCAL, "other")).id)
        beside = await core.sandboxes.create(other, SMALL)
        for _ in range(6):
            clock.advance(10.5)
            await asyncio.sleep(0.02)
        ends = {
            BudgetAction.STOP: (State.TERMINATED, EndReason.BUDGET),
            BudgetAction.PAUSE: (State.PAUSED, None),
            BudgetAction.REFUSE: (State.RUNNING, None),
        }

        def state():
            found = core.sandboxes.get(LOCAL, one.id)
            return found.state, found.end_reason

        await eventually(lambda: state() == ends[action] or clock.advance(10.5))
        if action is BudgetAction.PAUSE:
            with pytest.raises(BudgetExceeded):
                await core.sandboxes.resume(LOCAL, one.id)
            await limit(core, budget_nano=5000 * NANO, budget_action=action)
            await core.sandboxes.resume(LOCAL, one.id)
        assert core.sandboxes.get(other, beside.id).state is State.RUNNING


async def test_usage_is_of_ones_own_project(opened, clock) -> None:
    async with opened(accounts=DEAR) as core:
        await core.projects.create(LOCAL, "other")
        own, stranger = await key(core), await key(core, project="other")
        for who in (own, own, stranger):
            await core.sandboxes.create(who, SMALL)
        clock.advance(10)
        groups = (UsageGroup.PROJECT, UsageGroup.KEY)
        rows = (await core.usage.report(own, UsageQuery(groups=groups))).rows
        assert [(row.project, row.key, row.sandboxes, row.amounts.vcpu_us) for row in rows] == [
            (DEFAULT_PROJECT, own.key_id, 2, 10_000_000)
        ]
        assert len((await core.usage.report(LOCAL, UsageQuery(groups=groups))).rows) == 2
        with pytest.raises(NotFound):
            await core.usage.report(own, UsageQuery(project="other"))
        page = await core.usage.report(LOCAL, UsageQuery(groups=(UsageGroup.SANDBOX,)), limit=2)
        assert (len(page.rows), page.cursor) == (2, "2")
        rest = await core.usage.report(LOCAL, UsageQuery(groups=(UsageGroup.SANDBOX,)), limit=2, cursor=page.cursor)
        assert (len(rest.rows), rest.cursor) == (1, None)
        for row in rest.rows:
            with pytest.raises(NotFound):
                await core.usage.of_sandbox(
                    Principal(key_id="x", name="x", project="third", scopes=MINTER), row.sandbox
                )


async def test_a_change_is_on_record_before_it_is_answered(core) -> None:
    await limit(core, sandboxes=3)
    (line,) = (await core.trail.page(LOCAL, AuditFilter(event="quota."))).entries
    assert (line.data["subject"], line.data["sandboxes"]) == ("project:default", 3)


async def test_changes_of_one_sandbox_at_a_time_give_away_nothing_that_the_last_one_takes(core) -> None:
    await limit(core, cpus=4.0)
    box = await core.sandboxes.create(LOCAL, SandboxSpec(limits=Limits(cpus=4.0)))
    now = box.limits

    def has() -> Sandbox:
        return replace(box, limits=now)

    with core.quotas.changing(box, box.limits, has):  # back to what it has, judged before it shrinks
        with core.quotas.changing(box, replace(box.limits, cpus=1.0), has):
            now = replace(box.limits, cpus=1.0)
        with pytest.raises(QuotaExceeded):
            core.quotas.check(box.project, box.key, replace(box.limits, cpus=3.0))
        now = box.limits
    assert (await used(core)).cpus == 4.0
    with core.quotas.changing(box, replace(box.limits, cpus=1.0), has):
        now = replace(box.limits, cpus=1.0)
    core.quotas.check(box.project, box.key, replace(box.limits, cpus=3.0))
    with (
        pytest.raises(QuotaExceeded),
        core.quotas.changing(box, replace(box.limits, cpus=4.5), has),
    ):
        pass
    assert not core.quotas._changing


async def test_a_clock_that_is_ahead_for_a_while_gives_no_budget_back(opened, clock) -> None:
    async with opened(accounts=DEAR) as core:
        await limit(core, budget_nano=100 * NANO, budget_period=BudgetPeriod.DAY)
        await core.sandboxes.create(LOCAL, replace(SMALL, limits=Limits(cpus=1.0)))
        clock.advance(100)
        with pytest.raises(BudgetExceeded):
            await core.sandboxes.create(LOCAL, SMALL)
        await core.usage.report(LOCAL, UsageQuery())  # which writes what is counted
        clock.jump_wall(86400)
        clock.advance(5)
        assert (await used(core)).spent_nano == 5 * NANO
        clock.jump_wall(-86400)
        clock.advance(5)
        assert (await used(core)).spent_nano >= 105 * NANO
        with pytest.raises(BudgetExceeded):
            await core.sandboxes.create(LOCAL, SMALL)
