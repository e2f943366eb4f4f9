# ruff: noqa: ANN001, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import re
import time

import pytest


def test_create_answers_with_location_id_and_times(server):
    answer = server.client.post("/sandboxes", json={"metadata": {"a": "b"}})
    found = answer.json()
    assert answer.status_code == 201
    assert re.fullmatch(r"sb_[0-9a-f]{16}", found["id"])
    assert answer.headers["location"] == f"/api/v1/sandboxes/{found['id']}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["created_at"])
    assert (found["state"], found["cpus"], found["memory_mib"], found["metadata"]) == ("running", 1.0, 512, {"a": "b"})
    assert found["isolation"]["driver"]
    assert answer.headers["x-request-id"]
    assert "total;dur=" in answer.headers["server-timing"]


def test_an_empty_body_makes_a_default_sandbox(server):
    assert server.client.post("/sandboxes").status_code == 201


def test_a_sandbox_is_found_by_name_until_it_ends(server):
    made = server.sandbox(name="by-name")
    assert server.client.get("/sandboxes/by-name").json()["id"] == made["id"]
    assert server.client.post("/sandboxes", json={"name": "by-name"}).json()["code"] == "conflict"
    ended = server.client.delete("/sandboxes/by-name").json()
    assert (ended["state"], ended["end_reason"]) == ("terminated", "requested")
    assert server.client.delete(f"/sandboxes/{made['id']}").json() == ended
    assert server.client.get("/sandboxes/by-name").status_code == 404
    assert server.client.get(f"/sandboxes/{made['id']}").json()["state"] == "terminated"
    gone = server.client.post(f"/sandboxes/{made['id']}/exec", json={"command": "true"})
    assert (gone.status_code, gone.json()["code"]) == (410, "gone")


def test_one_idempotency_key_makes_one_sandbox(server):
    head = {"Idempotency-Key": "once"}
    first = server.client.post("/sandboxes", json={"metadata": {"n": "1"}}, headers=head)
    again = server.client.post("/sandboxes", json={"metadata": {"n": "1"}}, headers=head)
    other = server.client.post("/sandboxes", json={"metadata": {"n": "2"}}, headers=head)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency-conflict")
    for bad in ("", "x" * 256, "a b"):
        refused = server.client.post("/sandboxes", headers={"Idempotency-Key": bad})
        assert (refused.status_code, refused.json()["field"]) == (400, "Idempotency-Key"), bad


def test_list_filters_and_pages(server):
    made = [server.sandbox(metadata={"group": "pages", "n": str(n)})["id"] for n in range(3)]
    first = server.client.get("/sandboxes", params={"metadata.group": "pages", "limit": 2}).json()
    rest = server.client.get(
        "/sandboxes", params={"metadata.group": "pages", "limit": 2, "cursor": first["cursor"]}
    ).json()
    assert [one["id"] for one in first["sandboxes"] + rest["sandboxes"]] == made[::-1]
    assert rest["cursor"] is None
    one = server.client.get("/sandboxes", params={"metadata.group": "pages", "metadata.n": "1"}).json()["sandboxes"]
    assert [found["id"] for found in one] == [made[1]]
    server.client.delete(f"/sandboxes/{made[0]}")
    ended = server.client.get("/sandboxes", params=[("state", "terminated"), ("metadata.group", "pages")]).json()
    assert [found["id"] for found in ended["sandboxes"]] == [made[0]]


def test_update_changes_what_is_named_only(server):
    made = server.sandbox(metadata={"a": "1", "b": "2"})
    path = f"/sandboxes/{made['id']}"
    found = server.client.patch(path, json={"timeout_s": 100, "metadata": {"a": None, "c": "3"}}).json()
    assert (found["metadata"], found["idle_timeout_s"]) == ({"b": "2", "c": "3"}, 1800.0)
    assert found["expires_at"]
    found = server.client.patch(path, json={"timeout_s": None, "idle_timeout_s": None}).json()
    assert (found["expires_at"], found["idle_timeout_s"]) == (None, None)


def test_pause_and_resume_are_idempotent(server):
    path = f"/sandboxes/{server.sandbox()['id']}"
    states = [server.client.post(f"{path}/{word}").json()["state"] for word in ("pause", "pause", "resume", "resume")]
    assert states == ["paused", "paused", "running", "running"]


def test_a_timeout_ends_the_sandbox(server):
    path = f"/sandboxes/{server.sandbox(timeout_s=1)['id']}"
    deadline = time.monotonic() + 60
    while server.client.get(path).json()["state"] != "terminated":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.client.get(path).json()["end_reason"] == "expired"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"cpus": 0}, "cpus"),
        ({"cpus": "1"}, "cpus"),
        ({"cpus": True}, "cpus"),
        ({"memory_mib": -1}, "memory_mib"),
        ({"memory_mib": 2**63}, "memory_mib"),
        ({"memory_mib": 31}, "memory_mib"),
        ({"disk_mib": 1.5}, "disk_mib"),
        ({"pids": 10**9}, "pids"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": 10**12}, "timeout_s"),
        ({"idle_action": "explode"}, "idle_action"),
        ({"name": "UPPER"}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"hostname": "a.b"}, "hostname"),
        ({"image": "../base"}, "image"),
        ({"image": ""}, "image"),
        ({"env": {"1A": "x"}}, "env"),
        ({"env": {"A": "x\0"}}, "env"),
        ({"env": {"A": 1}}, "env"),
        ({"env": [1]}, "env"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"metadata": {"a": "x" * 1025}}, "metadata"),
        ({"driver": "nope"}, "driver"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_bad_create_names_the_field(server, body, field):
    answer = server.client.post("/sandboxes", json=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == field, answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"1",
        b"\xff",
        b'{"cpus":NaN}',
        b'{"cpus":1e999}',
        b'{"name":"\\ud800"}',
        b'{"metadata":' * 100_000,
        b"[" * 500_000,
        b'{"name":"a"} x',
    ],
)
def test_a_body_that_is_no_such_json_is_400(server, body):
    answer = server.client.post("/sandboxes", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")


def test_a_body_over_the_limit_is_413_announced_or_not(server):
    def chunks():
        for _ in range(40):
            yield b" " * 65536

    assert server.client.post("/sandboxes", content=b" " * (3 * 1024 * 1024)).status_code == 413
    assert server.client.post("/sandboxes", content=chunks()).status_code == 413


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("state=nope", "state"),
        ("foo=1", "foo"),
        ("cursor=%00", "cursor"),
        ("cursor=%ff", "cursor"),
        ("cursor=nonsense", "cursor"),
    ],
)
def test_a_bad_query_names_the_parameter(server, query, field):
    answer = server.client.get(f"/sandboxes?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.json().get("field") == field


@pytest.mark.parametrize(
    "ref",
    [
        "sb_0000000000000000",
        "0000000000000000",
        "sb_xyz",
        "%2e%2e",
        "..%2fkeys",
        "a%00b",
        "SB_0000000000000000",
        "a" * 300,
    ],
)
def test_no_other_form_of_id_names_a_sandbox(server, ref):
    assert server.client.get(f"/sandboxes/{ref}").status_code == 404
    assert server.client.delete(f"/sandboxes/{ref}").status_code in {404, 405}
