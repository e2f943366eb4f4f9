"""Snapshots, restores, forks and rollbacks over the wire, with a driver that keeps memory and one that keeps files."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined
from __future__ import annotations

import re
import time

from snapshots_support import SMALL, exported, took


def ran(server, sandbox, command):
    answer = server.client.post(f"/sandboxes/{sandbox['id']}/exec", json={"command": command})
    assert answer.status_code == 200, answer.text
    return answer.json()["stdout"]


def keeps_memory(driver):
    return driver != "fake"


def is_told(view, driver):
    """Whether it says if memory was kept, and if not why."""
    if keeps_memory(driver):
        return view["memory"] is True and view["reason"] is None
    return view["memory"] is False and "fake driver" in view["reason"]


def test_a_snapshot_says_what_it_holds(server, driver, source):
    answer = server.client.post(f"/sandboxes/{source['id']}/snapshots", json={"name": "said", "tags": {"a": "b"}})
    made = answer.json()
    assert answer.status_code == 201
    assert re.fullmatch(r"sn_[0-9a-f]{16}", made["id"])
    assert answer.headers["location"] == f"/api/v1/snapshots/{made['id']}"
    assert is_told(made, driver)
    assert (made["state"], made["failure"], made["name"], made["tags"]) == ("ready", None, "said", {"a": "b"})
    assert (made["sandbox"], made["sandbox_name"], made["parent"]) == (source["id"], source["name"], None)
    for same in ("image", "image_digest", "driver", "cpus", "memory_mib", "disk_mib", "metadata", "idle_timeout_s"):
        assert made[same] == source[same], same
    assert made["took_ms"] > 0
    assert 0 < made["stopped_ms"] <= made["took_ms"]
    assert (made["memory_bytes"] > 0) == made["memory"]
    assert made["imported"] is False
    assert server.client.get("/snapshots/said").json() == server.client.get(f"/snapshots/{made['id']}").json() == made
    assert server.client.get(f"/sandboxes/{source['id']}").json()["state"] == "running"


def test_files_alone_can_be_asked_for_and_memory_insisted_on(server, driver, source):
    made = took(server, source, memory=False)
    assert (made["memory"], made["memory_bytes"], made["processes"] >= 0) == (False, 0, True)
    assert "asked" in made["reason"]
    answer = server.client.post(f"/sandboxes/{source['id']}/snapshots", json={"memory": True})
    if keeps_memory(driver):
        assert answer.json()["memory"] is True
    else:
        assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (501, "unsupported", "memory")
    wanted = {"memory": True}
    refused = server.client.post(f"/snapshots/{made['id']}/restore", json=wanted)
    assert (refused.status_code, refused.json()["field"]) in {(501, "memory"), (409, "memory")}


def test_a_paused_sandbox_stays_paused_under_a_snapshot(server, driver, source):
    path = f"/sandboxes/{source['id']}"
    assert server.client.post(f"{path}/pause").json()["state"] == "paused"
    assert is_told(took(server, source), driver)
    assert server.client.get(path).json()["state"] == "paused"


def test_restoring_makes_another_sandbox(server, driver, source):
    ran(server, source, "echo kept >file; sync")
    made = took(server, source, name="seed", tags={"n": "1"})
    wishes = {"name": "seedling", "env": {"A": "1"}, "memory_mib": 96, "metadata": {"x": "y"}, "timeout_s": 3600}
    answer = server.client.post("/snapshots/seed/restore", json=wishes)
    other = answer.json()
    assert (answer.status_code, other["state"], other["name"]) == (201, "running", "seedling")
    assert answer.headers["location"] == f"/api/v1/sandboxes/{other['id']}"
    assert other["id"] != source["id"]
    assert other["came_from"]["snapshot"] == made["id"]
    assert other["came_from"]["sandbox"] == source["id"]
    assert is_told(other["came_from"], driver)
    assert (other["memory_mib"], other["disk_mib"], other["cpus"]) == (96, 64, 0.5)
    assert (other["metadata"], other["kept"]) == ({"x": "y"}, None)
    assert other["expires_at"] is not None
    assert ran(server, other, "echo $A") == "1\n"
    if keeps_memory(driver):
        assert ran(server, other, "cat file; hostname") == "kept\nseedling\n"
    again = took(server, other)
    assert again["parent"] == made["id"]
    server.client.delete(f"/snapshots/{again['id']}")
    assert server.client.delete(f"/sandboxes/{source['id']}").status_code == 200
    later = server.client.post("/snapshots/seed/restore").json()  # its source is gone
    assert (later["state"], later["metadata"], later["expires_at"]) == ("running", {"of": "source"}, None)


def test_forks_are_all_there(server, driver, source):
    answer = server.client.post(f"/sandboxes/{source['id']}/fork", json={"count": 3, "name": "kid", "env": {"A": "1"}})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert is_told(made, driver)
    assert [one["name"] for one in made["sandboxes"]] == ["kid-1", "kid-2", "kid-3"]
    assert {one["state"] for one in made["sandboxes"]} == {"running"}
    assert len({one["id"] for one in made["sandboxes"]} | {source["id"]}) == 4
    for one in made["sandboxes"]:
        assert (one["came_from"]["snapshot"], one["came_from"]["sandbox"]) == (None, source["id"])
        assert ran(server, one, "echo $A") == "1\n"
    taken = server.client.post(f"/sandboxes/{source['id']}/fork", json={"count": 2, "name": "kid"})
    assert (taken.status_code, taken.json()["field"]) == (409, "name")
    assert len(server.client.post(f"/sandboxes/{source['id']}/fork").json()["sandboxes"]) == 1
    assert server.client.get("/snapshots", params={"sandbox": source["id"]}).json()["snapshots"] == []


def test_a_rollback_is_in_place(server, driver, source):
    ran(server, source, "echo before >file")
    made = took(server, source, name="point")
    ran(server, source, "echo after >file")
    answer = server.client.post(f"/sandboxes/{source['id']}/rollback", json={"snapshot": "point"})
    back = answer.json()
    assert (answer.status_code, back["id"], back["name"]) == (200, source["id"], source["name"])
    assert back["state"] == "running"
    if keeps_memory(driver):
        assert ran(server, source, "cat file") == "before\n"
    assert server.client.get(f"/snapshots/{made['id']}").json()["state"] == "ready"


def test_one_key_makes_one_of_each(server, source):
    head = {"Idempotency-Key": f"once-{time.monotonic_ns()}"}
    first, again = took(server, source, head, tags={"a": "1"}), took(server, source, head, tags={"a": "1"})
    assert first == again
    other = server.client.post(f"/sandboxes/{source['id']}/snapshots", json={}, headers=head)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency-conflict")
    for path, found in (
        (f"/snapshots/{first['id']}/restore", lambda body: body["id"]),
        (f"/sandboxes/{source['id']}/fork", lambda body: [one["id"] for one in body["sandboxes"]]),
    ):
        head = {"Idempotency-Key": f"once-{time.monotonic_ns()}"}
        answers = [server.client.post(path, json={}, headers=head) for _ in range(2)]
        assert [one.status_code for one in answers] == [201, 201], answers[1].text
        assert found(answers[0].json()) == found(answers[1].json())
        other = server.client.post(path, json={"env": {"A": "2"}}, headers=head)
        assert (other.status_code, other.json()["code"]) == (409, "idempotency-conflict"), path
        assert server.client.post(path, headers={"Idempotency-Key": "a b"}).json()["field"] == "Idempotency-Key"


def test_a_hibernated_sandbox_says_what_it_kept_and_goes_on(server, driver, source):
    path = f"/sandboxes/{source['id']}"
    ran(server, source, "echo kept >file")
    for _ in range(2):  # again: the same answer
        answer = server.client.post(f"{path}/hibernate")
        view = answer.json()
        assert (answer.status_code, view["state"]) == (200, "hibernated"), answer.text
        assert is_told(view["kept"], driver)
        assert (view["kept_bytes"] > 0) == view["kept"]["memory"]
    assert source["id"] in [one["id"] for one in server.client.get("/sandboxes?state=hibernated").json()["sandboxes"]]
    assert server.client.get(path).json()["state"] == "hibernated"
    made = took(server, source)
    assert is_told(made, driver)
    for _ in range(2):
        answer = server.client.post(f"{path}/resume")
        assert (answer.status_code, answer.json()["state"], answer.json()["id"]) == (200, "running", source["id"])
    if keeps_memory(driver):
        assert ran(server, source, "cat file") == "kept\n"
    assert server.client.post(f"{path}/hibernate", json={"memory": False}).json()["kept"]["memory"] is False
    assert "0\n" in ran(server, source, "echo 0")  # work resumes it
    assert server.client.get(path).json()["state"] == "running"
    refused = server.client.post(f"{path}/hibernate", json={"memory": 1})
    assert (refused.status_code, refused.json()["field"]) == (400, "memory")
    if not keeps_memory(driver):
        refused = server.client.post(f"{path}/hibernate", json={"memory": True})
        assert (refused.status_code, refused.json()["field"]) == (501, "memory")
        assert server.client.get(path).json()["state"] == "running"


def test_what_does_not_resume_by_itself_refuses_work(server, driver):
    made = server.sandbox(auto_resume=False, **SMALL)
    path = f"/sandboxes/{made['id']}"
    assert made["auto_resume"] is False
    for verb, word in (("pause", "paused"), ("hibernate", "hibernated")):
        assert server.client.post(f"{path}/{verb}").json()["state"] == word
        for method, below, body in (
            ("POST", "/exec", {"command": "true"}),
            ("GET", "/files?path=/", None),
            ("POST", "/terminals", {}),
        ):
            answer = server.client.request(method, path + below, json=body)
            found = answer.json()
            assert (answer.status_code, found["code"], found["field"]) == (409, "conflict", "state"), below
            assert word in found["detail"]
            assert "cove resume" in found["hint"]
        assert server.client.get(path).json()["state"] == word
        assert server.client.post(f"{path}/resume").json()["state"] == "running"
    assert server.client.patch(path, json={"auto_resume": True}).json()["auto_resume"] is True
    server.client.post(f"{path}/pause")
    assert server.client.post(f"{path}/exec", json={"command": "true"}).status_code == 200
    changed = server.client.patch(path, json={"idle_action": "hibernate", "idle_timeout_s": 1})
    assert changed.json()["idle_action"] == "hibernate"
    deadline = time.monotonic() + 60
    while (found := server.client.get(path).json())["state"] == "running":
        assert time.monotonic() < deadline, "its idle timer did nothing"
        time.sleep(0.1)
    # A timer must not lose what somebody has in memory: without it the sandbox is paused, and says so.
    while keeps_memory(driver) and found["state"] != "hibernated":
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
        found = server.client.get(path).json()
    if not keeps_memory(driver):
        assert (found["state"], "fake driver" in found["state_note"]) == ("paused", True)
    server.client.delete(path)


def test_a_snapshot_leaves_as_a_file_and_comes_back(server, driver, source):
    ran(server, source, "echo kept >file")
    made = took(server, source, name="travels", tags={"a": "b"})
    answer = exported(server, "travels")
    assert answer.headers["content-type"] == "application/zstd"
    assert answer.headers["content-disposition"] == 'attachment; filename="travels.cove"'
    assert answer.content[:4] == bytes.fromhex("28b52ffd")  # RFC 8878, section 3.1.1
    back = server.client.post("/snapshots/import?name=again", content=answer.content)
    found = back.json()
    assert back.status_code == 201, back.text
    assert back.headers["location"] == f"/api/v1/snapshots/{found['id']}"
    assert (found["name"], found["imported"], found["state"], found["tags"]) == ("again", True, "ready", {"a": "b"})
    assert (found["sandbox"], found["memory"], found["image_digest"]) == (
        made["sandbox"], made["memory"], made["image_digest"],
    )  # fmt: skip
    other = server.client.post("/snapshots/again/restore").json()
    assert (other["state"], other["came_from"]["memory"]) == ("running", made["memory"])
    if keeps_memory(driver):
        assert ran(server, other, "cat file") == "kept\n"
    taken = server.client.post("/snapshots/import?name=again", content=answer.content)
    assert (taken.status_code, taken.json()["field"]) == (409, "name")
