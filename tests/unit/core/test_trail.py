"""Reading the trail, and taking from its beginning."""

# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import hmac

import pytest

from cove.core.access import LOCAL
from cove.core.audit import Audit
from cove.core.trail import Trail
from cove.engine.clock import ManualClock
from cove.model.access import Project
from cove.model.audit import AuditFilter
from cove.model.auditchain import project_key, verify
from cove.model.errors import CapacityExceeded, EngineFailure, NotFound
from cove.store.store import open_store

KEY = bytes(32)
A, B = "a" * 16, "b" * 16
DAY = 86400.0


class Nobody:
    """A directory that knows no sandbox: only the trail remembers."""

    def known(self, *_):
        raise NotFound("no such sandbox")


def trail_of(store, clock, key: bytes = KEY) -> tuple[Audit, Trail]:
    audit = Audit(store, clock, key)
    return audit, Trail(audit, store, Nobody(), clock)  # type: ignore[arg-type]


async def exported(trail: Trail, **query) -> list[bytes]:
    async with trail.export(LOCAL, **query) as lines:
        return [line async for line in lines]


def checked(lines: list[bytes], key: bytes = KEY):
    return verify(lines, project_key(key, "default"))


async def test_retention_takes_from_the_beginning_and_what_is_left_verifies(tmp_path) -> None:
    clock = ManualClock()
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, clock)
        for number in range(1500):
            audit.note("exec.start", project="default", sandbox=(A, B)[number % 2], data={"n": number})
        audit.note("sandbox.destroyed", project="default", sandbox=A, data={})
        await audit.drain()
        early = checked(await exported(trail))
        clock.advance(500 * DAY)
        for number in range(10):
            audit.note("exec.start", project="default", sandbox=B, data={"n": number})
        await audit.drain()
        await trail.retain(400 * DAY)
        whole = checked(await exported(trail))
        assert whole.is_good, whole
        assert (whole.count, whole.first_seq, whole.reason) == (10, 1501, "retention")
        box = checked(await exported(trail, sandbox=B))
        assert box.is_good, box
        assert (box.count, box.first_seq) == (10, 750)
        assert verify(await exported(trail), project_key(KEY, "default"), earlier=early).is_good
        assert store.audit.project_of(A) is None
        await trail.retain(400 * DAY)
        assert checked(await exported(trail)).count == 10


async def test_all_can_be_past_its_time(tmp_path) -> None:
    clock = ManualClock()
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, clock)
        audit.note("exec.start", project="default", sandbox=A, data={})
        await audit.drain()
        clock.advance(500 * DAY)
        await trail.retain(400 * DAY)
        verdict = checked(await exported(trail))
        assert verdict.is_good
        assert (verdict.count, verdict.first_seq) == (0, 1)
        audit.note("exec.start", project="default", sandbox=A, data={})
        await audit.drain()
        assert checked(await exported(trail)).count == 1
        assert checked(await exported(trail, sandbox=A)).first_seq == 1


async def test_a_line_after_a_clock_that_went_back_is_not_removed_out_of_order(tmp_path) -> None:
    clock = ManualClock()
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, clock)
        clock.advance(500 * DAY)
        audit.note("exec.start", project="default", sandbox=A, data={"n": 0})
        clock.advance(-450 * DAY)
        audit.note("exec.start", project="default", sandbox=A, data={"n": 1})
        clock.advance(450 * DAY)
        await audit.drain()
        await trail.retain(400 * DAY)
        verdict = checked(await exported(trail))
        assert verdict.is_good
        assert verdict.count == 2


async def test_a_lost_key_begins_a_new_chain_for_the_verifier_and_says_so(tmp_path) -> None:
    clock = ManualClock()
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, clock)
        await audit.adopt_key(store)
        audit.note("exec.start", project="default", sandbox=A, data={"n": 0})
        await audit.drain()
        other = bytes([1]) * 32
        audit, trail = trail_of(store, clock, other)
        await audit.adopt_key(store)
        audit.note("exec.start", project="default", sandbox=A, data={"n": 1})
        await audit.drain()
        verdict = checked(await exported(trail), other)
        assert verdict.is_good, verdict
        assert (verdict.count, verdict.first_seq, verdict.reason) == (1, 1, "key")
        assert checked(await exported(trail, sandbox=A), other).is_good
        page = await trail.page(LOCAL, AuditFilter(sandbox=A))
        assert [one.data["n"] for one in page.entries] == [0, 1], "older lines can still be read"
        (told,) = (await trail.page(LOCAL, project="_server")).entries
        assert told.event == "audit.key_changed"


async def test_what_was_changed_in_the_database_is_found(tmp_path) -> None:
    clock = ManualClock()
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, clock)
        for number in range(10):
            audit.note("exec.start", project="default", sandbox=A, data={"command": "true", "n": number})
        await audit.drain()
        db = store._writer._connection
        db.execute('UPDATE audit SET data = \'{"command":"false","n":4}\' WHERE seq = 4')
        assert checked(await exported(trail)).line == 5
        assert checked(await exported(trail, sandbox=A)).line == 6


async def test_a_filter_that_finds_nothing_in_a_long_chain_lets_the_loop_turn(tmp_path) -> None:
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, ManualClock())
        for number in range(12_000):
            audit.note("exec.start", project="default", sandbox=None, data={"n": number})
        await audit.drain()
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            other = tasks.create_task(turn())
            assert not (await trail.page(LOCAL, AuditFilter(event="nothing"))).entries
            assert turns >= 3
            other.cancel()
        found = await trail.page(LOCAL, AuditFilter(event="exec."), limit=2, cursor=11_000)
        assert [one.seq for one in found.entries] == [11_001, 11_002]


async def test_no_read_looks_at_more_lines_than_a_window_of_one_sandbox_either(tmp_path, monkeypatch) -> None:
    """A sandbox may have made a million lines, and a filter may match none of them."""
    monkeypatch.setattr("cove.core.trail.WINDOW", 16)
    monkeypatch.setattr("cove.core.trail.PIECE", 3)
    clock = ManualClock()
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, clock)
        for number in range(100):
            audit.note("exec.start", project="default", sandbox=(A, B)[number % 2], data={"n": number})
        audit.note("sandbox.destroyed", project="default", sandbox=A, data={})
        await audit.drain()
        looks: list[int] = []
        window, last = store.audit.window, store.audit.last

        def looked(read):
            def look(project, wanted, *, first, end, limit):
                if limit > 1:
                    looks.append(end - first)
                    assert limit <= 3
                return read(project, wanted, first=first, end=end, limit=limit)

            return look

        monkeypatch.setattr(store.audit, "window", looked(window))
        monkeypatch.setattr(store.audit, "last", looked(last))
        wanted = AuditFilter(sandbox=A, event="sandbox.")
        for newest in (False, True):
            page = await trail.page(LOCAL, wanted, newest=newest)
            assert [one.event for one in page.entries] == ["sandbox.destroyed"]
        for limit in (1, 2, 3, 7, 51, 60):
            for newest in (False, True):
                read: list[int] = []
                cursor = None
                while not read or cursor is not None:
                    page = await trail.page(LOCAL, newest=newest, limit=limit, cursor=cursor)
                    read += [one.seq for one in page.entries]
                    cursor = page.cursor
                assert read == list(range(101))[:: -1 if newest else 1]
        every = await trail.page(LOCAL, AuditFilter(sandbox=A), newest=True, limit=10)
        assert [one.data.get("n") for one in every.entries] == [None, *range(98, 80, -2)]
        assert checked(await exported(trail, sandbox=A)).count == 51
        assert max(looks) <= 16


async def test_the_key_is_not_shown_before_that_is_on_record(tmp_path) -> None:
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, ManualClock())
        await store.projects.ensure(Project(id="default", created_at=0.0))
        assert (await trail.key(LOCAL))[1] == project_key(KEY, "default").hex()
        assert [one.event for one in (await trail.page(LOCAL)).entries] == ["audit.key_shown"]
        audit._failure = CapacityExceeded("full")
        with pytest.raises(CapacityExceeded):
            await trail.key(LOCAL)


async def test_a_sandboxs_lines_are_told_in_another_form_once_they_are_verified(tmp_path) -> None:
    signed: list[str] = []

    def telling(sign):
        signed.append(sign("text"))
        return lambda entry: b"" if entry.data["n"] == 1 else b"%d" % entry.data["n"]

    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, ManualClock())
        for number, sandbox in enumerate((A, A, B, A)):
            audit.note("exec.start", project="default", sandbox=sandbox, data={"n": number})
        async with trail.retold(LOCAL, A, telling) as lines:  # which waits for what is not written yet
            assert [line async for line in lines] == [b"0", b"3"]
        secret = project_key(KEY, "default").hex().encode()
        assert signed == [hmac.new(secret, b"text", "sha256").hexdigest()]
        store._writer._connection.execute("UPDATE audit SET data = '{\"n\":7}' WHERE seq = 3")
        with pytest.raises(EngineFailure):
            async with trail.retold(LOCAL, A, telling) as lines:
                assert [line async for line in lines] == []


async def test_a_trail_whose_beginning_is_past_its_time_is_told_from_there(tmp_path) -> None:
    clock = ManualClock()
    async with open_store(tmp_path / "a.db") as store:
        audit, trail = trail_of(store, clock)
        for number in range(4):
            audit.note("exec.start", project="default", sandbox=A, data={"n": number})
            await audit.drain()
            clock.advance(DAY)
        await trail.retain(2.5 * DAY)
        async with trail.retold(LOCAL, A, lambda _: lambda entry: b"%d" % entry.data["n"]) as lines:
            assert [line async for line in lines] == [b"2", b"3"]
