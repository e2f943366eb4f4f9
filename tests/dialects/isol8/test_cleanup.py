"""Cleanup: what it ends, what it says, and what it leaves alone."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.real

NOTHING = {"removed": 0, "failed": 0, "errors": []}


def test_all_sessions_of_the_project_end(mine):
    for name in ("a", "b"):
        mine.run("true", session=name)
    answer = mine.http.post("/cleanup", json={"images": False})
    assert (answer.status_code, answer.json()) == (
        200,
        {"ok": True, "sessions": {"removed": 2, "failed": 0, "errors": []}, "containers": NOTHING},
    )
    assert mine.sessions() == {}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"images":true}', b'{"images":null}', b"null", b"{", b"[]"])
def test_images_are_spoken_of_unless_they_are_not_to_be(mine, body):
    answer = mine.http.post("/cleanup", content=body)
    assert answer.json() == {"ok": True, "sessions": NOTHING, "containers": NOTHING, "images": NOTHING}


def test_images_are_never_removed(server, mine):
    before = [one["name"] for one in server.client.get("/images").json()["images"]]
    mine.http.post("/cleanup", json={"images": True})
    assert [one["name"] for one in server.client.get("/images").json()["images"]] == before


def test_what_was_to_persist_is_ended_too(mine):
    mine.run("true", options={"persist": True})
    answer = mine.http.post("/cleanup", json={"images": False}).json()
    assert answer["containers"] == {"removed": 1, "failed": 0, "errors": []}


def test_other_projects_are_left_alone(mine, theirs):
    theirs.run("true", session="s")
    mine.http.post("/cleanup")
    assert list(theirs.sessions()) == ["s"]


def test_cleanups_at_the_same_time_say_the_same(mine):
    mine.run("true", session="s")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: mine.http.post("/cleanup").json()["sessions"]["removed"], range(3)))
    assert sum(found) in {1, 2, 3}
    assert mine.sessions() == {}
