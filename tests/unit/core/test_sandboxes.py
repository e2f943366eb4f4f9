# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest

from cove.core.access import LOCAL
from cove.core.admission import AdmissionSettings
from cove.model.access import FULL, Principal, Scope
from cove.model.errors import (
    BadRequest,
    CapacityExceeded,
    Conflict,
    EngineFailure,
    Forbidden,
    Gone,
    IdempotencyConflict,
    NotFound,
    Unsupported,
)
from cove.model.network import NO_NETWORK, OPEN_NETWORK, NetworkMode, NetworkRequest
from cove.model.request import Idempotency, SandboxChange, SandboxFilter
from cove.model.sandbox import MIB, IdleAction, Limits, SandboxSpec, Source
from cove.model.state import EndReason, State
from waiting_support import comes_true


def principal(project: str = "default", *scopes: Scope) -> Principal:
    chosen = frozenset(scopes) or FULL - {Scope.ADMIN}
    return Principal(key_id="k1", name="ci", project=project, scopes=chosen)


ALICE = principal("alice")
BOB = principal("bob")
KEY = Idempotency(key="key-1", body_sha256="a" * 64)


async def test_a_create_gives_a_running_sandbox_that_get_and_list_show(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(metadata={"a": "b"}, timeout_s=60.0), dialect="native")
    assert made.state is State.RUNNING
    assert made.project == "alice"
    assert made.created_by == "key:ci"
    assert made.expires_at == made.created_at + 60.0
    assert core.sandboxes.get(ALICE, made.id) == core.sandboxes.get(ALICE, made.name) == made
    assert core.sandboxes.list(ALICE).sandboxes == (made,)
    assert (await core.sandboxes.measure(ALICE, made.id)).usage.cpu_ms == 5


async def test_the_environment_reaches_the_sandbox_and_no_record(core, driver, tmp_path) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(env={"TOKEN": "hunter2-secret"}))
    assert driver.boxes[made.id].agent.claimed[0]["TOKEN"] == "hunter2-secret"
    for path in tmp_path.iterdir():
        assert b"hunter2" not in path.read_bytes()


async def test_a_warm_box_is_taken_and_counted(opened, driver) -> None:
    async with opened(pool=2) as core:
        made = await core.sandboxes.create(ALICE, SandboxSpec())
        assert made.source is Source.WARM
        stats = core.stats()
        assert (stats.created_warm, stats.created_cold, stats.pool[0].hits) == (1, 0, 1)


async def test_another_projects_sandbox_does_not_exist(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(name="mine"))
    for ref in (made.id, "mine"):
        for call in (
            core.sandboxes.pause(BOB, ref),
            core.sandboxes.resume(BOB, ref),
            core.sandboxes.destroy(BOB, ref),
            core.sandboxes.update(BOB, ref, SandboxChange(name="x")),
            core.sandboxes.measure(BOB, ref),
        ):
            with pytest.raises(NotFound):
                await call
        with pytest.raises(NotFound):
            core.sandboxes.get(BOB, ref)
    assert core.sandboxes.list(BOB).sandboxes == ()
    assert core.sandboxes.get(LOCAL, made.id).id == made.id, "an admin sees it"
    await core.sandboxes.destroy(ALICE, made.id)
    with pytest.raises(NotFound):
        core.sandboxes.get(BOB, made.id)


async def test_each_operation_needs_its_scope(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    reader = principal("alice", Scope.READ)
    for call in (
        core.sandboxes.create(reader, SandboxSpec()),
        core.sandboxes.update(reader, made.id, SandboxChange()),
        core.sandboxes.destroy(reader, made.id),
        core.sandboxes.pause(reader, made.id),
        core.sandboxes.resume(reader, made.id),
    ):
        with pytest.raises(Forbidden, match="lacks the scope"):
            await call
    writer = principal("alice", Scope.CREATE)
    with pytest.raises(Forbidden):
        core.sandboxes.get(writer, made.id)
    with pytest.raises(Forbidden):
        core.sandboxes.list(writer)


@pytest.mark.parametrize("ref", ["", "nope", "f" * 16, "../etc", "x" * 10_000, "\0", "sb_" + "0" * 16])
async def test_what_is_no_sandbox_is_not_found(core, ref: str) -> None:
    with pytest.raises(NotFound):
        core.sandboxes.get(ALICE, ref)


async def test_a_name_is_unique_among_the_unended_of_a_project(core) -> None:
    first = await core.sandboxes.create(ALICE, SandboxSpec(name="box"))
    with pytest.raises(Conflict, match="box"):
        await core.sandboxes.create(ALICE, SandboxSpec(name="box"))
    assert (await core.sandboxes.create(BOB, SandboxSpec(name="box"))).name == "box"
    await core.sandboxes.destroy(ALICE, first.id)
    assert (await core.sandboxes.create(ALICE, SandboxSpec(name="box"))).id != first.id


async def test_a_name_is_free_again_after_a_create_that_failed(core, driver) -> None:
    driver.failures = [EngineFailure("no")]
    with pytest.raises(EngineFailure):
        await core.sandboxes.create(ALICE, SandboxSpec(name="box"))
    assert (await core.sandboxes.create(ALICE, SandboxSpec(name="box"))).state is State.RUNNING
    stats = core.stats()
    assert (stats.create_failures, stats.admission.sandboxes, stats.admission.creating) == (1, 1, 0)


async def test_of_two_creates_of_one_name_at_once_one_wins(core) -> None:
    outcomes = await asyncio.gather(
        *(core.sandboxes.create(ALICE, SandboxSpec(name="box")) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 4


async def test_what_names_no_image_or_driver_is_told_which_field(core) -> None:
    with pytest.raises(NotFound) as caught:
        await core.sandboxes.create(ALICE, SandboxSpec(image="pyhton"))
    assert caught.value.field == "image"
    with pytest.raises(BadRequest) as caught_driver:
        await core.sandboxes.create(ALICE, SandboxSpec(driver="vmware"))
    assert caught_driver.value.field == "driver"
    assert core.stats().admission.sandboxes == 0


async def test_destroy_answers_with_the_last_record_again_and_again(core, driver) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    ended = await core.sandboxes.destroy(ALICE, made.id)
    assert ended.state is State.TERMINATED
    assert ended.usage.cpu_ms == 9
    assert await core.sandboxes.destroy(ALICE, made.id) == ended
    assert core.sandboxes.get(ALICE, made.id) == ended
    assert not driver.living()
    with pytest.raises(Gone, match="requested"):
        await core.sandboxes.pause(ALICE, made.id)
    assert core.sandboxes.list(ALICE).sandboxes == ()
    assert core.sandboxes.list(ALICE, SandboxFilter(states=frozenset({State.TERMINATED}))).sandboxes == (ended,)


async def test_a_cancelled_create_leaves_nothing(core, driver, eventually) -> None:
    driver.gate.clear()
    task = asyncio.create_task(core.sandboxes.create(ALICE, SandboxSpec()))
    await comes_true(lambda: driver.creating)
    task.cancel()
    driver.gate.set()
    await eventually(lambda: core.stats().admission.sandboxes == 0)
    assert driver.created == 1
    assert not driver.living()


# Changes.


async def test_an_update_changes_what_it_names_and_nothing_else(core, clock, driver) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(metadata={"a": "1", "b": "2"}, timeout_s=60.0))
    change = SandboxChange(metadata={"a": None, "c": "3"}, cpus=2.0, memory_bytes=1024 * MIB, name="newname")
    changed = await core.sandboxes.update(ALICE, made.id, change)
    assert changed.metadata == {"b": "2", "c": "3"}
    assert changed.limits == Limits(cpus=2.0, memory_bytes=1024 * MIB) == driver.boxes[made.id].limits
    assert changed.expires_at == made.expires_at
    assert core.sandboxes.get(ALICE, "newname").id == made.id
    with pytest.raises(NotFound):
        core.sandboxes.get(ALICE, made.name)
    assert core.stats().admission.memory_promised_bytes == 1024 * MIB
    clock.advance(10.0)
    renewed = await core.sandboxes.update(ALICE, made.id, SandboxChange(timeout_s=60.0))
    assert renewed.expires_at == clock.now() + 60.0
    assert (await core.sandboxes.update(ALICE, made.id, SandboxChange(timeout_s=None))).expires_at is None


async def test_an_update_that_fails_changes_nothing(core, driver) -> None:
    await core.sandboxes.create(ALICE, SandboxSpec(name="other"))
    made = await core.sandboxes.create(ALICE, SandboxSpec(name="mine"))
    with pytest.raises(Conflict):
        await core.sandboxes.update(ALICE, made.id, SandboxChange(name="other"))
    driver.boxes[made.id].refuse["set_limits"] = EngineFailure("no")
    with pytest.raises(EngineFailure):
        await core.sandboxes.update(ALICE, made.id, SandboxChange(name="new", memory_bytes=2048 * MIB))
    assert core.sandboxes.get(ALICE, "mine") == core.sandboxes.get(ALICE, made.id)
    assert core.stats().admission.memory_promised_bytes == 2 * 512 * MIB
    assert (await core.sandboxes.create(ALICE, SandboxSpec(name="new"))).name == "new"


async def test_names_of_many_renames_at_once_are_all_free_again(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(name="n0"))
    await asyncio.gather(*(core.sandboxes.update(ALICE, made.id, SandboxChange(name=f"n{n}")) for n in range(1, 6)))
    last = core.sandboxes.get(ALICE, made.id).name
    for number in range(6):
        if f"n{number}" != last:
            await core.sandboxes.create(ALICE, SandboxSpec(name=f"n{number}"))


async def test_too_much_metadata_after_a_merge_is_refused(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(metadata={f"k{n}": "v" for n in range(60)}))
    with pytest.raises(BadRequest, match="metadata"):
        await core.sandboxes.update(ALICE, made.id, SandboxChange(metadata={f"m{n}": "v" for n in range(10)}))


# Idempotency.


async def test_one_key_and_body_give_one_sandbox(core) -> None:
    first, second = await asyncio.gather(
        *(core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY) for _ in range(2))
    )
    third = await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)
    assert first.id == second.id == third.id
    assert len(core.sandboxes.list(ALICE).sandboxes) == 1
    assert (await core.sandboxes.create(BOB, SandboxSpec(), idempotency=KEY)).id != first.id


async def test_one_key_with_another_body_is_a_conflict(core, driver) -> None:
    other = Idempotency(key=KEY.key, body_sha256="b" * 64)
    driver.gate.clear()
    task = asyncio.create_task(core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY))
    await comes_true(lambda: driver.creating)
    with pytest.raises(IdempotencyConflict):
        await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=other)
    driver.gate.set()
    await task
    with pytest.raises(IdempotencyConflict):
        await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=other)


async def test_a_create_that_failed_may_be_tried_again_with_its_key(core, driver) -> None:
    driver.failures = [EngineFailure("no")]
    with pytest.raises(EngineFailure):
        await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)
    made = await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)
    assert made.state is State.RUNNING
    assert (await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)).id == made.id


async def test_a_key_still_names_its_sandbox_after_its_end_and_a_restart(opened) -> None:
    async with opened() as core:
        made = await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)
        await core.sandboxes.destroy(ALICE, made.id)
    async with opened() as core:
        again = await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)
        assert (again.id, again.state) == (made.id, State.TERMINATED)


async def test_a_key_is_forgotten_after_a_day(core, clock) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)
    clock.jump_wall(24 * 3600 + 1)
    assert (await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)).id != made.id


async def test_a_cancelled_create_with_a_key_waits_for_its_caller(core, driver) -> None:
    driver.gate.clear()
    task = asyncio.create_task(core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY))
    await comes_true(lambda: driver.creating)
    task.cancel()
    driver.gate.set()
    assert (await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)).state is State.RUNNING
    assert driver.created == 1


# Capacity.


async def test_of_101_creates_at_a_limit_of_100_one_is_refused(opened) -> None:
    async with opened(admission=AdmissionSettings(max_sandboxes=100, overcommit=100.0)) as core:
        outcomes = await asyncio.gather(
            *(core.sandboxes.create(ALICE, SandboxSpec()) for _ in range(101)), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, CapacityExceeded)]
        assert len(refused) == 1
        assert refused[0].retry_after_s is not None
        assert core.stats().admission.refused == 1


async def test_creates_in_flight_are_bounded_and_never_queue_beyond(opened, driver, eventually) -> None:
    driver.gate.clear()
    async with opened(admission=AdmissionSettings(max_creates=8)) as core:
        tasks = [asyncio.create_task(core.sandboxes.create(ALICE, SandboxSpec())) for _ in range(10)]
        await eventually(lambda: driver.creating == 4)
        assert sum(task.done() for task in tasks) == 2
        driver.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(outcome, CapacityExceeded) for outcome in outcomes) == 2
        assert core.stats().admission.creating == 0


async def test_a_burst_of_a_hundred_is_served_whole(opened) -> None:
    async with opened(pool=20, admission=AdmissionSettings()) as core:
        made = await asyncio.gather(*(core.sandboxes.create(ALICE, SandboxSpec()) for _ in range(100)))
        assert len({one.id for one in made}) == 100
        assert len({one.name for one in made}) == 100
        assert sum(one.source is Source.WARM for one in made) >= 20


# Death and time.


async def test_a_dead_sandbox_frees_its_place_and_its_name(core, driver, eventually) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(name="box"))
    driver.boxes[made.id].die()
    await eventually(lambda: core.stats().admission.sandboxes == 0)
    gone = core.sandboxes.get(ALICE, made.id)
    assert (gone.state, gone.end_reason) == (State.FAILED, EndReason.DIED)
    await core.sandboxes.create(ALICE, SandboxSpec(name="box"))


async def test_ended_sandboxes_are_forgotten_after_thirty_days(core, clock, eventually) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    await core.sandboxes.destroy(ALICE, made.id)
    clock.advance(29 * 86400.0)
    await asyncio.sleep(0.02)
    assert core.sandboxes.get(ALICE, made.id).id == made.id

    def is_forgotten() -> bool:
        clock.advance(600.0)
        try:
            core.sandboxes.get(ALICE, made.id)
        except NotFound:
            return True
        return False

    await eventually(is_forgotten)


async def test_pages_follow_their_cursor(core) -> None:
    made = [await core.sandboxes.create(ALICE, SandboxSpec()) for _ in range(5)]
    first = core.sandboxes.list(ALICE, limit=2)
    second = core.sandboxes.list(ALICE, limit=3, cursor=first.cursor)
    assert [one.id for one in (*first.sandboxes, *second.sandboxes)] == [one.id for one in reversed(made)]
    assert second.cursor is None
    for limit in (0, 1001, -1):
        with pytest.raises(BadRequest, match="limit"):
            core.sandboxes.list(ALICE, limit=limit)


async def test_server_info_tells_what_a_caller_may_know(core) -> None:
    await core.sandboxes.create(ALICE, SandboxSpec())
    info = core.server_info(ALICE)
    assert info.drivers[0].name == "stub"
    assert info.sandboxes == 1
    assert info.isolation is not None
    with pytest.raises(Forbidden):
        core.server_info(principal("alice", Scope.EXEC))


async def test_a_new_idle_time_counts_from_now_on(core, clock, eventually) -> None:
    spec = SandboxSpec(idle_timeout_s=100.0, idle_action=IdleAction.TERMINATE)
    made = await core.sandboxes.create(ALICE, spec)
    clock.advance(90.0)
    await core.sandboxes.update(ALICE, made.id, SandboxChange(idle_timeout_s=50.0))
    clock.advance(49.0)
    await asyncio.sleep(0)
    assert core.sandboxes.get(ALICE, made.id).state is State.RUNNING
    await core.sandboxes.update(ALICE, made.id, SandboxChange(idle_timeout_s=50.0))
    clock.advance(49.0)
    await asyncio.sleep(0)
    assert core.sandboxes.get(ALICE, made.id).state is State.RUNNING
    clock.advance(2.0)
    await eventually(lambda: core.sandboxes.get(ALICE, made.id).end_reason is EndReason.IDLE)


async def test_a_list_without_pages_has_all_and_no_more_than_asked(core) -> None:
    made = [await core.sandboxes.create(ALICE, SandboxSpec()) for _ in range(5)]
    running = SandboxFilter(states=frozenset({State.RUNNING}))
    assert [one.id for one in await core.sandboxes.every(ALICE, running)] == [one.id for one in reversed(made)]
    assert [one.id for one in await core.sandboxes.every(ALICE, running, most=2)] == [made[4].id, made[3].id]
    assert await core.sandboxes.every(BOB, running) == []
    with pytest.raises(Forbidden):
        await core.sandboxes.every(principal("alice", Scope.EXEC), running)


async def test_nothing_asked_of_the_network_is_the_internet_only_where_that_is_said(core, driver) -> None:
    spec = SandboxSpec(open_network=True)
    assert (await core.sandboxes.create(ALICE, spec)).network == OPEN_NETWORK
    assert (await core.sandboxes.create(ALICE, SandboxSpec())).network == NO_NETWORK
    driver.network_gaps = ("no network here",)
    assert (await core.sandboxes.create(ALICE, spec)).network == NO_NETWORK
    with pytest.raises(Unsupported):  # what was asked for is not left out in silence
        await core.sandboxes.create(ALICE, SandboxSpec(network=NetworkRequest(mode=NetworkMode.OPEN)))
    asked = NetworkRequest(mode=NetworkMode.NONE)
    assert (await core.sandboxes.create(ALICE, SandboxSpec(open_network=True, network=asked))).network == NO_NETWORK
