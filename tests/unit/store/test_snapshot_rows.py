from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.model.errors import BadRequest, Conflict
from cove.model.request import Idempotency
from cove.model.sandbox import Kept, Limits
from cove.model.snapshot import Snapshot, SnapshotFilter, SnapshotState
from cove.store.forks import ForkRow
from cove.store.snapshots import needed_digests
from cove.store.store import Store, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "cove.db") as one:
        yield one


def snapshot(name: str, number: int = 1, *, project: str = "default", **also: object) -> Snapshot:
    made = Snapshot(
        id=f"{number:016x}",
        project=project,
        name=name,
        state=SnapshotState.READY,
        tags={},
        sandbox="a" * 16,
        sandbox_name="box",
        parent=None,
        kept=Kept(memory=True),
        driver="runc",
        image="base",
        image_used="base",
        image_digest="d1",
        limits=Limits(),
        created_at=1.0,
        created_by="local",
    )
    return replace(made, **also)


async def test_a_row_comes_back_as_it_was_saved(store: Store) -> None:
    one = snapshot("one", tags={"a": "b"}, failure="no", stopped_ms=1.5)
    await store.snapshots.save(one)
    assert store.snapshots.get(one.id) == store.snapshots.named("default", "one") == one
    assert store.snapshots.named("other", "one") is None
    await store.snapshots.save(replace(one, name="two", tags={}))
    assert store.snapshots.named("default", "one") is None
    assert store.snapshots.page("default", SnapshotFilter(tags={"a": "b"}), limit=9, cursor=None).snapshots == ()
    await store.snapshots.remove(one.id)
    await store.snapshots.remove(one.id)
    assert store.snapshots.all() == []


async def test_two_of_a_project_have_not_one_name_and_the_key_is_not_kept_then(store: Store) -> None:
    await store.snapshots.save(snapshot("one"))
    with pytest.raises(Conflict):
        await store.snapshots.save(snapshot("one", 2), Idempotency(key="k", body_sha256="0" * 64))
    assert store.idempotency.get("default", "k", since=0.0) is None
    await store.snapshots.save(snapshot("one", 3, project="other"))
    assert store.snapshots.ids("default") == {f"{1:016x}"}


async def test_pages_go_by_the_order_of_making(store: Store) -> None:
    for number in range(1, 6):
        await store.snapshots.save(snapshot(f"s{number}", number, image_digest=f"d{number % 2}"))
    first = store.snapshots.page("default", SnapshotFilter(), limit=2, cursor=None)
    rest = store.snapshots.page("default", SnapshotFilter(), limit=9, cursor=first.cursor)
    assert [one.name for one in first.snapshots + rest.snapshots] == ["s5", "s4", "s3", "s2", "s1"]
    assert rest.cursor is None
    with pytest.raises(BadRequest):
        store.snapshots.page("other", SnapshotFilter(), limit=2, cursor=first.cursor)
    assert store.snapshots.digests() == {"d0", "d1"}
    assert store.snapshots.names_on("default", "d0") == ["s2", "s4"]
    for text in ("' OR 1=1 --", '"', "%", "\\"):
        wanted = SnapshotFilter(name=text, sandbox=text, tags={text: text})
        assert store.snapshots.page("default", wanted, limit=9, cursor=None).snapshots == ()


async def test_a_fork_in_the_making_is_known_until_it_is_done(store: Store) -> None:
    row = ForkRow(id="f" * 16, project="default", sandbox="a" * 16, children=("1" * 16, "2" * 16), created_at=5.0)
    await store.forks.add(row)
    assert store.forks.all() == [row]
    await store.forks.finish(row, Idempotency(key="k", body_sha256="0" * 64))
    assert store.forks.all() == []
    kept = store.idempotency.get("default", "k", since=0.0)
    assert kept is not None
    assert kept.made == row.children


async def test_what_needs_an_image_is_told_to_a_process_beside_the_server(store: Store, tmp_path: Path) -> None:
    await store.snapshots.save(snapshot("one"))
    assert needed_digests(tmp_path / "cove.db") == {"d1"}
    assert needed_digests(tmp_path / "none.db") == set()
