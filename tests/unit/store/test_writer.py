# ruff: noqa: ANN201, ANN202, ARG005 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from cove.model.errors import BadRequest, CapacityExceeded, Conflict, EngineFailure
from cove.store.database import connect
from cove.store.writer import Writer


@pytest.fixture
async def writer(tmp_path: Path):
    connection = connect(tmp_path / "w.db", busy_timeout_s=0.05)
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)")
    one = Writer(connection)
    one.start()
    yield one
    await one.close()


def insert(value: int):
    return lambda db: db.execute("INSERT INTO t VALUES (?) RETURNING x", (value,)).fetchone()[0]


def rows(tmp_path: Path) -> list[int]:
    connection = sqlite3.connect(tmp_path / "w.db")
    try:
        return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY x")]
    finally:
        connection.close()


async def test_a_write_is_committed_when_its_caller_goes_on(writer: Writer, tmp_path: Path) -> None:
    assert await writer.write(insert(1)) == 1
    assert rows(tmp_path) == [1]


async def test_writes_that_wait_together_share_a_commit(writer: Writer, tmp_path: Path) -> None:
    await asyncio.gather(*(writer.write(insert(number)) for number in range(200)))
    assert len(rows(tmp_path)) == 200
    stats = writer.stats()
    assert stats.writes == 200
    assert stats.commits < 100


async def test_a_failed_write_fails_only_its_caller(writer: Writer, tmp_path: Path) -> None:
    await writer.write(insert(5))
    outcomes = await asyncio.gather(
        writer.write(insert(4)), writer.write(insert(5)), writer.write(insert(6)), return_exceptions=True
    )
    assert outcomes[0] == 4
    assert isinstance(outcomes[1], Conflict)
    assert outcomes[2] == 6
    assert rows(tmp_path) == [4, 5, 6]


async def test_what_a_failed_write_did_before_it_failed_is_undone(writer: Writer, tmp_path: Path) -> None:
    def half(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t VALUES (1)")
        raise BadRequest("no")

    with pytest.raises(BadRequest):
        await writer.write(half)
    assert rows(tmp_path) == []


async def test_a_bug_in_one_write_stops_no_other(writer: Writer, tmp_path: Path) -> None:
    def bug(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t VALUES (1)")
        raise ZeroDivisionError

    outcomes = await asyncio.gather(writer.write(bug), writer.write(insert(2)), return_exceptions=True)
    assert isinstance(outcomes[0], EngineFailure)
    assert rows(tmp_path) == [2]


async def test_a_cancelled_caller_leaves_the_writer_working(writer: Writer) -> None:
    task = asyncio.create_task(writer.write(insert(1)))
    await asyncio.sleep(0)
    task.cancel()
    assert await writer.write(insert(2)) == 2


async def test_a_locked_database_is_an_engine_failure_and_recovers(writer: Writer, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "w.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(EngineFailure, match="cannot be written"):
        await writer.write(insert(1))
    other.execute("ROLLBACK")
    other.close()
    assert await writer.write(insert(1)) == 1


async def test_a_full_disk_is_told_in_words_and_recovers(writer: Writer, tmp_path: Path) -> None:
    def limit(pages: int):
        return lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    await writer.write(insert(1))
    await writer.write(limit(3))
    with pytest.raises(CapacityExceeded, match="is full") as caught:
        await writer.write(lambda db: db.execute("CREATE TABLE big AS SELECT zeroblob(1000000) AS b").rowcount)
    assert caught.value.retry_after_s is not None
    await writer.write(limit(100_000))
    assert await writer.write(insert(2)) == 2
    assert rows(tmp_path) == [1, 2]


async def test_a_full_disk_spares_the_neighbours_that_fit(writer: Writer, tmp_path: Path) -> None:
    await writer.write(lambda db: db.execute("PRAGMA max_page_count = 3").fetchone())

    def big(db: sqlite3.Connection) -> int:
        return db.execute("CREATE TABLE big AS SELECT zeroblob(1000000) AS b").rowcount

    outcomes = await asyncio.gather(*(writer.write(w) for w in (insert(1), big, insert(2))), return_exceptions=True)
    told = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    assert told == rows(tmp_path), "what was answered as written is there, and nothing else"
    assert await writer.write(insert(3)) == 3


async def test_a_read_only_database_is_an_engine_failure(writer: Writer) -> None:
    await writer.write(lambda db: None)
    writer._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(EngineFailure, match="cannot be written"):
        await writer.write(insert(1))
    writer._connection.execute("PRAGMA query_only = OFF")
    assert await writer.write(insert(1)) == 1


async def test_a_durable_write_is_synced_and_the_next_is_not(writer: Writer) -> None:
    def level(db: sqlite3.Connection) -> int:
        return db.execute("PRAGMA synchronous").fetchone()[0]

    assert await writer.write(level, durable=True) == 2
    assert await writer.write(level) == 1


async def test_what_is_queued_is_written_before_it_closes(tmp_path: Path) -> None:
    connection = connect(tmp_path / "w.db")
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)")
    writer = Writer(connection)
    writer.start()
    tasks = [asyncio.create_task(writer.write(insert(number))) for number in range(50)]
    await asyncio.sleep(0)
    await writer.close()
    assert len(rows(tmp_path)) == 50
    await asyncio.gather(*tasks)


async def test_a_closed_writer_refuses(tmp_path: Path) -> None:
    writer = Writer(connect(tmp_path / "w.db"))
    writer.start()
    await writer.close()
    with pytest.raises(EngineFailure, match="closed"):
        await writer.write(lambda db: None)
