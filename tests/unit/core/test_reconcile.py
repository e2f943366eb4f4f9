# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest

from cove.core.access import LOCAL
from cove.core.reconcile import AS_KEPT, Reconciled
from cove.model.errors import AgentTimeout, AgentViolation, NotFound, SandboxGone
from cove.model.execs import ExecSpec
from cove.model.request import SandboxFilter
from cove.model.sandbox import MIB, IdleAction, Kept, Limits, SandboxSpec, TimeoutCounts
from cove.model.state import EndReason, State
from waiting_support import comes_true

EVERY = SandboxFilter(states=frozenset(State))


async def killed(opened, work=None, **settings):
    """Run a core and end it as kill -9 does to its promises: supervisors are cancelled wherever they are."""
    ready = asyncio.Event()
    result = []

    async def serve() -> None:
        async with opened(**settings) as core:
            result.append(await work(core) if work else None)
            ready.set()
            await asyncio.sleep(3600)

    server = asyncio.create_task(serve())
    await asyncio.wait_for(ready.wait(), 60)
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)
    return result[0]


async def test_running_and_paused_sandboxes_are_adopted_as_they_were(opened, driver) -> None:
    async def work(core):
        running = await core.sandboxes.create(LOCAL, SandboxSpec(name="running", limits=Limits(cpus=2.0)))
        paused = await core.sandboxes.create(LOCAL, SandboxSpec(name="paused"))
        await core.sandboxes.pause(LOCAL, paused.id)
        return running, paused

    running, paused = await killed(opened, work)
    async with opened() as core:
        assert core.reconciled == Reconciled(adopted=2)
        assert core.sandboxes.get(LOCAL, "running").state is State.RUNNING
        assert core.sandboxes.get(LOCAL, "paused").state is State.PAUSED
        assert driver.boxes[paused.id].is_paused
        assert driver.boxes[running.id].limits == Limits(cpus=2.0)
        assert core.stats().admission.sandboxes == 2
        assert (await core.execs.run(LOCAL, paused.id, ExecSpec(shell="true"))).stdout == b"out"
        await core.sandboxes.destroy(LOCAL, running.id)


async def test_a_graceful_stop_keeps_sandboxes_too(opened) -> None:
    async with opened() as core:
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
    async with opened() as core:
        assert core.reconciled == Reconciled(adopted=1)
        assert core.sandboxes.get(LOCAL, made.id).state is State.RUNNING


@pytest.mark.parametrize("word", [State.PAUSED, State.RUNNING])
async def test_a_death_between_word_and_deed_is_made_good(opened, driver, word: State) -> None:
    async def work(core):
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
        if word is State.PAUSED:
            await core.sandboxes.pause(LOCAL, made.id)
        return made

    made = await killed(opened, work)
    driver.boxes[made.id].is_paused = word is not State.PAUSED
    async with opened() as core:
        assert core.sandboxes.get(LOCAL, made.id).state is word
        assert driver.boxes[made.id].is_paused is (word is State.PAUSED)


async def test_a_half_made_sandbox_is_ended(opened, driver) -> None:
    async def work(core):
        driver.gate.clear()
        task = asyncio.create_task(core.sandboxes.create(LOCAL, SandboxSpec(name="half")))
        await comes_true(lambda: driver.creating)
        return task

    task = await killed(opened, work)
    task.cancel()
    driver.gate.set()
    async with opened() as core:
        assert core.reconciled == Reconciled(ended=1)
        (one,) = core.sandboxes.list(LOCAL, EVERY).sandboxes
        assert (one.state, one.end_reason) == (State.FAILED, EndReason.CREATE_FAILED)
        await core.sandboxes.create(LOCAL, SandboxSpec(name="half"))


async def test_a_half_destroyed_sandbox_is_ended_for_the_reason_that_was_written(opened, driver) -> None:
    async def work(core):
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
        box = driver.boxes[made.id]
        begun = asyncio.Event()

        async def destroy_forever():
            begun.set()
            await asyncio.sleep(3600)

        box.destroy = destroy_forever
        task = asyncio.create_task(core.sandboxes.destroy(LOCAL, made.id))
        await begun.wait()
        return made, task

    made, task = await killed(opened, work)
    await asyncio.gather(task, return_exceptions=True)
    async with opened() as core:
        one = core.sandboxes.get(LOCAL, made.id)
        assert (one.state, one.end_reason) == (State.TERMINATED, EndReason.REQUESTED)
        assert driver.boxes[made.id].is_destroyed


async def test_a_sandbox_that_died_meanwhile_is_told_so(opened, driver) -> None:
    made = await killed(opened, lambda core: core.sandboxes.create(LOCAL, SandboxSpec()))
    driver.boxes[made.id].die()
    async with opened() as core:
        one = core.sandboxes.get(LOCAL, made.id)
        assert (one.state, one.end_reason) == (State.FAILED, EndReason.DIED)
        assert driver.boxes[made.id].is_destroyed


async def test_after_a_reboot_everything_is_lost_and_told_so(opened, driver) -> None:
    made = await killed(opened, lambda core: core.sandboxes.create(LOCAL, SandboxSpec()), pool=2)
    driver.boxes.clear()
    async with opened(pool=2) as core:
        one = core.sandboxes.get(LOCAL, made.id)
        assert (one.state, one.end_reason) == (State.TERMINATED, EndReason.LOST)
        assert one.ended_at is not None
        assert driver.swept == 2


async def test_pool_members_go_back_to_the_pool(opened, driver) -> None:
    await killed(opened, pool=3)
    async with opened(pool=3) as core:
        assert core.reconciled == Reconciled(pooled=3)
        assert driver.created == 3
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
        assert made.id in driver.boxes


async def test_members_of_a_rebuilt_image_are_reaped(opened, driver, images) -> None:
    await killed(opened, pool=2)
    images.digest = "d2"
    async with opened(pool=2) as core:
        assert core.reconciled == Reconciled(reaped=2)


async def test_boxes_that_a_new_store_does_not_know_are_never_pooled(opened, driver, tmp_path) -> None:
    made = await killed(opened, lambda core: core.sandboxes.create(LOCAL, SandboxSpec()))
    for path in tmp_path.glob("cove.db*"):
        path.unlink()
    async with opened(pool=2) as core:
        assert core.reconciled == Reconciled(reaped=1)
        assert driver.boxes[made.id].is_destroyed
        with pytest.raises(NotFound):
            core.sandboxes.get(LOCAL, made.id)


async def test_an_agent_that_is_slow_to_answer_is_asked_again(opened, driver) -> None:
    made = await killed(opened, lambda core: core.sandboxes.create(LOCAL, SandboxSpec()))
    driver.adopt_failures = [AgentTimeout("slow"), AgentTimeout("slow")]
    async with opened() as core:
        assert core.sandboxes.get(LOCAL, made.id).state is State.RUNNING


async def test_an_agent_that_breaks_the_protocol_ends_its_sandbox_only(opened, driver) -> None:
    async def work(core):
        return [await core.sandboxes.create(LOCAL, SandboxSpec()) for _ in range(2)]

    await killed(opened, work)
    driver.adopt_failures = [AgentViolation("lies")]
    async with opened() as core:
        assert core.reconciled == Reconciled(adopted=1, ended=1)


async def test_expiry_goes_on_while_the_server_is_down(opened, clock, eventually) -> None:
    made = await killed(opened, lambda core: core.sandboxes.create(LOCAL, SandboxSpec(timeout_s=60.0)))
    clock.advance(61.0)
    async with opened() as core:
        await asyncio.sleep(0)
        clock.advance(0.1)
        await eventually(lambda: core.sandboxes.get(LOCAL, made.id).end_reason is EndReason.EXPIRED)


async def test_an_adopted_sandbox_that_was_to_end_when_idle_gets_a_grace(opened, clock) -> None:
    spec = SandboxSpec(idle_timeout_s=600.0, idle_action=IdleAction.TERMINATE)
    made = await killed(opened, lambda core: core.sandboxes.create(LOCAL, spec))
    clock.advance(10_000.0)
    async with opened() as core:
        clock.advance(1.0)
        await asyncio.sleep(0.01)
        assert core.sandboxes.get(LOCAL, made.id).state is State.RUNNING


async def test_limits_that_were_written_but_not_applied_are_applied(opened, driver) -> None:
    spec = SandboxSpec(limits=Limits(memory_bytes=1024 * MIB))
    made = await killed(opened, lambda core: core.sandboxes.create(LOCAL, spec), pool=1)
    driver.boxes[made.id].limits = Limits()
    async with opened():
        assert driver.boxes[made.id].limits == spec.limits


async def test_a_create_that_was_answered_with_its_key_is_found_after_a_kill(opened) -> None:
    from cove.model.request import Idempotency

    key = Idempotency(key="k", body_sha256="c" * 64)
    made = await killed(opened, lambda core: core.sandboxes.create(LOCAL, SandboxSpec(), idempotency=key))
    async with opened() as core:
        assert (await core.sandboxes.create(LOCAL, SandboxSpec(), idempotency=key)).id == made.id


# Hibernation, cut short at each step.


async def hibernated(core):
    made = await core.sandboxes.create(LOCAL, SandboxSpec(name="one", env={"A": "b"}))
    return await core.sandboxes.hibernate(LOCAL, made.id)


async def never(*_args, **_kwargs):
    await asyncio.sleep(3600)


async def nothing(*_args, **_kwargs):
    """What kill -9 lets a server do."""


async def cut_short(call, stuck):
    """Begin `call`, and come back once `stuck` says that it stands at the step to be tested."""
    task = asyncio.create_task(call)
    while not stuck():
        await asyncio.sleep(0.001)
    return task


async def test_hibernated_sandboxes_are_there_after_a_reboot(opened, driver) -> None:
    made = await killed(opened, hibernated)
    driver.boxes.clear()
    async with opened() as core:
        assert core.reconciled == Reconciled(hibernated=1)
        one = core.sandboxes.get(LOCAL, "one")
        assert (one.state, one.kept, one.id) == (State.HIBERNATED, Kept(memory=True), made.id)
        assert core.stats().admission.sandboxes == 0
        assert (await core.execs.run(LOCAL, "one", ExecSpec(shell="true"))).stdout == b"out"
        assert core.sandboxes.get(LOCAL, "one").state is State.RUNNING
        assert core.stats().admission.sandboxes == 1
        assert driver.boxes[made.id].agent.revived is not None


@pytest.mark.parametrize("was", [State.RUNNING, State.PAUSED])
async def test_a_hibernation_that_was_not_written_yet_did_not_happen(opened, driver, checkpoints, was: State) -> None:
    async def work(core):
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
        if was is State.PAUSED:
            await core.sandboxes.pause(LOCAL, made.id)
        driver.boxes[made.id].network_use = never  # asked between the sealing and the writing
        await cut_short(core.sandboxes.hibernate(LOCAL, made.id), lambda: made.id in checkpoints.sealed)
        return made

    remove, checkpoints.remove = checkpoints.remove, nothing
    made = await killed(opened, work)
    checkpoints.remove = remove
    del driver.boxes[made.id].network_use
    driver.boxes[made.id].is_paused = True
    async with opened() as core:
        assert core.reconciled == Reconciled(adopted=1)
        assert core.sandboxes.get(LOCAL, made.id).state is was
        assert driver.boxes[made.id].is_paused is (was is State.PAUSED)
        assert not checkpoints.sealed


async def test_one_that_was_not_written_yet_and_is_gone_with_the_machine_is_as_it_was_kept(
    opened, driver, checkpoints
) -> None:
    async def work(core):
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
        driver.boxes[made.id].network_use = never
        await cut_short(core.sandboxes.hibernate(LOCAL, made.id), lambda: made.id in checkpoints.sealed)
        return made

    remove, checkpoints.remove = checkpoints.remove, nothing
    made = await killed(opened, work)
    checkpoints.remove = remove
    driver.boxes.clear()
    async with opened() as core:
        assert core.reconciled == Reconciled(hibernated=1)
        one = core.sandboxes.get(LOCAL, made.id)
        assert (one.state, one.state_note, one.kept) == (State.HIBERNATED, AS_KEPT, Kept(memory=True))
        assert one.kept_bytes == 100 * MIB
        assert (await core.sandboxes.resume(LOCAL, made.id)).state is State.RUNNING


async def test_a_box_that_was_not_freed_any_more_is_freed(opened, driver, checkpoints) -> None:
    async def work(core):
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
        driver.boxes[made.id].destroy = never
        is_written = lambda: core.sandboxes.get(LOCAL, made.id).state is State.HIBERNATED  # noqa: E731
        await cut_short(core.sandboxes.hibernate(LOCAL, made.id), is_written)
        return made

    made = await killed(opened, work)
    async with opened() as core:
        assert core.reconciled == Reconciled(hibernated=1)
        assert driver.boxes[made.id].is_destroyed
        assert made.id in checkpoints.sealed
        assert (await core.sandboxes.resume(LOCAL, made.id)).state is State.RUNNING


async def test_a_resume_that_was_not_written_yet_did_not_happen(opened, driver) -> None:
    create = driver.create

    async def create_mute(spec):
        box = await create(spec)
        box.agent.revive = box.destroy = never
        return box

    async def work(core):
        made = await hibernated(core)
        driver.create = create_mute
        await cut_short(core.sandboxes.resume(LOCAL, made.id), driver.living)
        return made

    made = await killed(opened, work)
    driver.create = create
    assert driver.living()
    async with opened() as core:
        assert core.reconciled == Reconciled(hibernated=1)
        assert core.sandboxes.get(LOCAL, made.id).state is State.HIBERNATED
        assert not driver.living()
        assert (await core.sandboxes.resume(LOCAL, made.id)).state is State.RUNNING


@pytest.mark.parametrize("fate", ["lives", "mute", "dead", "rebooted"])
async def test_a_resume_whose_checkpoint_was_not_removed_yet(opened, driver, checkpoints, fate: str) -> None:
    remove = checkpoints.remove

    async def work(core):
        made = await hibernated(core)
        checkpoints.remove = never
        await core.sandboxes.resume(LOCAL, made.id)
        return made

    made = await killed(opened, work)
    checkpoints.remove = remove
    box = driver.boxes[made.id]
    if fate == "mute":
        box.refuse["reconnect"] = SandboxGone("nobody answers")
    elif fate == "dead":
        box.die()
    elif fate == "rebooted":
        driver.boxes.clear()
    async with opened() as core:
        one = core.sandboxes.get(LOCAL, made.id)
        if fate == "lives":
            assert core.reconciled == Reconciled(adopted=1)
            assert (one.state, checkpoints.sealed) == (State.RUNNING, {})
        else:
            assert core.reconciled == Reconciled(hibernated=1)
            assert (one.state, one.state_note) == (State.HIBERNATED, AS_KEPT)
            assert not driver.living()
            assert (await core.sandboxes.resume(LOCAL, made.id)).state_note is None


async def test_of_one_whose_kept_memory_is_damaged_after_a_reboot_the_files_are_there(
    opened, driver, checkpoints
) -> None:
    remove = checkpoints.remove

    async def work(core):
        made = await hibernated(core)
        checkpoints.remove = never
        await core.sandboxes.resume(LOCAL, made.id)
        return made

    made = await killed(opened, work)
    checkpoints.remove = remove
    driver.boxes.clear()
    checkpoints.damaged.add(made.id)
    async with opened() as core:
        one = core.sandboxes.get(LOCAL, made.id)
        assert (one.state, one.kept) == (State.HIBERNATED, Kept(memory=False, reason="it was damaged"))
        assert (await core.sandboxes.resume(LOCAL, made.id)).state is State.RUNNING


async def test_a_hibernated_one_whose_checkpoint_is_gone_has_failed_and_says_so(opened, checkpoints) -> None:
    made = await killed(opened, hibernated)
    checkpoints.sealed.clear()
    async with opened() as core:
        assert core.reconciled == Reconciled(ended=1)
        one = core.sandboxes.get(LOCAL, made.id)
        assert (one.state, one.end_reason) == (State.FAILED, EndReason.DAMAGED)
        assert one.end_detail == "what was kept of it was not on the disk any more"


async def test_a_rollback_that_was_cut_short_leaves_what_was_before_it(opened, driver) -> None:
    async def work(core):
        made = await core.sandboxes.create(LOCAL, SandboxSpec(name="one"))
        supervisor = core.sandboxes._directory.live(LOCAL, "one")
        then = await supervisor.snapshot("5" * 16, memory=None)
        driver.gate.clear()
        image = supervisor._ports.image_of(made)
        await cut_short(supervisor.roll_back(then, image, kept=Kept(memory=True)), lambda: driver.creating)
        return made

    made = await killed(opened, work)
    driver.gate.set()
    async with opened() as core:
        assert core.sandboxes.get(LOCAL, "one").state is State.HIBERNATED
        await core.sandboxes.resume(LOCAL, "one")
        assert driver.boxes[made.id].origin.id == made.id


async def test_a_time_to_live_that_stands_still_outlives_the_server(opened, clock, eventually) -> None:
    async def work(core):
        spec = SandboxSpec(timeout_s=60.0, timeout_counts=TimeoutCounts.RUNNING)
        made = await core.sandboxes.create(LOCAL, spec)
        clock.advance(20.0)
        return await core.sandboxes.hibernate(LOCAL, made.id)

    made = await killed(opened, work)
    clock.advance(100_000.0)
    async with opened() as core:
        assert core.sandboxes.get(LOCAL, made.id).time_left_s == 40.0
        resumed = await core.sandboxes.resume(LOCAL, made.id)
        assert resumed.expires_at == clock.now() + 40.0
        clock.advance(41.0)
        await eventually(lambda: core.sandboxes.get(LOCAL, made.id).end_reason is EndReason.EXPIRED)


async def test_a_hibernated_one_that_was_to_end_meanwhile_ends(opened, clock, checkpoints, eventually) -> None:
    async def work(core):
        made = await core.sandboxes.create(LOCAL, SandboxSpec(timeout_s=60.0))
        return await core.sandboxes.hibernate(LOCAL, made.id)

    made = await killed(opened, work)
    clock.advance(61.0)
    async with opened() as core:
        await asyncio.sleep(0)
        clock.advance(0.1)
        await eventually(lambda: core.sandboxes.get(LOCAL, made.id).end_reason is EndReason.EXPIRED)
        await eventually(lambda: not checkpoints.sealed)
