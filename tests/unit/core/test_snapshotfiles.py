# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.model.access import FULL, Principal, Scope
from cove.model.errors import BadRequest, Conflict, CoveError, Forbidden, NotFound, QuotaExceeded, Unsupported
from cove.model.network import NetworkMode, NetworkRequest
from cove.model.quota import Quota
from cove.model.sandbox import Limits, SandboxSpec
from cove.model.snapshot import RestoreSpec, Snapshot, SnapshotSpec, SnapshotState
from cove.model.state import State

ALICE = Principal(key_id="a", name="alice", project="alice", scopes=FULL - {Scope.ADMIN})
BOB = Principal(key_id="b", name="bob", project="bob", scopes=FULL - {Scope.ADMIN})


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def kept_of(core, who: Principal = ALICE, name: str = "one") -> Snapshot:
    spec = SandboxSpec(name="box", metadata={"a": "b"}, network=NetworkRequest(mode=NetworkMode.OPEN))
    made = await core.sandboxes.create(who, spec)
    return await core.snapshots.create(who, made.id, SnapshotSpec(name=name, tags={"t": "1"}))


async def exported(core, who: Principal, ref: str) -> bytes:
    async with core.snapshots.export(who, ref) as file:
        assert file.size_bytes is None
        return b"".join([piece async for piece in file])


async def test_a_file_becomes_the_snapshot_that_it_was_of_in_another_project_too(core) -> None:
    snapshot = await kept_of(core)
    data = await exported(core, ALICE, "one")
    copy = await core.snapshots.import_(BOB, once(data))
    assert copy.state is SnapshotState.READY
    assert copy.is_imported
    assert (copy.project, copy.key, copy.created_by) == ("bob", "b", "key:bob")
    same = ("name", "tags", "metadata", "kept", "driver", "image_used", "image_digest", "limits", "network")
    for field in same:
        assert getattr(copy, field) == getattr(snapshot, field), field
    child = await core.snapshots.restore(BOB, copy.id, RestoreSpec())
    assert (child.project, child.state) == ("bob", State.RUNNING)
    again = await core.snapshots.import_(BOB, once(data))
    assert again.name != copy.name, "its own name is taken"
    with pytest.raises(Conflict, match="a snapshot named one exists"):
        await core.snapshots.import_(BOB, once(data), name="one")
    assert (await core.snapshots.import_(BOB, once(data), name="mine")).name == "mine"
    events = [line.event for line in (await core.trail.page(BOB, limit=100)).entries]
    assert events.count("snapshot.imported") == 3
    assert "snapshot.exported" in [line.event for line in (await core.trail.page(ALICE, limit=100)).entries]


async def test_a_file_takes_what_it_holds_to_have(core) -> None:
    snapshot = await kept_of(core)
    for who in (
        replace(ALICE, scopes=frozenset({Scope.CREATE})),
        replace(ALICE, scopes=frozenset({Scope.FILES, Scope.READ})),
    ):
        with pytest.raises(Forbidden):
            await exported(core, who, snapshot.id)
    with pytest.raises(Forbidden):
        await core.snapshots.import_(replace(ALICE, scopes=frozenset({Scope.READ})), once(b""))
    with pytest.raises(NotFound):
        await exported(core, BOB, snapshot.id)


async def test_it_is_not_deleted_under_an_export(core) -> None:
    snapshot = await kept_of(core)
    async with core.snapshots.export(ALICE, "one") as file:
        with pytest.raises(Conflict, match="in use: an export"):
            await core.snapshots.delete(ALICE, "one")
        async for _ in file:
            break
    await core.snapshots.delete(ALICE, snapshot.id)


async def test_a_damaged_one_is_refused_before_the_first_byte(core, checkpoints) -> None:
    snapshot = await kept_of(core)
    checkpoints.damaged.add(snapshot.id)
    with pytest.raises(CoveError, match="damaged"):
        await exported(core, ALICE, "one")
    assert core.snapshots.get(ALICE, "one").state is SnapshotState.FAILED


async def test_imports_count_and_a_refused_one_leaves_nothing(core, checkpoints, images, driver) -> None:
    await kept_of(core)
    data = await exported(core, ALICE, "one")
    await core.quotas.set_project(LOCAL, "default", Quota(snapshots=1))
    await core.snapshots.import_(LOCAL, once(data))
    with pytest.raises(QuotaExceeded):
        await core.snapshots.import_(LOCAL, once(data))
    sealed = len(checkpoints.sealed)
    images.digest = "d2"
    with pytest.raises(NotFound, match="the image under it is not here: base with the content d1") as refused:
        await core.snapshots.import_(BOB, once(data))
    assert refused.value.field == "image"
    images.digest = "d1"
    with pytest.raises(BadRequest) as bad:
        await core.snapshots.import_(BOB, once(b"nonsense"))
    assert bad.value.field == "file"
    assert len(checkpoints.sealed) == sealed
    assert core.snapshots.list(BOB).snapshots == ()
    assert core.snapshots.book.making == {}
    assert driver.living()


@pytest.mark.parametrize(
    "lie",
    [
        {"name": "../x"},
        {"name": "f" * 16},
        {"sandbox": "' OR 1"},
        {"sandbox_name": "\n"},
        {"image": "x" * 256},
        {"image_used": "\0"},
        {"tags": {"k": "v" * 2000}},
        {"metadata": {str(n): "" for n in range(65)}},
        {"idle_timeout_s": -1.0},
        {"idle_action": "explode"},
        {"network": {"mode": "sideways"}},
        {"created_at": "now"},
    ],
)
async def test_what_a_file_says_of_itself_is_checked_as_if_its_bearer_had_asked(core, lie) -> None:
    await kept_of(core)
    facts, about = msgspec.json.decode(await exported(core, ALICE, "one"), type=tuple[msgspec.Raw, bytes])
    lying = msgspec.json.encode(msgspec.json.decode(about) | lie)
    data = msgspec.json.encode((facts, lying))
    with pytest.raises(BadRequest) as refused:
        await core.snapshots.import_(BOB, once(data))
    assert refused.value.field == "file"
    assert core.snapshots.list(BOB).snapshots == ()


async def test_a_file_of_a_driver_that_is_not_here_is_refused_by_name(core, checkpoints) -> None:
    snapshot = await kept_of(core)
    made = checkpoints.sealed[snapshot.id]
    for facts, error, said in (
        (replace(made.facts, driver="other"), Unsupported, "of a sandbox on other"),
        (replace(made.facts, limits=Limits(cpus=1e9)), BadRequest, "what no snapshot can"),
    ):
        checkpoints.sealed[snapshot.id] = replace(made, facts=facts)
        data = await exported(core, ALICE, "one")
        with pytest.raises(error, match=said) as refused:
            await core.snapshots.import_(BOB, once(data))
        assert refused.value.field == "file"


async def test_a_file_that_names_ones_own_sandbox_proves_nothing(core, checkpoints) -> None:
    snapshot = await kept_of(core)
    data = await exported(core, ALICE, "one")
    copy = await core.snapshots.import_(ALICE, once(data))
    assert copy.sandbox == snapshot.sandbox
    with pytest.raises(Conflict, match="of another sandbox"):
        await core.snapshots.roll_back(ALICE, snapshot.sandbox, copy.id)
    with pytest.raises(Conflict, match="credentials"):
        await core.snapshots.restore(ALICE, copy.id, RestoreSpec(inherit_credentials=True))
    child = await core.snapshots.restore(ALICE, copy.id, RestoreSpec())
    assert (await core.snapshots.roll_back(ALICE, child.id, copy.id)).state is State.RUNNING
    assert checkpoints.sealed
