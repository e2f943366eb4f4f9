# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined
"""`cove watch`: a line for each event, JSON, and how it ends."""

from __future__ import annotations

import pytest

WATCHES = "/sandboxes/brave-otter/watches"
AT = "2026-01-01T00:00:00.000Z"


def change(kind: str, path: str, **more: object) -> tuple[str, dict[str, object]]:
    return "change", {"kind": kind, "path": path, "directory": False, "at": AT, **more}


@pytest.fixture
def watched(stub):
    def watched(*events: tuple[str, dict[str, object]]) -> None:
        stub.extra["POST", WATCHES] = {"id": "w1", "path": "/w"}
        stub.extra["GET", f"{WATCHES}/w1/events"] = stub.events(*events)
        stub.extra["DELETE", f"{WATCHES}/w1"] = {}

    return watched


def test_each_event_is_a_line_and_the_watch_is_stopped(cove, stub, watched) -> None:
    watched(
        change("create", "/w/d", directory=True),
        ("gap", {"lost_events": 3}),
        change("move", "/w/b\x1b[31m\n", source="/w/a"),
        change("overflow", "/w", directory=True),
        ("ended", {"why": "stopped", "cursor": 6}),
    )
    ran = cove("watch", "brave-otter", "/w", "--kind", "create", "--kind", "move", "--glob", "*", "--flat")
    assert ran.code == 0
    assert ran.out.splitlines() == ["create     /w/d/", "move       /w/a -> /w/b[31m "]
    assert "3 events before this are no longer kept" in ran.err
    assert "some events were lost" in ran.err
    sent = next(body for method, path, body in stub.seen if method == "POST" and path.endswith("/watches"))
    assert sent == {"path": "/w", "recursive": False, "kinds": ["create", "move"], "glob": "*"}
    assert ("DELETE", f"/api/v1{WATCHES}/w1", None) in stub.seen


def test_with_json_every_event_is_an_object(cove, watched) -> None:
    watched(change("modify", "/w/f"), change("overflow", "/w"), ("ended", {"why": "stopped", "cursor": 2}))
    ran = cove("watch", "brave-otter", "/w", "--json")
    assert [one["kind"] for one in ran.objects] == ["modify", "overflow"]
    assert ran.objects[0] == {
        "kind": "modify",
        "path": "/w/f",
        "source": None,
        "directory": False,
        "at": "2026-01-01T00:00:00+00:00",
        "lost": 0,
    }
    assert cove("watch", "brave-otter", "/w", "--json", "kind,path").objects[0] == {"kind": "modify", "path": "/w/f"}


@pytest.mark.parametrize("why", ["removed", "moved", "limit", "sandbox-gone"])
def test_a_watch_that_ends_by_itself_is_a_failure_that_says_why(cove, watched, why: str) -> None:
    watched(("ended", {"why": why, "cursor": 0}))
    ran = cove("watch", "brave-otter", "/w", "--json")
    assert (ran.code, ran.error["code"]) == (125, f"watch-{why}")


def test_a_kind_that_is_none_and_a_path_that_is_relative_are_wrong_usage(cove, watched) -> None:
    watched()
    assert cove("watch", "brave-otter", "/w", "--kind", "open").code == 2
    assert cove("watch", "brave-otter", "w").code == 2
