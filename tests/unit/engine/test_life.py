# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from cove.engine.clock import ManualClock
from cove.engine.keeping import NOT_ASKED
from cove.engine.life import HIBERNATE_AGAIN_S, WENT_TO_REST
from cove.engine.supervisor import Supervisor
from cove.model.errors import (
    CapacityExceeded,
    Conflict,
    EngineFailure,
    Gone,
    NotFound,
    SandboxGone,
    Unsupported,
)
from cove.model.network import OPEN_NETWORK
from cove.model.sandbox import MIB, IdleAction, Kept, Limits, TimeoutCounts, Usage
from cove.model.state import EndReason, State
from life_support import World, opened

FULL = CapacityExceeded("this machine has too little free disk space now", retry_after_s=2)


@pytest.fixture
async def world(driver, images, journal, clock, checkpoints) -> AsyncIterator[World]:
    async with opened(driver, images, journal, clock, checkpoints) as one:
        yield one


async def started(world: World, **fields) -> Supervisor:
    supervisor = world.launch(env={"SECRET": "s"}, **fields)
    await supervisor.wait_started()
    return supervisor


def newest(world: World):
    return list(world.driver.boxes.values())[-1]


# Hibernate and resume.


async def test_what_is_whole_is_written_before_what_it_replaces_is_destroyed(world: World) -> None:
    supervisor = await started(world)
    box, order = world.box, []
    write, destroy, seal = world.journal.write, box.destroy, world.checkpoints.seal

    async def watched(name, call, *args):
        order.append((name, box.is_paused, box.is_destroyed))
        return await call(*args)

    world.journal.write = lambda one: watched(one.state.value, write, one)
    box.destroy = lambda: watched("destroy", destroy)
    world.checkpoints.seal = lambda *args: watched("seal", seal, *args)
    sandbox = await supervisor.hibernate()
    assert sandbox.state is State.HIBERNATED
    assert order == [("seal", True, False), ("hibernated", True, False), ("destroy", True, False)]
    assert sandbox.kept == Kept(memory=True)
    assert sandbox.kept_bytes == 100 * MIB
    assert world.told == ["rests", "moves"]
    assert not world.driver.living()
    facts = world.checkpoints.sealed[sandbox.id].facts
    assert facts.env == {"LANG": "C", "SECRET": "s"}
    assert "SECRET" not in repr(facts)


async def test_a_resumed_one_has_a_new_box_of_its_own_checkpoint(world: World, eventually) -> None:
    supervisor = await started(world, network=OPEN_NETWORK)
    first = world.box
    await supervisor.hibernate()
    assert supervisor.address == ""
    sandbox = await supervisor.resume()
    box = newest(world)
    assert (sandbox.state, sandbox.kept, sandbox.kept_bytes) == (State.RUNNING, Kept(memory=True), 0)
    assert box is not first
    assert box.origin.id == sandbox.id
    assert box.agent.revived == (None, {}, False)
    assert box.calls.index("set_network") == 0
    assert box.network is OPEN_NETWORK
    assert world.told == ["rests", "moves", "may_resume", "moves"]
    await eventually(lambda: not world.checkpoints.sealed)
    assert world.journal.states[-2:] == [State.HIBERNATED, State.RUNNING]


async def test_an_end_right_behind_a_resume_leaves_no_checkpoint(world: World) -> None:
    supervisor = await started(world)
    await supervisor.hibernate()
    _, ended = await asyncio.gather(supervisor.resume(), supervisor.end(EndReason.REQUESTED))
    assert ended.state is State.TERMINATED
    assert not world.checkpoints.sealed


async def test_hibernating_twice_and_resuming_a_running_one_are_nothing(world: World) -> None:
    supervisor = await started(world)
    assert (await supervisor.resume()).state is State.RUNNING
    await supervisor.hibernate()
    before = list(world.checkpoints.calls)
    assert (await supervisor.hibernate()).state is State.HIBERNATED
    assert world.checkpoints.calls == before
    with pytest.raises(Conflict, match="hibernated"):
        await supervisor.pause()


async def test_a_paused_one_hibernates_and_comes_back_running(world: World) -> None:
    supervisor = await started(world)
    await supervisor.pause()
    assert (await supervisor.hibernate()).state is State.HIBERNATED
    assert (await supervisor.resume()).state is State.RUNNING
    assert not newest(world).is_paused


async def test_where_memory_cannot_be_kept_it_is_said_and_without_asking_not_done(world: World) -> None:
    supervisor = await started(world)
    world.box.has_memory = False
    with pytest.raises(Unsupported, match="keeps no memory"):
        await supervisor.hibernate(memory=True)
    assert supervisor.view().state is State.RUNNING
    assert not world.box.is_paused
    assert not world.checkpoints.drafts
    sandbox = await supervisor.hibernate()
    assert sandbox.kept == Kept(memory=False, reason="this stub keeps no memory")
    with pytest.raises(Conflict, match="only its files"):
        await supervisor.resume(memory=True)
    sandbox = await supervisor.resume()
    assert sandbox.kept == Kept(memory=False, reason="this stub keeps no memory")
    assert newest(world).agent.claimed == ({"LANG": "C", "SECRET": "s"}, "/w", None)


async def test_files_only_where_that_is_asked_for(world: World) -> None:
    supervisor = await started(world)
    assert (await supervisor.hibernate(memory=False)).kept == Kept(memory=False, reason=NOT_ASKED)
    await supervisor.resume()
    assert newest(world).agent.revived is None


@pytest.mark.parametrize("step", ["begin", "checkpoint", "seal", "write"])
@pytest.mark.parametrize("was", [State.RUNNING, State.PAUSED])
async def test_a_hibernation_that_fails_leaves_all_as_it_was(world: World, step: str, was: State) -> None:
    supervisor = await started(world)
    if was is State.PAUSED:
        await supervisor.pause()
    if step == "checkpoint":
        world.box.refuse[step] = FULL
    elif step == "write":
        world.journal.refuse = True
    else:
        world.checkpoints.refuse[step] = FULL
    with pytest.raises((CapacityExceeded, EngineFailure)):
        await supervisor.hibernate()
    assert supervisor.view().state is was
    assert world.box.is_paused is (was is State.PAUSED)
    assert not world.box.is_destroyed
    assert not world.checkpoints.sealed
    assert not world.checkpoints.drafts
    assert world.told == []
    world.journal.refuse = False
    async with supervisor.lease() as box:
        assert not box.is_paused


async def test_a_checkpoint_that_hangs_is_given_up(world: World, monkeypatch) -> None:
    monkeypatch.setattr("cove.engine.keeping.checkpoint_timeout_s", lambda _: 0.02)
    supervisor = await started(world)

    async def hang() -> None:
        await asyncio.sleep(3600)

    world.box.on_checkpoint = hang
    with pytest.raises(EngineFailure, match="in time"):
        await supervisor.hibernate()
    assert supervisor.view().state is State.RUNNING
    assert not world.box.is_paused
    assert not world.checkpoints.drafts


async def test_a_server_that_stops_does_not_wait_for_a_long_checkpoint(driver, images, journal, monkeypatch) -> None:
    monkeypatch.setattr("cove.engine.life.STOP_GRACE_S", 0.02)
    async with opened(driver, images, journal, ManualClock()) as world:
        supervisor = await started(world)

        async def hang() -> None:
            await asyncio.sleep(3600)

        world.box.on_checkpoint = hang
        hibernating = asyncio.create_task(supervisor.hibernate())
        await asyncio.sleep(0.01)
    with pytest.raises(EngineFailure, match="stopping"):
        await hibernating
    assert journal.states[-1] is State.RUNNING
    assert not world.box.is_paused
    assert len(driver.living()) == 1


async def test_a_resume_that_is_refused_leaves_it_hibernated(world: World) -> None:
    supervisor = await started(world)
    await supervisor.hibernate()
    world.refusal = FULL
    with pytest.raises(CapacityExceeded):
        await supervisor.resume()
    with pytest.raises(CapacityExceeded):
        async with supervisor.lease():
            pass
    assert supervisor.view().state is State.HIBERNATED
    assert world.checkpoints.sealed
    world.refusal = None
    assert (await supervisor.resume()).state is State.RUNNING


@pytest.mark.parametrize("step", ["create", "revive", "network", "write", "gone"])
async def test_a_resume_that_fails_leaves_it_hibernated_and_gives_the_place_back(world: World, step: str) -> None:
    supervisor = await started(world, network=OPEN_NETWORK)
    await supervisor.hibernate()
    world.told.clear()
    create, kept_one = world.driver.create, dict(world.checkpoints.sealed)

    async def made(spec):
        box = await create(spec)
        if step == "revive":
            box.agent.gone = True
        elif step == "network":
            box.refuse["set_network"] = EngineFailure("no")
        return box

    if step == "create":
        world.driver.failures = [EngineFailure("no")]
    elif step == "write":
        world.journal.refuse = True
    elif step == "gone":
        world.checkpoints.sealed.clear()
    world.driver.create = made
    with pytest.raises((EngineFailure, SandboxGone, NotFound)):
        await supervisor.resume()
    assert supervisor.view().state is State.HIBERNATED
    assert world.told == ["may_resume", "rests"]
    assert not world.driver.living()
    world.driver.create, world.journal.refuse = create, False
    world.checkpoints.sealed.update(kept_one)
    assert (await supervisor.resume()).state is State.RUNNING


async def test_of_a_damaged_memory_the_files_can_be_had(world: World) -> None:
    supervisor = await started(world)
    sandbox = await supervisor.hibernate()
    world.checkpoints.damaged.add(sandbox.id)
    with pytest.raises(EngineFailure, match="damaged"):
        await supervisor.resume()
    assert supervisor.view().state is State.HIBERNATED
    sandbox = await supervisor.resume(memory=False)
    assert sandbox.kept == Kept(memory=False, reason=NOT_ASKED)
    assert newest(world).agent.claimed is not None
    assert newest(world).agent.revived is None


async def test_what_could_not_be_freed_is_freed_before_it_is_made_again(world: World) -> None:
    supervisor = await started(world)
    first = world.box
    first.refuse["destroy"] = EngineFailure("busy")
    assert (await supervisor.hibernate()).state is State.HIBERNATED
    with pytest.raises(EngineFailure, match="busy"):
        await supervisor.resume()
    first.refuse.clear()
    assert (await supervisor.resume()).state is State.RUNNING
    assert first.is_destroyed


async def test_what_ran_in_it_is_told_what_became_of_it(world: World) -> None:
    supervisor = await started(world)
    async with supervisor.lease() as box:
        await supervisor.hibernate()
        assert isinstance(box.agent.dropped, Conflict)
        assert box.agent.dropped.public == WENT_TO_REST
    assert supervisor.view().state is State.HIBERNATED


async def test_the_death_of_the_box_that_it_left_is_not_its_own(world: World) -> None:
    supervisor = await started(world)
    await supervisor.hibernate()
    await asyncio.sleep(0.01)
    assert supervisor.view().state is State.HIBERNATED
    await supervisor.resume()
    newest(world).ooms = 1
    newest(world).die()
    await asyncio.sleep(0.01)
    assert supervisor.view().end_reason is EndReason.OUT_OF_MEMORY


async def test_a_death_in_mid_checkpoint_ends_it(world: World, eventually) -> None:
    supervisor = await started(world)

    async def die() -> None:
        world.box.die()
        raise SandboxGone("it died")

    world.box.on_checkpoint = die
    with pytest.raises(SandboxGone):
        await supervisor.hibernate()
    await eventually(lambda: supervisor.view().end_reason is EndReason.DIED)
    assert not world.checkpoints.sealed


async def in_use() -> Usage:
    return Usage(cpu_ms=5, memory_bytes=7, pids=3)


async def test_usage_goes_on_over_a_hibernation(world: World) -> None:
    supervisor = await started(world)
    world.box.usage = in_use
    hibernated = await supervisor.hibernate()
    assert (hibernated.usage.cpu_ms, hibernated.usage.memory_bytes, hibernated.usage.pids) == (5, 0, 0)
    assert (await supervisor.measure()).usage.cpu_ms == 5
    await supervisor.resume()
    assert (await supervisor.measure()).usage.cpu_ms == 10
    assert (await supervisor.network_use()).sent_bytes == 6
    assert (await supervisor.end(EndReason.REQUESTED)).usage.cpu_ms == 5 + 9


async def test_ending_a_hibernated_one_removes_its_checkpoint(world: World) -> None:
    supervisor = await started(world)
    await supervisor.hibernate()
    sandbox = await supervisor.end(EndReason.REQUESTED)
    assert (sandbox.state, sandbox.usage.cpu_ms) == (State.TERMINATED, 5)
    assert not world.checkpoints.sealed
    with pytest.raises(Gone):
        await supervisor.resume()


async def test_an_adopted_hibernated_one_resumes(world: World) -> None:
    supervisor = await started(world)
    sandbox = await supervisor.hibernate()
    supervisor.detach()
    await asyncio.sleep(0.01)
    again = world.supervisors.adopt(sandbox, None)
    async with again.lease() as box:
        assert box is newest(world)
    assert again.view().state is State.RUNNING


async def test_what_is_changed_while_it_is_hibernated_holds_when_it_is_back(world: World) -> None:
    supervisor = await started(world)
    await supervisor.hibernate()
    limits = Limits(cpus=3.0, memory_bytes=200 * MIB)

    changed = await supervisor.change(lambda one: replace(one, limits=limits, name="new", network=OPEN_NETWORK))
    assert (changed.state, changed.name) == (State.HIBERNATED, "new")
    with pytest.raises(Conflict, match="more than that"):
        await supervisor.change(lambda one: replace(one, limits=Limits(memory_bytes=64 * MIB)))
    await supervisor.resume()
    assert newest(world).facts.limits == limits
    assert newest(world).network is OPEN_NETWORK


# Work that resumes it, or does not.


@pytest.mark.parametrize("rest", ["pause", "hibernate"])
async def test_work_resumes_it_only_where_it_was_asked_for(world: World, rest: str) -> None:
    supervisor = await started(world, auto_resume=False)
    await getattr(supervisor, rest)()
    with pytest.raises(Conflict, match=rf"is {rest}d; resume it first") as raised:
        async with supervisor.lease():
            pass
    assert raised.value.field == "state"
    await supervisor.resume()
    async with supervisor.lease() as box:
        assert not box.is_paused


async def test_work_that_comes_while_it_is_hibernated_waits_and_resumes_it(world: World) -> None:
    supervisor = await started(world)
    hibernating = asyncio.create_task(supervisor.hibernate())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with supervisor.lease() as box:
        assert box is newest(world)
        assert not box.is_destroyed
    await hibernating


# Timers.


async def test_an_idle_sandbox_is_hibernated_with_its_memory(world: World, eventually) -> None:
    supervisor = await started(world, idle_timeout_s=10.0, idle_action=IdleAction.HIBERNATE)
    world.clock.advance(11.0)
    await eventually(lambda: supervisor.view().state is State.HIBERNATED)


@pytest.mark.parametrize("why", ["memory", "disk"])
async def test_one_that_cannot_be_hibernated_is_paused_and_tried_again(world: World, eventually, why: str) -> None:
    supervisor = await started(world, idle_timeout_s=10.0, idle_action=IdleAction.HIBERNATE)
    if why == "memory":
        world.box.has_memory = False
    else:
        world.checkpoints.refuse["begin"] = FULL
    world.clock.advance(11.0)
    await eventually(lambda: supervisor.view().state is State.PAUSED)
    note = supervisor.view().state_note
    assert note is not None
    assert note.startswith("it was to be hibernated: this ")
    world.clock.advance(HIBERNATE_AGAIN_S - 100.0)
    await asyncio.sleep(0.005)
    assert supervisor.view().state is State.PAUSED
    world.box.has_memory = True
    world.checkpoints.refuse.clear()
    world.clock.advance(101.0)
    await eventually(lambda: supervisor.view().state is State.HIBERNATED)
    assert supervisor.view().state_note is None


async def test_a_paused_one_is_hibernated_when_its_idle_time_is_over(world: World, eventually) -> None:
    supervisor = await started(world, idle_timeout_s=10.0, idle_action=IdleAction.HIBERNATE)
    await supervisor.pause()
    world.clock.advance(11.0)
    await eventually(lambda: supervisor.view().state is State.HIBERNATED)


@pytest.mark.parametrize("rest", ["pause", "hibernate"])
async def test_a_time_to_live_that_counts_only_while_it_runs_stands_still(world: World, eventually, rest: str) -> None:
    supervisor = await started(
        world, expires_at=world.clock.now() + 60.0, timeout_counts=TimeoutCounts.RUNNING, idle_timeout_s=None
    )
    world.clock.advance(20.0)
    sandbox = await getattr(supervisor, rest)()
    assert (sandbox.expires_at, sandbox.time_left_s) == (None, 40.0)
    world.clock.advance(10_000.0)
    await asyncio.sleep(0.005)
    assert supervisor.view().state is not State.TERMINATED
    sandbox = await supervisor.resume()
    assert (sandbox.expires_at, sandbox.time_left_s) == (world.clock.now() + 40.0, None)
    world.clock.advance(41.0)
    await eventually(lambda: supervisor.view().end_reason is EndReason.EXPIRED)


@pytest.mark.parametrize("rest", ["pause", "hibernate"])
async def test_else_it_passes_all_the_time(world: World, eventually, rest: str) -> None:
    supervisor = await started(world, expires_at=world.clock.now() + 60.0)
    await getattr(supervisor, rest)()
    world.clock.advance(61.0)
    await eventually(lambda: supervisor.view().end_reason is EndReason.EXPIRED)
    assert not world.checkpoints.sealed


# Snapshots.


async def test_a_snapshot_lets_it_go_on_and_work_waits_meanwhile(world: World) -> None:
    supervisor = await started(world)
    going = asyncio.Event()

    async def wait() -> None:
        await going.wait()

    world.box.on_checkpoint = wait
    async with supervisor.lease():
        taking = asyncio.create_task(supervisor.snapshot("5" * 16, memory=None))
        await asyncio.sleep(0.01)

        async def work() -> None:
            async with supervisor.lease() as box:
                assert not box.is_paused

        waiting = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        going.set()
        checkpoint = await taking
        await waiting
    assert checkpoint.facts.has_memory
    assert checkpoint.facts.env["SECRET"] == "s"
    assert supervisor.view().state is State.RUNNING
    assert not world.box.is_paused


async def test_a_snapshot_of_a_paused_one_leaves_it_paused(world: World) -> None:
    supervisor = await started(world)
    await supervisor.pause()
    await supervisor.snapshot("5" * 16, memory=True)
    assert supervisor.view().state is State.PAUSED
    assert world.box.is_paused


async def test_a_snapshot_of_a_hibernated_one_is_a_copy(world: World) -> None:
    supervisor = await started(world)
    await supervisor.hibernate()
    assert (await supervisor.snapshot("5" * 16, memory=None)).id == "5" * 16
    assert not (await supervisor.snapshot("6" * 16, memory=False)).facts.has_memory
    await supervisor.resume()
    await supervisor.hibernate(memory=False)
    with pytest.raises(Unsupported):
        await supervisor.snapshot("7" * 16, memory=True)


async def test_a_snapshot_that_fails_lets_it_go_on(world: World) -> None:
    supervisor = await started(world)
    world.checkpoints.refuse["seal"] = FULL
    with pytest.raises(CapacityExceeded):
        await supervisor.snapshot("5" * 16, memory=None)
    assert not world.box.is_paused
    assert not world.checkpoints.drafts
    assert (await supervisor.pause()).state is State.PAUSED


# Rollback.


async def test_a_rollback_makes_it_what_it_was_and_its_generators_begin_anew(world: World, eventually) -> None:
    supervisor = await started(world, network=OPEN_NETWORK)
    then = await supervisor.snapshot("5" * 16, memory=None)
    sandbox = await supervisor.roll_back(then, world.images.get("base"), kept=Kept(memory=True))
    box = newest(world)
    assert sandbox.state is State.RUNNING
    assert (sandbox.rolled_back_to, sandbox.rolled_back_at) == (then.id, world.clock.now())
    assert box.origin is then
    assert box.agent.revived == (None, {}, True)
    assert box.network is OPEN_NETWORK
    assert world.told == ["moves"]
    await eventually(lambda: list(world.checkpoints.sealed) == [then.id])


@pytest.mark.parametrize("was", [State.RUNNING, State.PAUSED, State.HIBERNATED])
async def test_a_rollback_that_fails_leaves_it_as_it_was(world: World, was: State) -> None:
    supervisor = await started(world)
    then = await supervisor.snapshot("5" * 16, memory=None)
    if was is not State.RUNNING:
        await (supervisor.pause() if was is State.PAUSED else supervisor.hibernate())
    world.driver.failures = [EngineFailure("the snapshot is damaged")]
    with pytest.raises(EngineFailure, match="damaged"):
        await supervisor.roll_back(then, world.images.get("base"), kept=Kept(memory=True))
    assert supervisor.view().state is was
    assert supervisor.view().rolled_back_to is None
    if was is State.HIBERNATED:
        assert world.told[-1] == "moves"
        assert world.told[-2] == "rests"
        await supervisor.resume()
    elif was is State.PAUSED:
        assert newest(world).is_paused
    assert newest(world).origin.id == supervisor.sandbox.id


async def test_a_rollback_that_fails_twice_leaves_it_hibernated(world: World) -> None:
    supervisor = await started(world)
    then = await supervisor.snapshot("5" * 16, memory=None)
    world.driver.failures = [EngineFailure("damaged"), EngineFailure("the machine is out of memory")]
    with pytest.raises(EngineFailure, match="damaged"):
        await supervisor.roll_back(then, world.images.get("base"), kept=Kept(memory=True))
    assert supervisor.view().state is State.HIBERNATED
    assert world.told == ["rests", "moves"]
    assert (await supervisor.resume()).state is State.RUNNING


async def test_a_rollback_that_cannot_be_stops_nothing(world: World) -> None:
    supervisor = await started(world)
    then = await supervisor.snapshot("5" * 16, memory=None)
    world.driver.gaps = ("it has another kernel",)
    with pytest.raises(Unsupported, match="another kernel"):
        await supervisor.roll_back(then, world.images.get("base"), kept=Kept(memory=True))
    assert supervisor.view().state is State.RUNNING
    assert not world.box.is_destroyed
    await supervisor.roll_back(then, world.images.get("base"), kept=Kept(memory=False, reason=NOT_ASKED))
    assert newest(world).agent.claimed is not None
