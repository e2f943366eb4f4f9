# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.model.access import FULL, Principal, Scope
from cove.model.audit import AuditFilter
from cove.model.errors import (
    BadRequest,
    Conflict,
    CoveError,
    EngineFailure,
    Forbidden,
    Gone,
    IdempotencyConflict,
    NotFound,
    QuotaExceeded,
    TooLarge,
    Unsupported,
)
from cove.model.network import NetworkMode, NetworkRequest, NetworkRule, Verdict
from cove.model.quota import Quota
from cove.model.request import Idempotency
from cove.model.sandbox import MIB, IdleAction, Kept, Limits, SandboxSpec
from cove.model.snapshot import RestoreSpec, Snapshot, SnapshotChange, SnapshotFilter, SnapshotSpec, SnapshotState
from cove.model.state import State

ALICE = Principal(key_id="a", name="alice", project="alice", scopes=FULL - {Scope.ADMIN})
BOB = Principal(key_id="b", name="bob", project="bob", scopes=FULL - {Scope.ADMIN})
KEY = Idempotency(key="k1", body_sha256="0" * 64)


def limited(*scopes: Scope) -> Principal:
    return replace(ALICE, scopes=frozenset(scopes))


async def kept_of(core, name: str = "one", who: Principal = ALICE, **spec: object) -> Snapshot:
    made = await core.sandboxes.create(who, SandboxSpec(**spec))
    return await core.snapshots.create(who, made.id, SnapshotSpec(name=name))


async def test_a_snapshot_says_what_it_is_of_and_what_it_holds(core, driver, checkpoints) -> None:
    spec = SandboxSpec(name="box", metadata={"a": "b"}, idle_timeout_s=60.0, limits=Limits(memory_bytes=256 * MIB))
    made = await core.sandboxes.create(ALICE, spec)
    snapshot = await core.snapshots.create(ALICE, made.id, SnapshotSpec(tags={"run": "7"}))
    assert snapshot.state is SnapshotState.READY
    assert (snapshot.sandbox, snapshot.sandbox_name, snapshot.parent) == (made.id, "box", None)
    assert (snapshot.kept, snapshot.tags) == (Kept(memory=True), {"run": "7"})
    assert (snapshot.driver, snapshot.image_used, snapshot.image_digest) == ("stub", "base", "d1")
    assert (snapshot.metadata, snapshot.idle_timeout_s) == ({"a": "b"}, 60.0)
    assert (snapshot.key, snapshot.created_by) == ("a", "key:alice")
    assert snapshot.id in checkpoints.sealed
    assert core.sandboxes.get(ALICE, made.id).state is State.RUNNING, "it goes on"
    assert not driver.living()[made.id].is_paused
    assert core.snapshots.get(ALICE, snapshot.id) == core.snapshots.get(ALICE, snapshot.name) == snapshot


async def test_memory_that_cannot_be_kept_is_told_or_refused_never_left_out_in_silence(core, driver) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    driver.living()[made.id].has_memory = False
    snapshot = await core.snapshots.create(ALICE, made.id, SnapshotSpec())
    assert snapshot.kept == Kept(memory=False, reason="this stub keeps no memory")
    with pytest.raises(Unsupported, match="keeps no memory"):
        await core.snapshots.create(ALICE, made.id, SnapshotSpec(memory=True, name="never"))
    with pytest.raises(NotFound):
        core.snapshots.get(ALICE, "never")
    child = await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    assert child.came_from is not None
    assert child.came_from.kept == snapshot.kept
    with pytest.raises(Unsupported, match="cannot be brought back: this stub keeps no memory"):
        await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec(memory=True))


async def test_a_paused_and_a_hibernated_sandbox_can_be_kept_too(core, driver, checkpoints) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    await core.sandboxes.pause(ALICE, made.id)
    assert (await core.snapshots.create(ALICE, made.id, SnapshotSpec())).kept.memory
    assert driver.living()[made.id].is_paused
    await core.sandboxes.hibernate(ALICE, made.id)
    asleep = await core.snapshots.create(ALICE, made.id, SnapshotSpec(name="asleep"))
    assert asleep.kept.memory
    assert {made.id, asleep.id} <= set(checkpoints.sealed)
    assert core.sandboxes.get(ALICE, made.id).state is State.HIBERNATED
    assert (await core.snapshots.restore(ALICE, "asleep", RestoreSpec())).state is State.RUNNING


async def test_another_projects_snapshots_do_not_exist(core, checkpoints) -> None:
    snapshot = await kept_of(core)
    mine = await core.sandboxes.create(BOB, SandboxSpec())
    calls = len(checkpoints.calls)
    for ref in (snapshot.id, snapshot.name):
        for call in (
            core.snapshots.restore(BOB, ref, RestoreSpec()),
            core.snapshots.update(BOB, ref, SnapshotChange(name="x")),
            core.snapshots.delete(BOB, ref),
            core.snapshots.roll_back(BOB, mine.id, ref),
        ):
            with pytest.raises(NotFound, match="no such snapshot"):
                await call
        with pytest.raises(NotFound):
            core.snapshots.get(BOB, ref)
    for call in (
        core.snapshots.create(BOB, snapshot.sandbox, SnapshotSpec()),
        core.snapshots.fork(BOB, snapshot.sandbox, RestoreSpec()),
        core.snapshots.roll_back(BOB, snapshot.sandbox, snapshot.id),
    ):
        with pytest.raises(NotFound, match="no such sandbox"):
            await call
    assert core.snapshots.list(BOB).snapshots == ()
    with pytest.raises(BadRequest, match="cursor"):
        core.snapshots.list(BOB, cursor=snapshot.id)
    assert checkpoints.calls[calls:] == [], "nothing was touched"
    assert core.snapshots.get(LOCAL, snapshot.id) == snapshot, "an admin sees it"


async def test_what_an_admin_makes_of_anothers_snapshot_stays_in_that_project(core) -> None:
    snapshot = await kept_of(core)
    child = await core.snapshots.restore(LOCAL, snapshot.id, RestoreSpec())
    assert (child.project, child.key) == ("alice", "local")


async def test_each_operation_needs_its_scope(core) -> None:
    snapshot = await kept_of(core)
    reader, maker = limited(Scope.READ), limited(Scope.CREATE)
    for who, call in (
        (reader, lambda who: core.snapshots.create(who, snapshot.sandbox, SnapshotSpec())),
        (reader, lambda who: core.snapshots.restore(who, snapshot.id, RestoreSpec())),
        (reader, lambda who: core.snapshots.fork(who, snapshot.sandbox, RestoreSpec())),
        (reader, lambda who: core.snapshots.roll_back(who, snapshot.sandbox, snapshot.id)),
        (reader, lambda who: core.snapshots.update(who, snapshot.id, SnapshotChange())),
        (maker, lambda who: core.snapshots.delete(who, snapshot.id)),
    ):
        with pytest.raises(Forbidden, match="lacks the scope"):
            await call(who)
    with pytest.raises(Forbidden):
        core.snapshots.get(maker, snapshot.id)
    with pytest.raises(Forbidden):
        core.snapshots.list(maker)


@pytest.mark.parametrize("ref", ["", "nope", "f" * 16, "../etc", "x" * 10_000, "\0", "one/"])
async def test_what_is_no_snapshot_is_not_found(core, ref: str) -> None:
    with pytest.raises(NotFound):
        core.snapshots.get(ALICE, ref)


async def test_a_name_is_unique_among_a_projects_snapshots(core) -> None:
    first = await kept_of(core)
    with pytest.raises(Conflict, match="a snapshot named one exists"):
        await core.snapshots.create(ALICE, first.sandbox, SnapshotSpec(name="one"))
    assert (await kept_of(core, who=BOB)).name == "one"
    second = await core.snapshots.create(ALICE, first.sandbox, SnapshotSpec(name="two"))
    with pytest.raises(Conflict, match="a snapshot named one exists"):
        await core.snapshots.update(ALICE, second.id, SnapshotChange(name="one"))
    await core.snapshots.delete(ALICE, first.id)
    assert (await core.snapshots.update(ALICE, second.id, SnapshotChange(name="one"))).name == "one"
    with pytest.raises(BadRequest, match="name"):
        await core.snapshots.update(ALICE, second.id, SnapshotChange(name="f" * 16))
    both = [core.snapshots.create(ALICE, first.sandbox, SnapshotSpec(name="same")) for _ in range(2)]
    done = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["Conflict", "Snapshot"]


async def test_tags_are_merged_and_filter_lists(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    other = await kept_of(core, name="other")
    for number in range(3):
        tags = {"n": str(number), "kind": "x"}
        await core.snapshots.create(ALICE, made.id, SnapshotSpec(name=f"s{number}", tags=tags))
    changed = await core.snapshots.update(ALICE, "s1", SnapshotChange(tags={"n": None, "more": "1"}))
    assert changed.tags == {"kind": "x", "more": "1"}

    def names(**wanted: object) -> list[str]:
        return [one.name for one in core.snapshots.list(ALICE, SnapshotFilter(**wanted)).snapshots]

    assert names() == ["s2", "s1", "s0", "other"]
    assert names(sandbox=made.id) == names(sandbox=made.name) == ["s2", "s1", "s0"]
    assert names(sandbox="f" * 16) == []
    with pytest.raises(NotFound):
        names(sandbox="nobody")
    assert names(tags={"kind": "x", "n": "2"}) == ["s2"]
    assert names(tags={"n": "1"}) == []
    assert names(name="s0") == ["s0"]
    assert names(states=frozenset({SnapshotState.CREATING})) == []
    first = core.snapshots.list(ALICE, limit=3)
    rest = core.snapshots.list(ALICE, limit=3, cursor=first.cursor)
    assert [one.name for one in rest.snapshots] == [other.name]
    assert rest.cursor is None
    for bad in ({"": "x"}, {"x": "\0"}):
        with pytest.raises(BadRequest):
            await core.snapshots.create(ALICE, made.id, SnapshotSpec(tags=bad))
    with pytest.raises(TooLarge):
        await core.snapshots.update(ALICE, "s1", SnapshotChange(tags={str(n): "" for n in range(65)}))


async def test_a_restored_one_is_as_the_source_was_unless_asked_otherwise(core, driver) -> None:
    limits = Limits(cpus=2.0, memory_bytes=256 * MIB, disk_bytes=1024 * MIB, pids=99)
    spec = SandboxSpec(
        name="box", limits=limits, metadata={"a": "b"}, env={"A": "1"}, idle_timeout_s=9.0, timeout_s=99.0
    )
    source = await core.sandboxes.create(ALICE, spec)
    snapshot = await core.snapshots.create(ALICE, source.id, SnapshotSpec())
    await core.sandboxes.destroy(ALICE, source.id)
    child = await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    assert child.state is State.RUNNING
    assert child.id != source.id
    assert (child.limits, child.metadata, child.idle_timeout_s) == (limits, {"a": "b"}, 9.0)
    assert child.expires_at is None
    assert child.came_from is not None
    assert (child.came_from.snapshot, child.came_from.sandbox) == (snapshot.id, source.id)
    assert driver.living()[child.id].agent.revived == (child.name, {}, True), "a name of its own"
    other = await core.snapshots.restore(
        ALICE,
        snapshot.id,
        RestoreSpec(
            name="other",
            env={"B": "2"},
            metadata={},
            cpus=0.5,
            memory_bytes=128 * MIB,
            disk_bytes=64 * MIB,
            pids=64,
            timeout_s=5.0,
            idle_timeout_s=None,
            idle_action=IdleAction.TERMINATE,
            auto_resume=False,
            memory=False,
        ),
    )
    assert other.limits == Limits(cpus=0.5, memory_bytes=128 * MIB, disk_bytes=64 * MIB, pids=64)
    assert (other.name, other.metadata, other.idle_timeout_s, other.auto_resume) == ("other", {}, None, False)
    assert other.expires_at is not None
    env, _, hostname = driver.living()[other.id].agent.claimed
    assert (env["A"], env["B"], hostname) == ("1", "2", "other")


async def test_limits_below_what_comes_along_are_refused_by_name(core, checkpoints, driver) -> None:
    snapshot = await kept_of(core)
    facts = replace(checkpoints.sealed[snapshot.id].facts, processes=40, inherited_bytes=100 * MIB)
    checkpoints.sealed[snapshot.id] = replace(checkpoints.sealed[snapshot.id], facts=facts)
    made = len(driver.boxes)
    for asked, field, need in (
        (RestoreSpec(memory_bytes=64 * MIB), "memory_bytes", "100 MiB"),
        (RestoreSpec(disk_bytes=64 * MIB), "disk_bytes", "100 MiB"),
        (RestoreSpec(pids=20), "pids", "40"),
        (RestoreSpec(cpus=1000.0), "cpus", "must be"),
    ):
        with pytest.raises(BadRequest, match=need) as refused:
            await core.snapshots.restore(ALICE, snapshot.id, asked)
        assert refused.value.field == field
    assert len(driver.boxes) == made
    small = RestoreSpec(memory_bytes=64 * MIB, pids=20, memory=False)
    assert (await core.snapshots.restore(ALICE, snapshot.id, small)).state is State.RUNNING


async def test_what_the_driver_cannot_bring_back_comes_as_files_with_the_reason(core, driver) -> None:
    snapshot = await kept_of(core)
    driver.gaps = ("the kernel is another one",)
    child = await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    assert child.came_from is not None
    assert child.came_from.kept == Kept(memory=False, reason="the kernel is another one")
    assert driver.living()[child.id].agent.revived is None
    with pytest.raises(Unsupported, match="the kernel is another one"):
        await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec(memory=True))


async def test_the_policy_comes_along_and_is_asked_again(core, driver) -> None:
    friend = await core.sandboxes.create(
        ALICE, SandboxSpec(name="friend", network=NetworkRequest(mode=NetworkMode.OPEN))
    )
    rules = (NetworkRule(target="example.com", verdict=Verdict.ALLOW),)
    request = NetworkRequest(rules=rules, links=("friend",))
    source = await core.sandboxes.create(ALICE, SandboxSpec(network=request))
    snapshot = await core.snapshots.create(ALICE, source.id, SnapshotSpec())
    child = await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    assert child.network == source.network
    box = driver.living()[child.id]
    assert box.network == child.network
    await core.sandboxes.destroy(ALICE, friend.id)
    with pytest.raises(BadRequest, match=r"cannot hold any more: .*friend.*ask for another"):
        await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    other = RestoreSpec(network=NetworkRequest(mode=NetworkMode.NONE))
    assert not (await core.snapshots.restore(ALICE, snapshot.id, other)).network.is_connected


async def test_the_very_image_is_needed(core, images) -> None:
    snapshot = await kept_of(core)
    images.digest = "d2"
    with pytest.raises(NotFound, match="the image under it is not here any more: base with the content d1") as refused:
        await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    assert refused.value.field == "image"


async def test_a_damaged_or_missing_one_says_so_and_is_never_dropped(core, checkpoints) -> None:
    snapshot = await kept_of(core)
    checkpoints.damaged.add(snapshot.id)
    with pytest.raises(EngineFailure, match="damaged"):
        await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    shown = core.snapshots.get(ALICE, snapshot.id)
    assert shown.state is SnapshotState.FAILED
    assert "pages-1.img" in (shown.failure or "")
    child = await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec(memory=False))
    assert child.state is State.RUNNING, "its files are whole"
    assert core.snapshots.get(ALICE, snapshot.id).state is SnapshotState.FAILED
    checkpoints.damaged.clear()
    await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    assert core.snapshots.get(ALICE, snapshot.id).state is SnapshotState.READY, "it was the disk that was gone"
    del checkpoints.sealed[snapshot.id]
    with pytest.raises(Conflict, match="cannot be used: what it holds is not on the disk"):
        await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    assert core.snapshots.get(ALICE, snapshot.id).state is SnapshotState.FAILED
    await core.snapshots.delete(ALICE, snapshot.id)


async def test_what_is_in_use_is_not_deleted_and_who_uses_it_is_named(core, driver, checkpoints, eventually) -> None:
    snapshot = await kept_of(core)
    driver.gate.clear()
    restoring = asyncio.ensure_future(core.snapshots.restore(ALICE, snapshot.id, RestoreSpec()))
    await eventually(lambda: driver.creating == 1)
    with pytest.raises(Conflict, match="in use: a restore"):
        await core.snapshots.delete(ALICE, snapshot.id)
    driver.gate.set()
    await restoring
    templates = ["the template web"]
    core.snapshots.book.users.append(lambda _: templates)
    with pytest.raises(Conflict, match="in use: the template web"):
        await core.snapshots.delete(ALICE, snapshot.id)
    templates.clear()
    await core.snapshots.delete(ALICE, snapshot.id)
    assert snapshot.id not in checkpoints.sealed
    with pytest.raises(NotFound):
        core.snapshots.get(ALICE, snapshot.id)


async def test_a_delete_and_restores_at_a_time_leave_no_sandbox_without_its_files(core, checkpoints) -> None:
    for _ in range(5):
        snapshot = await kept_of(core)
        calls = [core.snapshots.restore(ALICE, snapshot.id, RestoreSpec()) for _ in range(3)]
        calls.insert(1, core.snapshots.delete(ALICE, snapshot.id))
        done = await asyncio.gather(*calls, return_exceptions=True)
        for one in done:
            assert one is None or isinstance(one, (Conflict, NotFound)) or one.state is State.RUNNING
        if done[1] is not None:
            await core.snapshots.delete(ALICE, snapshot.id)
        assert snapshot.id not in checkpoints.sealed


async def test_one_that_is_being_made_is_shown_and_neither_used_nor_deleted(core, driver, eventually) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    go = asyncio.Event()
    driver.living()[made.id].on_checkpoint = go.wait
    begun = core.snapshots.begin(ALICE, made.id, SnapshotSpec(name="slow"))
    assert begun.state is SnapshotState.CREATING
    await eventually(lambda: core.snapshots.list(ALICE).snapshots)
    assert core.snapshots.get(ALICE, "slow").state is SnapshotState.CREATING
    for call in (
        core.snapshots.restore(ALICE, begun.id, RestoreSpec()),
        core.snapshots.delete(ALICE, begun.id),
        core.snapshots.update(ALICE, begun.id, SnapshotChange(name="x")),
    ):
        with pytest.raises(Conflict, match=r"is creating|being made"):
            await call
    go.set()
    await eventually(lambda: core.snapshots.get(ALICE, "slow").state is SnapshotState.READY)


async def test_one_that_failed_is_gone_or_tells_why_where_nobody_waited(core, driver, checkpoints, eventually) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    checkpoints.refuse["seal"] = EngineFailure("the disk is full")
    with pytest.raises(EngineFailure, match="disk is full"):
        await core.snapshots.create(ALICE, made.id, SnapshotSpec(name="one"))
    with pytest.raises(NotFound):
        core.snapshots.get(ALICE, "one")
    begun = core.snapshots.begin(ALICE, made.id, SnapshotSpec(name="one"))
    await eventually(lambda: not core.snapshots.book.making)
    shown = core.snapshots.get(ALICE, begun.id)
    assert (shown.state, shown.failure) == (SnapshotState.FAILED, "the disk is full")
    assert not checkpoints.sealed
    assert not checkpoints.drafts
    with pytest.raises(Conflict, match="the disk is full"):
        await core.snapshots.restore(ALICE, begun.id, RestoreSpec())
    await core.snapshots.delete(ALICE, begun.id)
    assert driver.living()[made.id].is_paused is False


async def test_a_caller_who_goes_away_leaves_none_unless_they_will_come_back(
    core, driver, checkpoints, eventually
) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    for idempotency, stays in ((None, False), (KEY, True)):
        go = asyncio.Event()
        driver.living()[made.id].on_checkpoint = go.wait
        call = asyncio.ensure_future(
            core.snapshots.create(ALICE, made.id, SnapshotSpec(name="one"), idempotency=idempotency)
        )
        await eventually(lambda: core.snapshots.book.making)
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.sleep(0)
        go.set()
        await eventually(lambda: not core.snapshots.book.making)
        assert bool(checkpoints.sealed) is stays
        assert bool(core.snapshots.list(ALICE).snapshots) is stays
    again = await core.snapshots.create(ALICE, made.id, SnapshotSpec(name="one"), idempotency=KEY)
    assert [again] == list(core.snapshots.list(ALICE).snapshots)


async def test_a_repeated_request_is_answered_with_what_it_made(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    calls = [core.snapshots.create(ALICE, made.id, SnapshotSpec(), idempotency=KEY) for _ in range(3)]
    first, *others = await asyncio.gather(*calls)
    assert all(one == first for one in others)
    with pytest.raises(IdempotencyConflict):
        await core.snapshots.restore(ALICE, first.id, RestoreSpec(), idempotency=KEY)
    with pytest.raises(IdempotencyConflict):
        await core.sandboxes.create(ALICE, SandboxSpec(), idempotency=KEY)
    key = Idempotency(key="k2", body_sha256="1" * 64)
    calls = [core.snapshots.restore(ALICE, first.id, RestoreSpec(), idempotency=key) for _ in range(3)]
    children = await asyncio.gather(*calls)
    assert len({child.id for child in children}) == 1
    await core.snapshots.delete(ALICE, first.id)
    again = await core.snapshots.restore(ALICE, first.id, RestoreSpec(), idempotency=key)
    assert again.id == children[0].id, "also when the snapshot is gone"


async def test_the_quota_of_snapshots_is_given_once(core) -> None:
    made = await core.sandboxes.create(LOCAL, SandboxSpec())
    await core.quotas.set_project(LOCAL, "default", Quota(snapshots=3))
    calls = [core.snapshots.create(LOCAL, made.id, SnapshotSpec()) for _ in range(8)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    refused = [one for one in done if isinstance(one, QuotaExceeded)]
    assert len(refused) == 5
    assert refused[0].field == "snapshots"
    assert (await core.quotas.of_project(LOCAL, "default")).use.snapshots == 3
    kept = next(one for one in done if isinstance(one, Snapshot))
    await core.snapshots.delete(LOCAL, kept.id)
    await core.snapshots.create(LOCAL, made.id, SnapshotSpec())


async def test_a_child_counts_as_any_sandbox(core) -> None:
    made = await core.sandboxes.create(LOCAL, SandboxSpec())
    snapshot = await core.snapshots.create(LOCAL, made.id, SnapshotSpec())
    await core.quotas.set_project(LOCAL, "default", Quota(sandboxes=3))
    calls = [core.snapshots.restore(LOCAL, snapshot.id, RestoreSpec()) for _ in range(6)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(one, QuotaExceeded) for one in done) == 4
    assert (await core.quotas.of_project(LOCAL, "default")).use.sandboxes == 3


async def test_rollback_makes_it_what_it_was_in_place(core, driver) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    snapshot = await core.snapshots.create(ALICE, made.id, SnapshotSpec())
    back = await core.snapshots.roll_back(ALICE, made.id, snapshot.id)
    assert (back.id, back.state) == (made.id, State.RUNNING)
    assert driver.living()[made.id].origin.id == snapshot.id
    child = await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    assert (await core.snapshots.roll_back(ALICE, child.id, snapshot.id)).id == child.id, "of what it was made of"
    (grandchild,) = await core.snapshots.fork(ALICE, child.id, RestoreSpec())
    assert (await core.snapshots.roll_back(ALICE, grandchild.id, snapshot.id)).id == grandchild.id
    stranger = await kept_of(core, name="stranger")
    with pytest.raises(Conflict, match="of another sandbox"):
        await core.snapshots.roll_back(ALICE, made.id, stranger.id)
    of_child = await core.snapshots.create(ALICE, child.id, SnapshotSpec())
    with pytest.raises(Conflict, match="of another sandbox"):
        await core.snapshots.roll_back(ALICE, made.id, of_child.id)


async def test_rollback_needs_the_room_that_it_had(core, checkpoints) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    snapshot = await core.snapshots.create(ALICE, made.id, SnapshotSpec())
    facts = checkpoints.sealed[snapshot.id].facts
    facts = replace(facts, memory_bytes=600 * MIB, limits=replace(facts.limits, memory_bytes=1024 * MIB))
    checkpoints.sealed[snapshot.id] = replace(checkpoints.sealed[snapshot.id], facts=facts)
    with pytest.raises(Conflict, match="memory_bytes is less than what comes along") as refused:
        await core.snapshots.roll_back(ALICE, made.id, snapshot.id)
    assert refused.value.field == "memory_bytes"
    assert core.sandboxes.get(ALICE, made.id).state is State.RUNNING
    await core.snapshots.delete(ALICE, snapshot.id)


async def test_the_limits_that_the_source_had_are_always_enough(core, checkpoints) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    snapshot = await core.snapshots.create(ALICE, made.id, SnapshotSpec())
    facts = checkpoints.sealed[snapshot.id].facts
    facts = replace(facts, processes=facts.limits.pids + 10)  # a box has room for its agent beside its limit
    checkpoints.sealed[snapshot.id] = replace(checkpoints.sealed[snapshot.id], facts=facts)
    await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    with pytest.raises(BadRequest) as refused:
        await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec(pids=facts.limits.pids - 1))
    assert refused.value.field == "pids"


async def test_an_ended_sandbox_cannot_be_kept(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec())
    await core.sandboxes.destroy(ALICE, made.id)
    with pytest.raises(Gone):
        await core.snapshots.create(ALICE, made.id, SnapshotSpec())
    with pytest.raises(Gone):
        await core.snapshots.fork(ALICE, made.id, RestoreSpec())


async def test_a_start_finishes_what_was_left(opened, driver, checkpoints) -> None:
    async with opened() as core:
        ready = await kept_of(core, name="ready")
        sealed = await kept_of(core, name="sealed")
        half = await kept_of(core, name="half")
        going = await kept_of(core, name="going")
        lost = await kept_of(core, name="lost")
        rows = core.snapshots.book._store.snapshots
        await rows.save(replace(sealed, state=SnapshotState.CREATING, kept=Kept(memory=False)))
        await rows.save(replace(half, state=SnapshotState.CREATING))
        await rows.save(replace(going, state=SnapshotState.DELETING))
        asleep = await core.sandboxes.create(ALICE, SandboxSpec(name="asleep"))
        await core.sandboxes.hibernate(ALICE, asleep.id)
        awake = await core.sandboxes.create(ALICE, SandboxSpec(name="awake"))
        checkpoints.sealed[awake.id] = checkpoints.sealed[ready.id]  # of an earlier time: it has gone on since
        orphan = await kept_of(core, name="orphan")
        await rows.remove(orphan.id)
    del checkpoints.sealed[half.id]
    del checkpoints.sealed[lost.id]
    async with opened() as core:
        shown = {one.name: one for one in core.snapshots.list(ALICE).snapshots}
        assert sorted(shown) == ["lost", "ready", "sealed"]
        assert shown["ready"] == ready
        assert (shown["sealed"].state, shown["sealed"].kept) == (SnapshotState.READY, Kept(memory=True))
        assert shown["lost"].state is SnapshotState.FAILED
        assert shown["lost"].failure == "what it holds is not on the disk any more"
        assert set(checkpoints.sealed) == {ready.id, sealed.id, asleep.id}
        assert core.sandboxes.get(ALICE, "asleep").state is State.HIBERNATED
        assert core.sandboxes.get(ALICE, "awake").state is State.RUNNING
        with pytest.raises(Conflict, match="not on the disk"):
            await core.snapshots.restore(ALICE, "lost", RestoreSpec())
    checkpoints.sealed[lost.id] = checkpoints.sealed[ready.id]
    async with opened() as core:
        assert core.snapshots.get(ALICE, "lost").state is SnapshotState.READY, "the disk is back"
    assert driver.living()


async def test_the_trail_names_what_was_made_of_what(core) -> None:
    made = await core.sandboxes.create(ALICE, SandboxSpec(name="box"))
    snapshot = await core.snapshots.create(ALICE, made.id, SnapshotSpec(name="one"))
    child = await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec(memory=False))
    (fork,) = await core.snapshots.fork(ALICE, made.id, RestoreSpec())
    await core.snapshots.delete(ALICE, snapshot.id)
    lines = (await core.trail.page(ALICE, AuditFilter(), limit=100)).entries
    told = {(line.sandbox, line.event): line.data for line in lines}
    assert told[made.id, "sandbox.snapshotted"]["name"] == "one"
    data = told[child.id, "sandbox.restored"]
    assert (data["parent"], data["snapshot"], data["memory"]) == (made.id, snapshot.id, False)
    assert data["reason"] == "only its files were asked for"
    assert told[fork.id, "sandbox.forked"]["parent"] == made.id
    assert (child.id, "sandbox.created") not in told
    assert told[None, "snapshot.deleted"]["snapshot"] == snapshot.id


async def test_errors_of_one_are_no_secret_of_another(core) -> None:
    with pytest.raises(CoveError) as refused:
        await core.snapshots.restore(BOB, (await kept_of(core, who=ALICE, name="secret")).id, RestoreSpec())
    assert "secret" not in refused.value.public
