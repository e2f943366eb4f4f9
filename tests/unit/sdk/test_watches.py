"""Watches: pages, streams that are followed across broken connections, and their ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import cove
from cove import aio

BOX = "/api/v1/sandboxes/sb_0000000000000000"


@pytest.fixture
def box(address: str) -> Iterator[cove.Sandbox]:
    with cove.connect(address, "k-test") as client:
        yield client.create()


def change(wire: Any, path: str, kind: str = "create", **more: Any) -> bytes:
    data: bytes = wire.event("change", kind=kind, path=path, directory=False, at="2026-01-01T00:00:00.000Z", **more)
    return data


def test_a_watch_asks_for_what_was_given_and_is_stopped_by_its_with(box: cove.Sandbox, stub: Any) -> None:
    with box.watch("/w", recursive=False, kinds=["create"], glob="*.py", keep_events=16) as watch:
        assert (watch.id, watch.info.path, watch.ended) == ("w1", "/w", None)
    sent = stub.asked("POST", f"{BOX}/watches")[0].json
    assert sent == {"path": "/w", "recursive": False, "kinds": ["create"], "glob": "*.py", "keep_events": 16}
    assert stub.asked("DELETE", f"{BOX}/watches/w1")
    box.watch("/w")
    assert stub.asked("POST", f"{BOX}/watches")[1].json == {"path": "/w", "recursive": True}
    with pytest.raises(cove.BadRequest):
        box.watch("relative")


def test_a_watch_is_followed_across_broken_connections_to_its_end(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([change(wire, "/w/a"), b"event: change\ndata: half", b"cut"])
    stub.events.append(
        [change(wire, "/w/b", "move", source="/w/a"), wire.event("error", code="server-stopping", detail="bye")]
    )
    stub.events.append([wire.event("gap", lost_events=5), change(wire, "/w/b", "remove")])
    stub.events.append([wire.event("ended", why="removed", cursor=8)])
    watch = box.watch("/w")
    seen = [(one.kind, one.path, one.source, one.lost) for one in watch]
    assert seen == [
        ("create", "/w/a", None, 0),
        ("move", "/w/b", "/w/a", 0),
        ("remove", "/w/b", None, 5),
    ]
    assert (watch.seen, watch.ended) == (8, "removed")
    assert [r.query["cursor"] for r in stub.asked("GET", f"{BOX}/watches/w1/events")] == [["0"], ["1"], ["2"], ["8"]]
    assert list(watch) == []


def test_a_watch_without_progress_is_given_up(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    watch = box.watch("/w")
    stub.fail("GET", f"{BOX}/watches/w1/events", *[wire.cut] * 20)
    with pytest.raises(cove.Unreachable):
        list(watch)
    stub.failures.clear()
    stub.events.append([wire.event("error", code="not-found", detail="no such watch", status=404)])
    with pytest.raises(cove.NotFound):
        list(watch)


def test_a_page_moves_on_and_tells_what_was_lost(box: cove.Sandbox, stub: Any) -> None:
    watch = box.watches()[0]
    (one,) = watch.changes(limit=7, wait="2s")
    assert (one.kind, one.path, one.lost, one.at and one.at.year) == ("create", "/w/f", 3, 2026)
    assert (watch.seen, watch.ended) == (4, "removed")
    assert stub.asked("GET", f"{BOX}/watches/w1/events")[0].query == {
        "cursor": ["0"],
        "limit": ["7"],
        "wait_s": ["2.0"],
    }
    assert watch.refresh().cursor == 9


def test_stopping_what_is_gone_is_no_failure(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    watch = box.watch("/w")
    stub.fail("DELETE", f"{BOX}/watches/w1", wire.problem("gone", 410), wire.problem("forbidden", 403))
    watch.stop()
    with pytest.raises(cove.Forbidden):
        watch.stop()
    assert "w1" in repr(watch)


async def test_the_awaited_twin_does_the_same(address: str, stub: Any, wire: Any) -> None:
    async with aio.connect(address, "k-test") as client:
        box = await client.create()
        stub.events.append([change(wire, "/w/a"), b"cut"])
        stub.events.append([wire.event("ended", why="moved", cursor=1)])
        async with box.watch("/w") as watch:
            assert [one.path async for one in watch] == ["/w/a"]
            assert (watch.seen, watch.ended, watch.info.id) == (1, "moved", "w1")
        assert stub.asked("DELETE", f"{BOX}/watches/w1")
        (again,) = await box.watches()
        assert [one.lost for one in await again.changes(wait=1)] == [3]
        assert (await again.refresh()).cursor == 9
        with pytest.raises(RuntimeError):
            _ = aio.Watch("sb", "w9", client=client).info
