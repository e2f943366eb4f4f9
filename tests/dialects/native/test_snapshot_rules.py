"""What no driver can change about snapshots: who may ask for what, wrong values, lists, names, broken files."""

# ruff: noqa: ANN001, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined
from __future__ import annotations

import time

import httpx2
import pytest
from tests.dialects.conftest import started

from snapshots_support import SMALL, USER, exported, took


@pytest.fixture(scope="module")
def server():
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def box(server):
    return str(server.sandbox()["id"])


def test_lists_filter_and_page(server, source):
    made = [took(server, source, memory=False, tags={"n": str(n), "all": "x y"})["id"] for n in range(3)]
    query = {"sandbox": source["id"], "limit": 2}
    first = server.client.get("/snapshots", params=query).json()
    rest = server.client.get("/snapshots", params=query | {"cursor": first["cursor"]}).json()
    assert [one["id"] for one in first["snapshots"] + rest["snapshots"]] == made[::-1]
    assert rest["cursor"] is None

    def found(**query):
        return [one["id"] for one in server.client.get("/snapshots", params=query).json()["snapshots"]]

    assert found(**{"tags.n": "1", "tags.all": "x y", "sandbox": source["name"]}) == [made[1]]
    name = server.client.get(f"/snapshots/{made[0]}").json()["name"]
    assert found(name=name) == [made[0]]
    assert found(sandbox=source["id"], state="failed") == []
    assert found(sandbox="sb_0123456789abcdef") == []
    server.client.delete(f"/sandboxes/{source['id']}")
    assert len(found(sandbox=source["id"])) == 3


def test_names_and_tags_change(server, source):
    made = took(server, source, name="first", tags={"a": "1", "b": "2"}, memory=False)
    path = f"/snapshots/{made['id']}"
    changed = server.client.patch(path, json={"name": "second", "tags": {"a": None, "c": "3"}}).json()
    assert changed == made | {"name": "second", "tags": {"b": "2", "c": "3"}}
    assert server.client.get("/snapshots/first").status_code == 404
    took(server, source, name="third", memory=False)
    taken = server.client.patch(path, json={"name": "third"})
    assert (taken.status_code, taken.json()["field"]) == (409, "name")
    assert server.client.patch(path).json() == changed
    assert server.client.delete(path).status_code == 204
    for again in (server.client.delete(path), server.client.get(path), server.client.patch(path, json={})):
        assert (again.status_code, again.json()["code"], again.json()["field"]) == (404, "not-found", "snapshot")
        assert "cove snapshot ls" in again.json()["hint"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("snapshots", {"name": ""}, "name"),
        ("snapshots", {"name": "A b"}, "name"),
        ("snapshots", {"name": "x" * 64}, "name"),
        ("snapshots", {"name": 1}, "name"),
        ("snapshots", {"tags": {"": "v"}}, "tags"),
        ("snapshots", {"tags": {"k": 1}}, "tags"),
        ("snapshots", {"tags": {"k": "v" * 1025}}, "tags"),
        ("snapshots", {"memory": "yes"}, "memory"),
        ("snapshots", {"memroy": True}, "memroy"),
        ("fork", {"count": 0}, "count"),
        ("fork", {"count": 101}, "count"),
        ("fork", {"count": 1.5}, "count"),
        ("fork", {"cpus": 0}, "cpus"),
        ("fork", {"memory_mib": 1}, "memory_mib"),
        ("fork", {"disk_mib": 1}, "disk_mib"),
        ("fork", {"pids": 1}, "pids"),
        ("fork", {"timeout_s": 0}, "timeout_s"),
        ("fork", {"idle_action": "sleep"}, "idle_action"),
        ("fork", {"auto_resume": None}, "auto_resume"),
        ("fork", {"env": {"A=B": "x"}}, "env"),
        ("fork", {"env": {"A": "x\0"}}, "env"),
        ("fork", {"metadata": {"": "x"}}, "metadata"),
        ("fork", {"name": "-"}, "name"),
        ("rollback", {}, "snapshot"),
        ("rollback", {"snapshot": ""}, "snapshot"),
        ("rollback", {"snapshot": "x", "count": 1}, "count"),
    ],
)
def test_a_wrong_value_is_named(server, box, path, body, field):
    answer = server.client.post(f"/sandboxes/{box}/{path}", json=body)
    found = answer.json()
    assert (answer.status_code, found["code"]) in {(400, "bad-request"), (413, "too-large")}, answer.text
    assert found["field"].split(".")[0] == field


@pytest.mark.parametrize("ref", ["nope", "sn_0123456789abcdef", "sn_xyz", "UPPER", "a_b", "0123456789abcdef", "é"])
def test_what_no_snapshot_is_called_is_not_found(server, box, ref):
    calls = [
        ("GET", f"/snapshots/{ref}", None),
        ("PATCH", f"/snapshots/{ref}", {}),
        ("DELETE", f"/snapshots/{ref}", None),
        ("POST", f"/snapshots/{ref}/restore", {}),
        ("POST", f"/sandboxes/{box}/rollback", {"snapshot": ref}),
    ]
    for method, path, body in calls:
        answer = server.client.request(method, path, json=body)
        found = answer.json()
        assert (answer.status_code, found["code"], found["field"]) == (404, "not-found", "snapshot"), path


def test_a_sandbox_that_is_none_or_has_ended(server):
    gone = server.sandbox(**SMALL)["id"]
    server.client.delete(f"/sandboxes/{gone}")
    for verb, body in (("snapshots", {}), ("fork", {}), ("rollback", {"snapshot": "x"})):
        assert server.client.post(f"/sandboxes/nobody/{verb}", json=body).json()["code"] == "not-found", verb
        answer = server.client.post(f"/sandboxes/{gone}/{verb}", json=body)
        assert (answer.status_code, answer.json()["code"]) in {(410, "gone"), (404, "not-found")}, verb


def test_a_snapshot_of_another_sandbox_is_none_to_roll_back_to(server, source):
    other = server.sandbox(**SMALL)
    made = took(server, other, memory=False)
    answer = server.client.post(f"/sandboxes/{source['id']}/rollback", json={"snapshot": made["id"]})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (409, "conflict", "snapshot")
    server.client.delete(f"/snapshots/{made['id']}")
    server.client.delete(f"/sandboxes/{other['id']}")


def test_another_projects_snapshots_do_not_exist(server, source):
    made = took(server, source, name="mine", memory=False)
    project = f"p{time.monotonic_ns()}"
    server.client.post("/projects", json={"id": project})
    key = server.client.post("/keys", json={"name": "o", "project": project, "scopes": USER}).json()["key"]
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": key}, timeout=30) as other:
        assert other.get("/snapshots").json() == {"snapshots": [], "cursor": None}
        assert other.get("/snapshots", params={"sandbox": source["id"]}).json()["snapshots"] == []
        own = other.post("/sandboxes", json=SMALL).json()["id"]
        for ref in (made["id"], "mine"):
            for method, path, body in (
                ("GET", f"/snapshots/{ref}", None),
                ("PATCH", f"/snapshots/{ref}", {"name": "theirs"}),
                ("DELETE", f"/snapshots/{ref}", None),
                ("POST", f"/snapshots/{ref}/restore", {}),
                ("POST", f"/sandboxes/{own}/rollback", {"snapshot": ref}),
            ):
                answer = other.request(method, path, json=body)
                assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), path
                assert made["id"] not in answer.text or made["id"] in path
        assert other.post(f"/sandboxes/{source['id']}/fork", json={}).status_code == 404
        other.delete(f"/sandboxes/{own}")
    assert server.client.get("/snapshots/mine").json() == made


def test_scopes_say_who_may_do_what(server, source):
    made = took(server, source, memory=False)
    calls = {
        ("POST", f"/sandboxes/{source['id']}/snapshots"): "create",
        ("POST", f"/sandboxes/{source['id']}/fork"): "create",
        ("POST", f"/sandboxes/{source['id']}/rollback"): "create",
        ("POST", f"/snapshots/{made['id']}/restore"): "create",
        ("PATCH", f"/snapshots/{made['id']}"): "create",
        ("DELETE", f"/snapshots/{made['id']}"): "destroy",
        ("GET", f"/snapshots/{made['id']}"): "read",
        ("GET", "/snapshots"): "read",
    }
    for (method, path), scope in calls.items():
        others = [one for one in USER if one != scope]
        key = server.client.post("/keys", json={"name": "s", "scopes": others}).json()["key"]
        body = {"snapshot": made["id"]} if path.endswith("rollback") else None if method in {"GET", "DELETE"} else {}
        with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": key}, timeout=30) as one:
            answer = one.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
        assert scope in answer.json()["detail"]
    assert server.client.get(f"/snapshots/{made['id']}").json() == made


def test_the_quota_of_snapshots_is_told(server):
    project = f"q{time.monotonic_ns()}"
    server.client.post("/projects", json={"id": project})
    assert server.client.put(f"/projects/{project}/quota", json={"snapshots": 1}).status_code == 200
    key = server.client.post("/keys", json={"name": "q", "project": project, "scopes": USER}).json()["key"]
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": key}, timeout=30) as one:
        box = one.post("/sandboxes", json=SMALL).json()["id"]
        first = one.post(f"/sandboxes/{box}/snapshots", json={"memory": False}).json()["id"]
        answer = one.post(f"/sandboxes/{box}/snapshots", json={"memory": False})
        found = answer.json()
        assert (answer.status_code, found["code"], found["field"]) == (429, "quota-exceeded", "snapshots")
        assert (found["limit"], found["used"]) == (1, 1)
        assert one.delete(f"/snapshots/{first}").status_code == 204
        assert one.post(f"/sandboxes/{box}/snapshots", json={"memory": False}).status_code == 201
        for left in one.get("/snapshots").json()["snapshots"]:
            one.delete(f"/snapshots/{left['id']}")
        one.delete(f"/sandboxes/{box}")


def test_a_file_that_is_not_whole_leaves_nothing(server, source):
    took(server, source, name="whole", memory=False)
    content = exported(server, "whole").content
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for wrong in (b"", b"not a file of ours" * 100, content[: len(content) // 2], content[:-1], bytes(flipped)):
        answer = server.client.post("/snapshots/import?name=broken", content=wrong)
        found = answer.json()
        assert (answer.status_code, found["code"], found["field"]) == (400, "bad-request", "file"), (len(wrong), found)
        assert server.client.get("/snapshots/broken").status_code == 404
    assert server.client.post("/snapshots/import?name=A+b", content=content).json()["field"] == "name"
    assert server.client.post("/snapshots/import?nome=x", content=content).json()["field"] == "nome"


def test_an_upload_that_breaks_off_leaves_nothing(server, source):
    took(server, source, name="broken-off", memory=False)
    content = exported(server, "broken-off").content

    def half():
        yield content[: len(content) // 2]
        raise ConnectionError("the client goes")

    with pytest.raises(ConnectionError):
        server.client.post("/snapshots/import?name=half", content=half())
    deadline = time.monotonic() + 60
    while (whole := server.client.post("/snapshots/import?name=half", content=content)).status_code == 409:
        assert time.monotonic() < deadline, "its name is not free again"
        time.sleep(0.05)
    assert whole.status_code == 201, whole.text
    server.client.delete("/snapshots/half")


def test_an_export_needs_more_than_looking(server, source):
    made = took(server, source, memory=False)
    for scopes in (["read"], ["read", "create"], ["read", "files"]):
        key = server.client.post("/keys", json={"name": "x", "scopes": scopes}).json()["key"]
        with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": key}, timeout=30) as one:
            assert one.get(f"/snapshots/{made['id']}/export").status_code == 403, scopes
    reader = server.client.post("/keys", json={"name": "x", "scopes": ["read", "files"]}).json()["key"]
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": reader}, timeout=30) as one:
        assert one.post("/snapshots/import", content=b"x").status_code == 403
