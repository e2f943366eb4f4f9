# ruff: noqa: ANN003, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.model.errors import BadRequest, Conflict
from cove.model.ids import new_core_id
from cove.model.request import Idempotency, SandboxFilter
from cove.model.sandbox import IdleAction, Limits, Sandbox
from cove.model.state import State
from cove.store.store import Store, open_store


def sandbox(name: str = "one", **fields) -> Sandbox:
    base = Sandbox(
        id=new_core_id(),
        project="default",
        name=name,
        state=State.RUNNING,
        image="base",
        driver="runc",
        limits=Limits(),
        metadata={},
        isolation=None,
        dialect="native",
        created_by="key:k",
        created_at=1.0,
        expires_at=None,
        idle_timeout_s=None,
        idle_action=IdleAction.PAUSE,
        last_active_at=1.0,
    )
    return replace(base, **fields)


@pytest.fixture
async def store(tmp_path: Path):
    async with open_store(tmp_path / "cove.db") as one:
        yield one


async def test_a_saved_sandbox_is_read_back_whole(store: Store) -> None:
    one = sandbox(metadata={"a": "b"}, limits=Limits(cpus=0.5, io_read_bps=1048576))
    await store.sandboxes.save(one)
    assert store.sandboxes.get(one.id) == one
    assert store.sandboxes.get("f" * 16) is None


async def test_a_second_save_replaces_the_first(store: Store) -> None:
    one = sandbox(metadata={"a": "b"})
    await store.sandboxes.save(one)
    later = replace(one, state=State.TERMINATED, ended_at=2.0, metadata={"c": "d"})
    await store.sandboxes.save(later)
    assert store.sandboxes.get(one.id) == later
    assert store.sandboxes.unended() == []
    ended = SandboxFilter(states=frozenset({State.TERMINATED}), metadata={"c": "d"})
    assert store.sandboxes.page("default", ended, limit=5, cursor=None).sandboxes == (later,)
    assert store.sandboxes.page("default", replace(ended, metadata={"a": "b"}), limit=5, cursor=None).sandboxes == ()


async def test_two_unended_sandboxes_cannot_share_a_name(store: Store) -> None:
    await store.sandboxes.save(sandbox("twin"))
    with pytest.raises(Conflict):
        await store.sandboxes.save(sandbox("twin"))
    await store.sandboxes.save(sandbox("twin", project="other"))
    await store.sandboxes.save(sandbox("twin", state=State.TERMINATED, ended_at=3.0))


async def test_pages_are_newest_first_whatever_the_clock_said(store: Store) -> None:
    saved = [sandbox(f"s{number}", created_at=1000.0 - number) for number in range(7)]
    for one in saved:
        await store.sandboxes.save(one)
    seen: list[str] = []
    cursor = None
    while True:
        page = store.sandboxes.page("default", SandboxFilter(), limit=3, cursor=cursor)
        seen += [one.name for one in page.sandboxes]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [one.name for one in reversed(saved)]


async def test_a_page_that_is_exactly_full_is_the_last(store: Store) -> None:
    for number in range(3):
        await store.sandboxes.save(sandbox(f"s{number}"))
    assert store.sandboxes.page("default", SandboxFilter(), limit=3, cursor=None).cursor is None


async def test_a_cursor_of_another_project_is_no_cursor(store: Store) -> None:
    foreign = sandbox("x", project="other")
    await store.sandboxes.save(foreign)
    for cursor in (foreign.id, "nonsense", "' OR 1=1 --"):
        with pytest.raises(BadRequest):
            store.sandboxes.page("default", SandboxFilter(), limit=3, cursor=cursor)


async def test_a_page_shows_only_its_project_and_its_filter(store: Store) -> None:
    wanted = sandbox("a", image="python", driver="crun", metadata={"team": "x", "n": "1"}, state=State.PAUSED)
    for one in (
        wanted,
        sandbox("b"),
        sandbox("a", project="other", image="python"),
        sandbox("c", metadata={"team": "x"}),
    ):
        await store.sandboxes.save(one)

    def found(**fields) -> list[str]:
        page = store.sandboxes.page("default", SandboxFilter(**fields), limit=10, cursor=None)
        return [one.name for one in page.sandboxes]

    assert found() == ["c", "b", "a"]
    assert found(image="python") == found(driver="crun") == found(name="a") == ["a"]
    assert found(states=frozenset({State.PAUSED})) == ["a"]
    assert found(metadata={"team": "x"}) == ["c", "a"]
    assert found(metadata={"team": "x", "n": "1"}) == ["a"]
    assert found(metadata={"team' OR '1'='1": "x"}) == []


async def test_purge_forgets_those_that_ended_long_ago(store: Store) -> None:
    old = sandbox("a", state=State.TERMINATED, ended_at=10.0, metadata={"k": "v"})
    new = sandbox("b", state=State.TERMINATED, ended_at=99.0)
    live = sandbox("c")
    for one in (old, new, live):
        await store.sandboxes.save(one)
    assert await store.sandboxes.purge(ended_before=50.0) == 1
    assert [store.sandboxes.get(one.id) is None for one in (old, new, live)] == [True, False, False]
    assert store._reader.one("SELECT count(*) FROM sandbox_metadata", ()) == (0,)


async def test_an_idempotency_key_is_saved_with_its_sandbox_or_not_at_all(store: Store) -> None:
    idempotency = Idempotency(key="k", body_sha256="0" * 64)
    one = sandbox("taken", created_at=100.0)
    await store.idempotency.save_with(one, idempotency)
    row = store.idempotency.get("default", "k", since=100.0)
    assert row is not None
    assert row.made == (one.id,)
    assert store.idempotency.get("default", "k", since=100.1) is None
    assert store.idempotency.get("other", "k", since=0.0) is None
    with pytest.raises(Conflict):
        await store.idempotency.save_with(sandbox("taken"), Idempotency(key="k2", body_sha256="0" * 64))
    assert store.idempotency.get("default", "k2", since=0.0) is None
    assert await store.idempotency.purge(before=200.0) == 1


async def test_the_file_is_for_its_owner_only_and_knows_whether_it_is_new(tmp_path: Path) -> None:
    path = tmp_path / "cove.db"
    async with open_store(path) as store:
        assert store.is_new
        await store.set_meta("a", "b")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with open_store(path) as store:
        assert not store.is_new
        assert store.meta("a") == "b"
        assert store.meta("z") is None


async def test_records_without_a_later_field_can_still_be_read(store: Store) -> None:
    one = sandbox("old")
    await store.sandboxes.save(one)
    await store._writer.write(
        lambda db: db.execute("UPDATE sandboxes SET record = replace(record, '\"usage\"', '\"was_usage\"')")
    )
    assert store.sandboxes.get(one.id) == one
