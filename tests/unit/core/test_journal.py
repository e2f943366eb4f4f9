"""The state database fails under a running core: nothing is lost, the server goes on, and it recovers."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.core.audit import Audit
from cove.core.journal import RETRY_S, StoreJournal
from cove.core.metering import Metering, MeteringSettings
from cove.model.errors import CapacityExceeded, CoveError, EngineFailure
from cove.model.execs import ExecSpec
from cove.model.request import SandboxFilter
from cove.model.sandbox import IdleAction, Limits, Sandbox, SandboxSpec
from cove.model.state import State
from cove.store.store import open_store


@pytest.fixture
def break_store(core):
    """Makes every write fail in one of three ways, and undoes it."""
    connection = core.sandboxes._store._writer._connection

    def apply(how: str) -> None:
        if how == "full":
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
            filler = "UPDATE meta SET value = value || value"
            connection.execute("INSERT INTO meta VALUES ('filler', 'x')")
            try:
                while True:
                    connection.execute(filler)
            except sqlite3.OperationalError:
                pass
        elif how == "read-only":
            connection.execute("PRAGMA query_only = ON")
        elif how == "mended":
            connection.execute("PRAGMA query_only = OFF")
            connection.execute("PRAGMA max_page_count = 1000000")

    return apply


@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_a_store_that_cannot_be_written_refuses_creates_and_lets_the_rest_go_on(  # noqa: PLR0913, PLR0917 - fixtures
    core, driver, clock, eventually, break_store, how: str
) -> None:
    kept = [await core.sandboxes.create(LOCAL, SandboxSpec(metadata={"k": "v" * 900})) for _ in range(3)]
    break_store(how)
    refused = 0
    for _ in range(40):
        try:
            await core.sandboxes.create(LOCAL, SandboxSpec(metadata={"k": "v" * 1000}))
        except (CapacityExceeded, EngineFailure):
            refused += 1
    assert refused
    with pytest.raises(CapacityExceeded, match="audit trail"):  # noqa: PT012 - which one it is, is not known
        for _ in range(100):  # what would go unrecorded is refused, from the first line on that cannot be written
            await core.execs.run(LOCAL, kept[0].id, ExecSpec(shell="true"))
    for one in kept:
        assert core.sandboxes.get(LOCAL, one.id).state is State.RUNNING
    ended = await core.sandboxes.destroy(LOCAL, kept[0].id)
    assert ended.state is State.TERMINATED
    assert driver.boxes[kept[0].id].is_destroyed
    assert core.sandboxes.get(LOCAL, kept[0].id) == ended, "told right although it is not written yet"

    break_store("mended")
    clock.advance(RETRY_S + 0.1)
    states = SandboxFilter(states=frozenset({State.TERMINATED}))
    await eventually(lambda: core.sandboxes._store.sandboxes.get(ended.id) == ended)
    assert ended in core.sandboxes.list(LOCAL, states).sandboxes
    assert (await core.execs.run(LOCAL, kept[1].id, ExecSpec(shell="true"))).exit.code == 0
    assert (await core.sandboxes.create(LOCAL, SandboxSpec())).state is State.RUNNING
    living = {one.id for one in core.sandboxes.list(LOCAL, limit=1000).sandboxes if one.state is State.RUNNING}
    assert living == set(driver.living())


async def test_what_was_not_written_when_the_server_stops_is_tried_once_more(opened) -> None:
    async with opened() as core:
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
        connection = core.sandboxes._store._writer._connection
        connection.execute("PRAGMA query_only = ON")
        await core.sandboxes.destroy(LOCAL, made.id)
        connection.execute("PRAGMA query_only = OFF")
    async with opened() as core:
        assert core.sandboxes.get(LOCAL, made.id).state is State.TERMINATED


async def test_a_store_that_cannot_be_read_is_an_error_and_not_a_crash(core) -> None:
    core.sandboxes._store._reader.close()
    with pytest.raises(CoveError):
        core.sandboxes.list(LOCAL)


async def test_a_retry_never_overwrites_what_was_written_since(tmp_path, clock) -> None:
    async with open_store(tmp_path / "j.db") as store:
        journal = StoreJournal(store, clock, Audit(store, clock, bytes(32)), Metering(store, clock, MeteringSettings()))
        old = sandbox()
        await store.sandboxes.save(old)
        store._writer._connection.execute("PRAGMA query_only = ON")
        await journal.write_surely(replace(old, name="older"))
        store._writer._connection.execute("PRAGMA query_only = OFF")
        newer = replace(old, name="newer")
        await asyncio.gather(journal.write(newer), journal.retry())
        assert store.sandboxes.get(old.id) == newer
        assert journal.unsaved(old.id) is None


async def test_a_failed_write_keeps_what_was_left_over(tmp_path, clock) -> None:
    async with open_store(tmp_path / "j.db") as store:
        journal = StoreJournal(store, clock, Audit(store, clock, bytes(32)), Metering(store, clock, MeteringSettings()))
        store._writer._connection.execute("PRAGMA query_only = ON")
        left = sandbox()
        await journal.write_surely(left)
        with pytest.raises(EngineFailure):
            await journal.write(replace(left, name="refused"))
        assert journal.unsaved(left.id) == left
        store._writer._connection.execute("PRAGMA query_only = OFF")
        await journal.retry()
        assert store.sandboxes.get(left.id) == left


def sandbox() -> Sandbox:
    return Sandbox(
        id="a" * 16,
        project="default",
        name="one",
        state=State.RUNNING,
        image="base",
        driver="stub",
        limits=Limits(),
        metadata={},
        isolation=None,
        dialect="native",
        created_by="local",
        created_at=0.0,
        expires_at=None,
        idle_timeout_s=None,
        idle_action=IdleAction.NONE,
        last_active_at=0.0,
    )
