"""Writing the trail: order, crashes of a write, what waits for what."""

# ruff: noqa: ANN001, ANN003, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest

from cove.core.access import LOCAL
from cove.core.audit import BACKLOG, CUT, FLOOD_PER_MINUTE, TEXT_BYTES, Audit
from cove.model.audit import AuditFilter
from cove.model.errors import CapacityExceeded
from cove.model.origin import Origin, working_for
from cove.model.sandbox import SandboxSpec
from cove.store.store import open_store

KEY = bytes(32)
BOX = "a" * 16


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "audit.db") as one:
        yield one


@pytest.fixture
async def audit(store, clock) -> Audit:
    return Audit(store, clock, KEY)


def lines(store, project: str = "p", **wanted):
    return store.audit.window(project, AuditFilter(**wanted), first=0, end=10**9, limit=100_000)


async def test_lines_stand_in_the_order_of_the_calls_and_are_numbered_without_gaps(store, audit) -> None:
    for number in range(1000):
        audit.note("exec.start", project="p" if number % 3 else "q", sandbox=BOX, data={"n": number})
    await audit.drain()
    for project, count in (("p", 666), ("q", 334)):
        found = lines(store, project)
        assert [one.seq for one in found] == list(range(count))
        assert [one.sandbox_seq for one in found] == list(range(count))
        numbers = [one.data["n"] for one in found]
        assert numbers == sorted(numbers)


async def test_a_hundred_writers_at_once_lose_and_repeat_nothing(store, audit) -> None:
    async def writer(name: int) -> None:
        for number in range(20):
            await audit.kept(audit.note("exec.start", project="p", sandbox=BOX, data={"who": name, "n": number}))

    await asyncio.gather(*(writer(name) for name in range(100)))
    found = lines(store)
    assert sorted((one.data["who"], one.data["n"]) for one in found) == [(a, b) for a in range(100) for b in range(20)]
    assert [one.seq for one in found] == list(range(2000))


async def test_a_line_says_whose_work_it_was(store, audit) -> None:
    with working_for(Origin(request_id="req_1", address="192.0.2.1", via="http", dialect="native", key="k", name="n")):
        audit.note("exec.start", project="p", sandbox=None, data={})
    audit.note("exec.start", project="p", sandbox=None, data={})
    audit.note("exec.start", project="p", sandbox=None, data={}, who=LOCAL)
    await audit.drain()
    one, own, local = (entry.actor for entry in lines(store))
    assert (one.key, one.name, one.address, one.via, one.request_id) == ("k", "n", "192.0.2.1", "http", "req_1")
    assert (own.key, own.via) == ("cove", "cove")
    assert local.key == "local"


async def test_no_value_can_break_a_line(store, audit) -> None:
    odd = {"nan": float("nan"), "big": 2**70, "text": "\ud800\0\n\u202e", "long": "é" * 9000, "ascii": "x" * 9000}
    audit.note("exec.start", project="p", sandbox=None, data=odd)
    audit.note("exec.start", project="p", sandbox=None, data={f"k{n}": n for n in range(1000)})
    await audit.drain()
    first, second = lines(store)
    assert first.data["nan"] is None
    assert first.data["big"] == str(2**70)
    assert first.data["text"] == "\\ud800\0\n\u202e"
    for name in ("long", "ascii"):
        assert len(first.data[name].encode()) <= TEXT_BYTES
        assert first.data[name].endswith(CUT)
    assert len(second.data) < 100


async def test_while_the_disk_is_full_operations_are_refused_and_nothing_is_lost(store, audit, clock) -> None:
    connection = store._writer._connection
    audit.note("exec.start", project="p", sandbox=BOX, data={"n": 0})
    await audit.drain()
    connection.execute("PRAGMA query_only = ON")
    await audit.kept(audit.note("exec.start", project="p", sandbox=BOX, data={"n": 1}))
    with pytest.raises(CapacityExceeded, match="audit trail"):
        audit.check()
    audit.note("exec.start", project="p", sandbox=BOX, data={"n": 2})
    assert [one.data["n"] for one in lines(store)] == [0]
    connection.execute("PRAGMA query_only = OFF")
    await audit.drain()
    audit.check()
    assert [one.data["n"] for one in lines(store)] == [0, 1, 2]


async def test_what_does_not_fit_into_the_backlog_is_counted_in_a_line(store, audit) -> None:
    connection = store._writer._connection
    connection.execute("PRAGMA query_only = ON")
    for number in range(BACKLOG + 7):
        audit.note("exec.start", project="p", sandbox=None, data={"n": number})
    connection.execute("PRAGMA query_only = OFF")
    await audit.drain()
    assert len(lines(store)) == BACKLOG
    (dropped,) = lines(store, "_server")
    assert (dropped.event, dropped.data) == ("audit.dropped", {"lines": 7})


async def test_a_flood_of_one_sandbox_is_bounded_and_says_how_much_is_missing(store, audit, clock) -> None:
    for _ in range(FLOOD_PER_MINUTE + 50):
        audit.note("network.blocked", project="p", sandbox=BOX, data={})
    audit.note("network.blocked", project="p", sandbox="b" * 16, data={})
    clock.advance(61)
    audit.note("network.blocked", project="p", sandbox=BOX, data={})
    await audit.drain()
    assert len(lines(store, sandbox=BOX)) == FLOOD_PER_MINUTE + 1
    assert lines(store)[-1].data == {"suppressed": 50}
    assert len(lines(store, sandbox="b" * 16)) == 1


async def test_a_trail_goes_on_where_the_last_server_left_it(tmp_path, clock) -> None:
    for run in range(3):
        async with open_store(tmp_path / "a.db") as store:
            audit = Audit(store, clock, KEY)
            audit.note("server.started", project="p", sandbox=None, data={"run": run})
            await audit.drain()
            assert [one.data["run"] for one in lines(store)] == list(range(run + 1))
            assert [one.seq for one in lines(store)] == list(range(run + 1))


async def test_a_life_is_told_in_the_transactions_of_its_rows(core) -> None:
    with working_for(Origin(via="http", key="k1", name="me", request_id="req_1")):
        made = await core.sandboxes.create(LOCAL, SandboxSpec())
        await core.sandboxes.pause(LOCAL, made.id)
    await core.sandboxes.resume(LOCAL, made.id)
    with working_for(Origin(via="http", key="k2", name="you")):
        await core.sandboxes.destroy(LOCAL, made.id)
    store = core.sandboxes._store
    found = lines(store, "default", sandbox=made.id)
    assert [one.event for one in found] == ["sandbox.created", "sandbox.paused", "sandbox.resumed", "sandbox.destroyed"]
    assert [one.actor.key for one in found] == ["k1", "k1", "cove", "k2"]
    assert found[-1].data["reason"] == "requested"
