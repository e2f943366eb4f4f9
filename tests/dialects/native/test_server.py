# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys

import httpx2
import pytest


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer nope"},
        {"Authorization": "Basic YTpi"},
        {"X-API-Key": "cove_00000000_x"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Authorization": "Bearer " + "x" * 10_000},
    ],
)
def test_nobody_gets_in_without_a_key(server, head):
    answer = httpx2.get(f"{server.url}/api/v1/sandboxes", headers=head)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert "admin.key" in answer.json()["hint"]
    assert httpx2.get(f"{server.url}/metrics", headers=head).status_code == 401


def test_a_key_does_what_its_scopes_say_and_stops_when_revoked(server):
    made = server.client.post("/keys", json={"name": "reader", "scopes": ["read"]}).json()
    reader = httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": made["key"]})
    with reader:
        assert reader.get("/sandboxes").status_code == 200
        assert reader.post("/sandboxes").json()["code"] == "forbidden"
        assert reader.get("/keys").status_code == 403
        assert reader.post("/server/shutdown", json={}).status_code == 403
        assert "key" not in server.client.get("/keys").json()["keys"][-1]
        assert server.client.delete(f"/keys/{made['id']}").status_code == 204
        assert reader.get("/sandboxes").status_code == 401


def test_another_projects_sandbox_does_not_exist(server, box):
    assert server.client.post("/projects", json={"id": "other"}).status_code in {201, 409}
    scopes = ["read", "create", "exec", "files", "destroy", "keys"]
    body = {"name": "o", "project": "other", "scopes": scopes}
    made = server.client.post("/keys", json=body).json()
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": made["key"]}) as other:
        assert other.get("/sandboxes").json()["sandboxes"] == []
        calls = [
            ("GET", "", None),
            ("PATCH", "", {"timeout_s": 5}),
            ("DELETE", "", None),
            ("POST", "/exec", {"command": "true"}),
            ("POST", "/pause", None),
            ("GET", "/files?path=/", None),
            ("PUT", "/files/content?path=/tmp/x", None),
            ("GET", "/commands", None),
        ]
        for method, path, json_ in calls:
            assert other.request(method, f"/sandboxes/{box}{path}", json=json_).status_code == 404, path


def test_the_local_operator_needs_no_key_but_a_bad_one_counts(server):
    assert server.operator.get("/server").json()["version"]
    assert server.operator.get("/server", headers={"X-API-Key": "nope"}).status_code == 401
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o600
    assert not server.socket_path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    assert stat.S_IMODE((server.data_dir / "admin.key").stat().st_mode) == 0o600


def test_request_ids_are_taken_over_unless_they_could_forge(server):
    for given, taken in (("abc-1", True), ("a b", False), ("x" * 200, False), ("a\tb", False)):
        answer = server.client.get("/images", headers={"X-Request-Id": given})
        assert (answer.headers["x-request-id"] == given) is taken


def test_unknown_paths_and_methods_are_problems(server):
    assert server.client.get("/nope").json()["code"] == "not-found"
    assert httpx2.get(f"{server.url}/nope").status_code == 404
    answer = server.client.put("/sandboxes")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


def test_health_metrics_docs_and_openapi_are_at_the_root(server):
    made = server.sandbox()  # in whatever order tests run, there is one
    assert httpx2.get(f"{server.url}/health").json()["status"] == "ok"
    head = {"Authorization": f"Bearer {server.key}"}
    assert httpx2.get(f"{server.url}/health", headers=head).json()["status"] == "ok"
    text = httpx2.get(f"{server.url}/metrics", headers=head).text
    assert 'cove_request_seconds_count{dialect="native",op="create_sandbox"}' in text
    assert "cove_sandboxes{" in text
    server.client.delete(f"/sandboxes/{made['id']}")
    page = httpx2.get(f"{server.url}/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("<!doctype html>", "")
    assert httpx2.get(f"{server.url}/docs/docs.js").status_code == 200
    assert httpx2.get(f"{server.url}/docs/..%2fpages.py").status_code == 404
    assert httpx2.get(f"{server.url}/api/v1/docs").headers["location"] == "/docs"


def test_the_openapi_document_resolves(server):
    api = httpx2.get(f"{server.url}/openapi.json").json()
    assert api["openapi"] == "3.1.0"
    text = json.dumps(api)
    for ref in set(text.split('"$ref": "')[1:]):
        name = ref.split('"')[0].rsplit("/", 1)[1]
        assert name in api["components"]["schemas"], name
    ids = [op["operationId"] for verbs in api["paths"].values() for op in verbs.values()]
    assert len(ids) == len(set(ids))


def test_a_second_server_on_the_same_data_is_refused_with_the_pid(server):
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVE_")}
    env |= {"COVE_DATA_DIR": str(server.data_dir), "COVE_RUN_DIR": str(server.socket_path.parent.parent)}
    env |= {"COVE_DRIVERS": "fake", "COVE_PORT": "0"}
    start = "import sys; from cove.server.serve import main; sys.exit(main({}, False))"
    done = subprocess.run(
        [sys.executable, "-c", start], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 125
    assert f"pid {server.process.pid}" in done.stderr


def test_sigterm_ends_streams_with_a_reason_and_leaves_sandboxes(new_server, driver):
    made = new_server.sandbox()
    command = new_server.client.post(f"/sandboxes/{made['id']}/commands", json={"command": ["sleep", "60"]}).json()
    path = f"/sandboxes/{made['id']}/commands/{command['id']}/output"
    with new_server.client.stream("GET", path, params={"follow": "true"}) as answer:
        pieces = answer.iter_text()
        next(pieces)
        os.kill(new_server.process.pid, signal.SIGTERM)
        text = "".join(pieces)
    assert "event: error" in text
    assert '"code":"server-stopping"' in text
    assert new_server.process.wait(60) == 0
    assert "1 sandbox goes on" in (new_server.data_dir / "log").read_text()
    if driver == "fake":  # elsewhere the pid is one inside
        os.kill(command["pid"], 0)
        os.kill(command["pid"], signal.SIGKILL)
