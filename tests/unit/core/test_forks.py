# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest

from cove.core.access import LOCAL
from cove.core.admission import AdmissionSettings, Memory
from cove.model.access import FULL, Principal, Scope
from cove.model.errors import (
    BadRequest,
    CapacityExceeded,
    Conflict,
    EngineFailure,
    IdempotencyConflict,
    NotFound,
    QuotaExceeded,
    Unsupported,
)
from cove.model.quota import Quota
from cove.model.request import Idempotency, SandboxFilter
from cove.model.sandbox import MIB, Kept, SandboxSpec
from cove.model.snapshot import FORK_LIMIT, RestoreSpec
from cove.model.state import EndReason, State
from cove.store.forks import ForkRow

ALICE = Principal(key_id="a", name="alice", project="alice", scopes=FULL - {Scope.ADMIN})
KEY = Idempotency(key="k1", body_sha256="0" * 64)


async def source_of(core, who: Principal = ALICE, **spec: object):  # noqa: ANN201 - a sandbox
    return await core.sandboxes.create(who, SandboxSpec(name="parent", **spec))


def running(core, who: Principal = ALICE) -> list[str]:
    return [one.name for one in core.sandboxes.list(who, SandboxFilter()).sandboxes]


async def test_children_run_and_are_as_their_parent_is(core, driver, checkpoints) -> None:
    parent = await source_of(core, metadata={"a": "b"})
    children = await core.snapshots.fork(ALICE, parent.id, RestoreSpec(name="kid", env={"N": "1"}), 3)
    assert [child.name for child in children] == ["kid-1", "kid-2", "kid-3"]
    assert len({child.id for child in children} | {parent.id}) == 4
    for child in children:
        assert child.state is State.RUNNING
        assert child.metadata == {"a": "b"}
        assert child.came_from is not None
        assert (child.came_from.snapshot, child.came_from.sandbox) == (None, parent.id)
        assert child.came_from.kept == Kept(memory=True)
        assert driver.living()[child.id].agent.revived == (child.name, {"N": "1"}, True)
    assert core.sandboxes.get(ALICE, parent.id).state is State.RUNNING
    assert not checkpoints.sealed, "what they were made of is gone"
    assert checkpoints.calls.count("lend") == 1, "it need not last"
    assert core.snapshots.list(ALICE).snapshots == ()
    (single,) = await core.snapshots.fork(ALICE, parent.id, RestoreSpec(name="single"))
    assert single.name == "single"
    others = await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 2)
    await core.sandboxes.destroy(ALICE, others[0].id)
    others += await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 3)
    assert [one.name for one in others] == ["parent-1", "parent-2", "parent-1", "parent-3", "parent-4"]


async def test_all_run_or_none_is_left_and_the_error_says_which(core, driver, checkpoints) -> None:
    parent = await source_of(core)
    driver.failures = [EngineFailure("the kernel refused")]
    with pytest.raises(EngineFailure, match=r"child \d of 6 \(kid-\d\) failed, so none is kept: the kernel refused"):
        await core.snapshots.fork(ALICE, parent.id, RestoreSpec(name="kid"), 6)
    assert running(core) == ["parent"]
    assert set(driver.living()) == {parent.id}
    assert not checkpoints.sealed
    assert core.snapshots._store.forks.all() == []
    assert (await core.quotas.of_project(LOCAL, "default")).use.sandboxes == 0
    assert core.stats().admission.sandboxes == 1
    assert core.stats().admission.creating == 0
    assert len(await core.snapshots.fork(ALICE, parent.id, RestoreSpec(name="kid"), 6)) == 6, "the names are free"


async def test_what_has_no_room_for_all_is_refused_before_the_parent_stands_still(opened, checkpoints) -> None:
    async with opened(admission=AdmissionSettings(max_sandboxes=5)) as core:
        parent = await source_of(core, LOCAL)
        with pytest.raises(CapacityExceeded, match="room for 4 more"):
            await core.snapshots.fork(LOCAL, parent.id, RestoreSpec(), 5)
        await core.quotas.set_project(LOCAL, "default", Quota(sandboxes=4))
        with pytest.raises(QuotaExceeded) as refused:
            await core.snapshots.fork(LOCAL, parent.id, RestoreSpec(), 4)
        assert refused.value.field == "sandboxes"
        await core.sandboxes.create(LOCAL, SandboxSpec(name="kid-2"))
        with pytest.raises(Conflict, match="kid-2 exists"):
            await core.snapshots.fork(LOCAL, parent.id, RestoreSpec(name="kid"), 2)
        for bad_spec in (
            RestoreSpec(name="x" * 62),
            RestoreSpec(name="A"),
            RestoreSpec(env={"1": ""}),
            RestoreSpec(pids=1),
        ):
            with pytest.raises(BadRequest):
                await core.snapshots.fork(LOCAL, parent.id, bad_spec, 2)
        for count in (0, -1, FORK_LIMIT + 1):
            with pytest.raises(BadRequest) as bad:
                await core.snapshots.fork(LOCAL, parent.id, RestoreSpec(), count)
            assert bad.value.field == "count"
        assert checkpoints.calls == [], "it was never asked to"


async def test_memory_that_the_copies_have_at_once_must_be_free(opened) -> None:
    memory = Memory(total=16384 * MIB, available=2048 * MIB)
    async with opened(memory=lambda: memory) as core:
        parent = await source_of(core)
        with pytest.raises(CapacityExceeded, match="what 8 such sandboxes hold"):
            await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 8)
        assert running(core) == ["parent"]
        assert len(await core.snapshots.fork(ALICE, parent.id, RestoreSpec(memory=False), 8)) == 8


async def test_parallel_forks_share_the_last_places_without_giving_one_twice(core) -> None:
    parent = await source_of(core, LOCAL)
    await core.quotas.set_project(LOCAL, "default", Quota(sandboxes=8))
    calls = [core.snapshots.fork(LOCAL, parent.id, RestoreSpec(), 3) for _ in range(4)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(one, QuotaExceeded) for one in done) == 2
    assert (await core.quotas.of_project(LOCAL, "default")).use.sandboxes == 7


async def test_a_few_are_made_at_a_time(core, driver) -> None:
    parent = await source_of(core)
    driver.most_creating = 0
    await core.snapshots.fork(ALICE, parent.id, RestoreSpec(memory=False), 20)
    assert driver.most_creating <= 4


async def test_files_only_where_memory_cannot_be_had_and_never_in_silence(core, driver) -> None:
    parent = await source_of(core)
    driver.living()[parent.id].has_memory = False
    (child,) = await core.snapshots.fork(ALICE, parent.id, RestoreSpec())
    assert child.came_from is not None
    assert child.came_from.kept == Kept(memory=False, reason="this stub keeps no memory")
    with pytest.raises(Unsupported):
        await core.snapshots.fork(ALICE, parent.id, RestoreSpec(memory=True))
    assert len(running(core)) == 2


async def test_a_repeated_request_gets_the_same_children(core) -> None:
    parent = await source_of(core)
    calls = [core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 3, idempotency=KEY) for _ in range(3)]
    first, *others = await asyncio.gather(*calls)
    assert all([one.id for one in other] == [one.id for one in first] for other in others)
    again = await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 3, idempotency=KEY)
    assert [one.id for one in again] == [one.id for one in first]
    assert len(running(core)) == 4
    with pytest.raises(IdempotencyConflict):
        await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 2, idempotency=KEY)
    with pytest.raises(IdempotencyConflict):
        await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)


async def test_one_that_failed_may_be_tried_again_with_its_key(core, driver) -> None:
    parent = await source_of(core)
    driver.failures = [EngineFailure("no")]
    with pytest.raises(EngineFailure):
        await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 2, idempotency=KEY)
    assert len(await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 2, idempotency=KEY)) == 2


async def test_a_caller_who_goes_away_leaves_no_child_unless_they_will_come_back(core, driver, eventually) -> None:
    parent = await source_of(core)
    for idempotency, left in ((None, 1), (KEY, 5)):
        driver.gate.clear()
        call = asyncio.ensure_future(core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 4, idempotency=idempotency))
        await eventually(lambda: driver.creating > 0)
        call.cancel()
        await asyncio.sleep(0)
        driver.gate.set()
        await eventually(lambda: not core.snapshots._store.forks.all() and not core.stats().admission.creating)
        await eventually(lambda left=left: len(running(core)) == left)
    assert len(await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 4, idempotency=KEY)) == 4
    assert len(running(core)) == 5


async def test_a_start_ends_the_children_of_a_fork_that_was_not_done(opened, driver, checkpoints) -> None:
    async with opened() as core:
        parent = await source_of(core)
        children = await core.snapshots.fork(ALICE, parent.id, RestoreSpec(), 2)
        ids = tuple(one.id for one in children)
        row = ForkRow(id="f" * 16, project="alice", sandbox=parent.id, children=(*ids, "0" * 16), created_at=1.0)
        await core.snapshots._store.forks.add(row)
        snapshot = checkpoints.sealed  # what the fork left
        (await core.snapshots.fork(ALICE, parent.id, RestoreSpec(name="other")))
        snapshot["f" * 16] = snapshot.get("f" * 16) or await checkpoints.seal(await checkpoints.begin("f" * 16), None)
    async with opened() as core:
        assert sorted(running(core)) == ["other", "parent"]
        for one in ids:
            ended = core.sandboxes.get(ALICE, one)
            assert (ended.state, ended.end_reason) == (State.FAILED, EndReason.CREATE_FAILED)
            assert ended.end_detail == "the server stopped while its fork was being made"
        assert core.snapshots._store.forks.all() == []
        assert not checkpoints.sealed
        assert len(driver.living()) == 2


async def test_a_source_that_is_not_there_is_not_found(core) -> None:
    with pytest.raises(NotFound):
        await core.snapshots.fork(ALICE, "nobody", RestoreSpec())
