# ruff: noqa: ANN001, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cove.engine.checkpoints.model import Checkpoint
from cove.engine.clock import ManualClock
from cove.engine.inbox import REQUEST_LIMIT
from cove.engine.pool import PoolConfig, open_pool
from cove.engine.supervisor import Supervisor
from cove.engine.supervisors import open_supervisors
from cove.model.errors import CapacityExceeded, Conflict, CoveError, EngineFailure, Gone, SandboxGone, Unsupported
from cove.model.network import OPEN_NETWORK, NetworkMode, NetworkPolicy
from cove.model.sandbox import IdleAction, Kept, Limits, Sandbox, Source
from cove.model.state import FINAL, EndReason, State, may_move
from life_support import World, opened


@pytest.fixture
async def world(driver, images, journal, clock) -> AsyncIterator[World]:
    async with opened(driver, images, journal, clock) as one:
        yield one


# Creation.


async def test_a_cold_create_writes_the_intent_first_and_the_fact_last(world: World) -> None:
    supervisor = world.launch(env={"A": "b"}, hostname="host")
    sandbox = await supervisor.wait_started()
    assert sandbox.state is State.RUNNING
    assert sandbox.source is Source.COLD
    assert sandbox.isolation is not None
    assert world.journal.states == [State.PENDING, State.RUNNING]
    assert world.box.agent.claimed == ({"LANG": "C", "A": "b"}, "/w", "host")
    assert world.box.calls == []


async def test_a_warm_box_is_fitted_to_what_was_asked(world: World) -> None:
    box = await world.warm()
    supervisor = world.launch(box, hostname="host", limits=Limits(cpus=2.0))
    sandbox = await supervisor.wait_started()
    assert sandbox.source is Source.WARM
    assert sandbox.id == box.facts.id
    assert box.calls == ["set_limits", "set_hostname"]
    assert box.limits == Limits(cpus=2.0)
    assert world.driver.created == 1


async def test_a_warm_box_with_the_usual_limits_needs_only_the_claim(world: World) -> None:
    box = await world.warm()
    await world.launch(box).wait_started()
    assert box.calls == []
    assert box.agent.claimed is not None


@pytest.mark.parametrize("fault", ["dead", "limits", "claimed", "agent"])
async def test_a_warm_box_that_fails_at_the_claim_is_replaced_by_a_cold_one(world: World, fault: str) -> None:
    box = await world.warm()
    if fault == "dead":
        box.die()
    elif fault == "limits":
        box.refuse["set_limits"] = Unsupported("not this one")
    elif fault == "claimed":
        box.agent.claimed = ({}, None, None)
    else:
        box.agent.is_closed = True
    sandbox = await world.launch(box, limits=Limits(disk_bytes=2**33)).wait_started()
    assert sandbox.source is Source.COLD
    assert box.is_destroyed
    assert world.box.facts.id == sandbox.id
    assert world.box.limits.disk_bytes == 2**33


async def test_a_create_that_fails_leaves_a_failed_record_and_no_box(world: World) -> None:
    world.driver.failures = [EngineFailure("the runtime said no")]
    supervisor = world.launch()
    with pytest.raises(EngineFailure, match="the runtime said no"):
        await supervisor.wait_started()
    last = world.journal.records[-1]
    assert last.state is State.FAILED
    assert last.end_reason is EndReason.CREATE_FAILED
    assert last.end_detail == "the runtime said no"
    assert [one.id for one in world.ended] == [last.id]
    assert world.supervisors.get(last.id) is None


async def test_a_cold_box_that_cannot_be_claimed_is_destroyed(world: World) -> None:
    create = world.driver.create

    async def create_mute(spec):
        box = await create(spec)
        box.agent.gone = True
        return box

    world.driver.create = create_mute
    with pytest.raises(SandboxGone):
        await world.launch().wait_started()
    assert not world.driver.living()


async def test_an_intent_that_cannot_be_written_leaves_nothing(world: World) -> None:
    world.journal.refuse = True
    with pytest.raises(EngineFailure):
        await world.launch().wait_started()
    assert world.driver.created == 0
    assert world.journal.records == []


async def test_a_fact_that_cannot_be_written_ends_the_box(world: World) -> None:
    supervisor = world.launch()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.driver.gate.clear()
    world.journal.refuse = True
    world.driver.gate.set()
    with pytest.raises(EngineFailure):
        await supervisor.wait_started()
    assert not world.driver.living()


async def test_a_bug_while_creating_is_an_engine_failure_and_harms_no_other(world: World) -> None:
    other = world.launch(id="3" * 16)
    await other.wait_started()
    world.driver.failures = [ZeroDivisionError()]
    with pytest.raises(EngineFailure):
        await world.launch().wait_started()
    assert (await other.pause()).state is State.PAUSED
    assert world.journal.states[-2:] == [State.FAILED, State.PAUSED]


async def test_an_os_error_of_the_machine_is_an_engine_failure(world: World) -> None:
    world.driver.failures = [OSError(28, "No space left on device")]
    with pytest.raises(EngineFailure):
        await world.launch().wait_started()


async def test_a_cancelled_waiter_leaves_a_whole_sandbox(world: World) -> None:
    world.driver.gate.clear()
    supervisor = world.launch()
    waiter = asyncio.create_task(supervisor.wait_started())
    await asyncio.sleep(0.01)
    waiter.cancel()
    world.driver.gate.set()
    assert (await supervisor.wait_started()).state is State.RUNNING


# Pause, resume, change.


async def test_pause_and_resume_write_first_and_act_then(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    assert (await supervisor.pause()).state is State.PAUSED
    assert world.box.is_paused
    assert (await supervisor.pause()).state is State.PAUSED
    assert (await supervisor.resume()).state is State.RUNNING
    assert (await supervisor.resume()).state is State.RUNNING
    assert world.box.calls == ["pause", "resume"]
    assert world.journal.states == [State.PENDING, State.RUNNING, State.PAUSED, State.RUNNING]


async def test_a_pause_that_the_kernel_refuses_is_taken_back(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    world.box.refuse["pause"] = EngineFailure("frozen solid")
    with pytest.raises(EngineFailure):
        await supervisor.pause()
    assert supervisor.view().state is State.RUNNING
    assert world.journal.states[-2:] == [State.PAUSED, State.RUNNING]


async def test_a_pause_that_cannot_be_written_is_not_done(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    world.journal.refuse = True
    with pytest.raises(EngineFailure):
        await supervisor.pause()
    assert world.box.calls == []
    assert supervisor.view().state is State.RUNNING


async def test_work_in_a_paused_sandbox_resumes_it(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    await supervisor.pause()
    async with supervisor.lease() as box:
        assert not box.is_paused
        assert supervisor.view().state is State.RUNNING


async def test_work_that_arrives_while_it_is_being_paused_waits_and_resumes_it(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    pausing = asyncio.create_task(supervisor.pause())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with supervisor.lease() as box:
        assert not box.is_paused
    await pausing
    assert world.box.calls == ["pause", "resume"]


async def test_a_lost_connection_is_made_again_once(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    world.box.agent.is_closed = True

    async def work() -> None:
        async with supervisor.lease() as box:
            assert not box.agent.is_closed

    await asyncio.gather(*(work() for _ in range(5)))
    assert world.box.calls == ["reconnect"]


async def test_changed_limits_are_applied_before_they_are_told(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    limits = Limits(cpus=3.0)
    sandbox = await supervisor.change(lambda one: replace(one, limits=limits, name="new"))
    assert sandbox.limits == world.box.limits == limits
    assert sandbox.name == "new"
    assert world.journal.records[-1].limits == limits


async def test_limits_that_cannot_be_written_are_taken_back(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    world.journal.refuse = True
    with pytest.raises(EngineFailure):
        await supervisor.change(lambda one: replace(one, limits=Limits(cpus=3.0)))
    assert world.box.limits == supervisor.view().limits == Limits()


# The network.


async def test_a_network_policy_holds_before_the_agent_is_claimed(world: World) -> None:
    box = await world.warm()
    was_claimed: list[bool] = []
    apply = box.set_network

    async def watched(policy, links) -> None:
        was_claimed.append(box.agent.claimed is not None)
        await apply(policy, links)

    box.set_network = watched
    sandbox = await world.launch(box, network=OPEN_NETWORK).wait_started()
    assert was_claimed == [False]
    assert sandbox.source is Source.WARM
    assert sandbox.isolation.network == "open"


async def test_a_sandbox_without_network_costs_no_call(world: World) -> None:
    await world.launch().wait_started()
    assert "set_network" not in world.box.calls


@pytest.mark.parametrize("call", ["set_network"])
async def test_a_warm_box_that_cannot_be_connected_is_replaced(world: World, call: str) -> None:
    box = await world.warm()
    box.refuse[call] = EngineFailure("the machine refused")
    sandbox = await world.launch(box, network=OPEN_NETWORK).wait_started()
    assert sandbox.source is Source.COLD
    assert world.driver.boxes[sandbox.id].network is OPEN_NETWORK


async def test_a_changed_policy_is_written_before_it_holds_and_holds_before_it_is_told(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    written: list[NetworkPolicy] = []
    apply = world.box.set_network

    async def watched(policy, links) -> None:
        written.append(world.journal.records[-1].network)
        await apply(policy, links)

    world.box.set_network = watched
    sandbox = await supervisor.change(lambda one: replace(one, network=OPEN_NETWORK))
    assert written == [OPEN_NETWORK]
    assert world.box.network is sandbox.network is OPEN_NETWORK
    assert sandbox.isolation.network == "open"
    assert supervisor.address.startswith("10.213.0.")
    assert (await supervisor.network_use()).sent_bytes == 3


async def test_a_policy_that_the_machine_refuses_is_taken_back_everywhere(world: World) -> None:
    supervisor = world.launch(network=OPEN_NETWORK)
    await supervisor.wait_started()
    apply, failed = world.box.set_network, []

    async def once(policy, links) -> None:
        if not failed:
            failed.append(policy)
            raise EngineFailure("the machine refused")
        await apply(policy, links)

    world.box.set_network = once
    narrow = NetworkPolicy(mode=NetworkMode.POLICY)
    with pytest.raises(EngineFailure):
        await supervisor.change(lambda one: replace(one, network=narrow, limits=Limits(cpus=3.0)))
    assert failed == [narrow]
    assert world.journal.records[-1].network is world.box.network is supervisor.view().network is OPEN_NETWORK
    assert world.box.limits == Limits()


async def test_links_are_asked_for_at_each_application(driver, images, journal, clock, eventually) -> None:
    links: dict[str, str] = {"db": "10.213.0.200"}
    ended: list[Sandbox] = []
    async with (
        open_pool({"stub": driver}, images, PoolConfig(), clock=clock) as pool,
        open_supervisors(journal, pool, clock, ended.append, links=lambda _: links) as supervisors,
    ):
        one = World(driver, images, journal, clock, supervisors, ended)
        supervisor = one.launch(network=NetworkPolicy(links=("db",)))
        await supervisor.wait_started()
        assert one.box.links == {"db": "10.213.0.200"}
        links["db"] = "10.213.0.201"
        supervisor.connect_soon()
        await eventually(lambda: one.box.links == {"db": "10.213.0.201"})
        one.box.refuse["set_network"] = EngineFailure("the machine refused")
        supervisor.connect_soon()
        await eventually(lambda: one.box.calls.count("set_network") == 3)
        assert (await supervisor.pause()).state is State.PAUSED


# Ends.


async def test_an_end_is_intent_then_deed_then_fact_with_the_last_usage(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    sandbox = await supervisor.end(EndReason.REQUESTED)
    assert sandbox.state is State.TERMINATED
    assert sandbox.usage.cpu_ms == 9
    assert sandbox.ended_at == world.clock.now()
    assert world.journal.states[-2:] == [State.STOPPING, State.TERMINATED]
    assert not world.driver.living()
    assert await supervisor.end(EndReason.REQUESTED) == sandbox


async def test_two_who_end_it_at_once_get_the_same_answer(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    first, second = await asyncio.gather(supervisor.end(EndReason.REQUESTED), supervisor.end(EndReason.EXPIRED))
    assert first == second
    assert world.box.calls == ["destroy"]


async def test_a_cancelled_end_ends_it_all_the_same(world: World, eventually) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    task = asyncio.create_task(supervisor.end(EndReason.REQUESTED))
    await asyncio.sleep(0)
    task.cancel()
    await eventually(lambda: supervisor.view().state is State.TERMINATED)


async def test_an_end_while_it_is_created_waits_for_the_creation(world: World) -> None:
    world.driver.gate.clear()
    supervisor = world.launch()
    ending = asyncio.create_task(supervisor.end(EndReason.REQUESTED))
    await asyncio.sleep(0.01)
    world.driver.gate.set()
    assert (await ending).state is State.TERMINATED
    assert not world.driver.living()


async def test_a_full_disk_does_not_stop_an_end(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    world.journal.refuse = True
    assert (await supervisor.end(EndReason.REQUESTED)).state is State.TERMINATED
    assert not world.driver.living()


async def test_what_cannot_be_freed_does_not_stop_an_end(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    world.box.refuse["destroy"] = EngineFailure("busy")
    assert (await supervisor.end(EndReason.REQUESTED)).state is State.TERMINATED


@pytest.mark.parametrize(("ooms", "reason"), [(0, EndReason.DIED), (1, EndReason.OUT_OF_MEMORY)])
async def test_a_death_is_noticed_and_its_reason_told(world: World, eventually, ooms: int, reason: EndReason) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    world.box.ooms += ooms
    world.box.die()
    await eventually(lambda: supervisor.view().state in FINAL)
    assert supervisor.view().state is State.FAILED
    assert supervisor.view().end_reason is reason
    assert world.box.is_destroyed
    with pytest.raises(Gone, match=reason.value):
        await supervisor.pause()
    with pytest.raises(Gone):
        async with supervisor.lease():
            pass


async def test_requests_that_wait_when_it_ends_are_told_so(world: World) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    ending = asyncio.create_task(supervisor.end(EndReason.REQUESTED))
    await asyncio.sleep(0)
    with pytest.raises(Gone):
        await supervisor.pause()
    await ending


async def test_its_inbox_is_bounded(world: World) -> None:
    world.driver.gate.clear()
    supervisor = world.launch()
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(supervisor.pause()) for _ in range(REQUEST_LIMIT)]
    await asyncio.sleep(0)
    with pytest.raises(CapacityExceeded):
        await supervisor.pause()
    world.driver.gate.set()
    await asyncio.gather(*waiting)


# Timers.


async def test_it_ends_when_its_time_is_over(world: World, eventually) -> None:
    supervisor = world.launch(expires_at=world.clock.now() + 60.0)
    await supervisor.wait_started()
    await asyncio.sleep(0)
    world.clock.advance(59.0)
    await asyncio.sleep(0.005)
    assert supervisor.view().state is State.RUNNING
    world.clock.advance(2.0)
    await eventually(lambda: supervisor.view().state is State.TERMINATED)
    assert supervisor.view().end_reason is EndReason.EXPIRED


async def test_a_renewed_expiry_counts(world: World, eventually) -> None:
    supervisor = world.launch(expires_at=world.clock.now() + 60.0)
    await supervisor.wait_started()
    later = world.clock.now() + 120.0
    await supervisor.change(lambda one: replace(one, expires_at=later))
    world.clock.advance(61.0)
    await asyncio.sleep(0.005)
    assert supervisor.view().state is State.RUNNING
    world.clock.advance(60.0)
    await eventually(lambda: supervisor.view().end_reason is EndReason.EXPIRED)


async def test_an_idle_sandbox_is_paused_and_still_expires(world: World, eventually) -> None:
    supervisor = world.launch(idle_timeout_s=10.0, expires_at=world.clock.now() + 100.0)
    await supervisor.wait_started()
    await asyncio.sleep(0)
    world.clock.advance(11.0)
    await eventually(lambda: supervisor.view().state is State.PAUSED)
    world.clock.advance(90.0)
    await eventually(lambda: supervisor.view().end_reason is EndReason.EXPIRED)


async def test_an_idle_sandbox_ends_if_it_was_asked_to(world: World, eventually) -> None:
    supervisor = world.launch(idle_timeout_s=10.0, idle_action=IdleAction.TERMINATE)
    await supervisor.wait_started()
    await asyncio.sleep(0)
    world.clock.advance(11.0)
    await eventually(lambda: supervisor.view().end_reason is EndReason.IDLE)


async def test_work_in_it_is_no_idleness(world: World, eventually) -> None:
    supervisor = world.launch(idle_timeout_s=10.0)
    await supervisor.wait_started()
    async with supervisor.lease():
        world.clock.advance(100.0)
        await asyncio.sleep(0.005)
        assert supervisor.view().state is State.RUNNING
    world.clock.advance(9.0)
    await asyncio.sleep(0.005)
    assert supervisor.view().state is State.RUNNING
    world.clock.advance(2.0)
    await eventually(lambda: supervisor.view().state is State.PAUSED)


async def test_activity_is_noted_for_the_next_start(world: World, eventually) -> None:
    supervisor = world.launch()
    await supervisor.wait_started()
    world.clock.advance(100.0)
    async with supervisor.lease():
        pass
    await eventually(lambda: world.journal.records[-1].last_active_at == world.clock.now())


# The server's end.


async def test_when_the_server_stops_the_sandbox_goes_on(driver, images, journal, clock) -> None:
    async with opened(driver, images, journal, clock) as world:
        supervisor = world.launch()
        await supervisor.wait_started()
    assert len(driver.living()) == 1
    assert journal.states[-1] is State.RUNNING
    assert world.box.agent.is_closed
    with pytest.raises(Conflict, match="goes on"):
        await supervisor.pause()


async def test_a_create_in_progress_is_finished_before_the_server_stops(driver, images, journal, clock) -> None:
    driver.gate.clear()
    async with opened(driver, images, journal, clock) as world:
        supervisor = world.launch()
        asyncio.get_running_loop().call_later(0.02, driver.gate.set)
    assert journal.states == [State.PENDING, State.RUNNING, State.RUNNING]
    assert supervisor.view().state is State.RUNNING


async def test_an_adopted_sandbox_goes_on(world: World, eventually) -> None:
    box = await world.warm()
    supervisor = world.supervisors.adopt(world.sandbox(id=box.facts.id, state=State.PAUSED), box)
    async with supervisor.lease() as leased:
        assert leased is box
    assert supervisor.view().state is State.RUNNING
    box.die()
    await eventually(lambda: supervisor.view().state is State.FAILED)


# Any order of events.

THEN = "5" * 16
FULL = CapacityExceeded("this machine has too little free disk space now", retry_after_s=2)
ACTIONS = ("pause", "resume", "hibernate", "snapshot", "rollback", "lease", "change", "end")
ACCIDENTS = ("die", "tick", "refuse", "allow", "full", "broken", "cancel", "turn")
EVENTS = st.lists(
    st.sampled_from(ACTIONS + ACCIDENTS),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS)
def test_whatever_happens_the_record_moves_along_the_table_and_no_box_is_left(stubs, events: list[str]) -> None:
    asyncio.run(_whatever_happens(*stubs(), events))


async def _whatever_happens(driver, images, journal, events: list[str]) -> None:

    clock = ManualClock()
    tasks: list[asyncio.Task[object]] = []
    async with opened(driver, images, journal, clock) as world:
        supervisor = world.launch(idle_timeout_s=30.0, expires_at=clock.now() + 300.0)
        for event in events:
            await _do(event, world, supervisor, tasks)
        journal.refuse = False
        driver.failures.clear()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(
            outcome is None or isinstance(outcome, CoveError | Sandbox | Checkpoint | asyncio.CancelledError)
            for outcome in outcomes
        )
        final = await supervisor.end(EndReason.REQUESTED)
        assert final.state in FINAL
        assert final.end_reason is not None
    assert not driver.living()
    assert set(world.checkpoints.sealed) <= {THEN}
    assert not world.checkpoints.drafts
    states = journal.states
    assert all(a is b or may_move(a, b) or b in FINAL for a, b in pairwise(states)), states
    assert states[-1] in FINAL


async def _do(event: str, world: World, supervisor: Supervisor, tasks: list[asyncio.Task[object]]) -> None:
    async def lease() -> None:
        async with supervisor.lease():
            await asyncio.sleep(0)

    async def back() -> None:
        then = world.checkpoints.sealed.get(THEN)
        if then is not None:
            await supervisor.roll_back(then, world.images.get("base"), kept=Kept(memory=True))

    actions = {
        "pause": supervisor.pause,
        "resume": supervisor.resume,
        "hibernate": supervisor.hibernate,
        "snapshot": lambda: supervisor.snapshot(THEN, memory=None),
        "rollback": back,
        "lease": lease,
        "change": lambda: supervisor.change(lambda one: replace(one, limits=Limits(cpus=2.0))),
        "end": lambda: supervisor.end(EndReason.REQUESTED),
    }
    if event in actions:
        tasks.append(asyncio.create_task(actions[event]()))
    elif event == "cancel" and tasks:
        tasks[-1].cancel()
    else:
        await _happen(event, world)
    await asyncio.sleep(0)


async def _happen(event: str, world: World) -> None:
    is_born = bool(world.journal.states[1:])
    match event:
        case "die" if world.driver.living():
            world.box.die()
        case "tick":
            world.clock.advance(31.0)
        case "refuse" | "allow":
            world.journal.refuse = event == "refuse" and is_born
        case "full":
            world.checkpoints.refuse = {} if world.checkpoints.refuse else {"seal": FULL}
        case "broken" if is_born:
            world.driver.failures.append(EngineFailure("the machine refused"))
        case "turn":
            await asyncio.sleep(0.001)
        case _:
            pass
