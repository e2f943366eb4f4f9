"""The audit trail over the wire: what stands in it, how it is paged, followed, exported and verified."""

# ruff: noqa: ANN001, ANN201, ANN003 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import json
import threading
import time

import httpx2
import pytest

from cove.model.auditchain import verify

SECRET = "hunter2-do-not-record"


def lines_of(server, **query):
    answer = server.client.get("/audit", params={"limit": 1000, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()["lines"]


def key_of(server, **query) -> bytes:
    answer = server.operator.get("/audit/key", params=query)
    assert answer.status_code == 200, answer.text
    return bytes.fromhex(answer.json()["key"])


def exported(server, **query) -> list[bytes]:
    answer = server.client.get("/audit/export", params=query)
    assert answer.status_code == 200, answer.text
    return [line for line in answer.content.splitlines(keepends=True) if line.strip()]


@pytest.fixture(scope="module")
def lived(server):
    """A sandbox that was used in every way, and has ended."""
    box = server.sandbox(env={"PASSWORD": SECRET}, name="audited")
    path = f"/sandboxes/{box['id']}"
    client = server.client
    run = {"command": ["sh", "-c", "cat; echo said"], "stdin": SECRET, "env": {"TOKEN": SECRET}}
    assert client.post(f"{path}/exec", json=run, headers={"X-Request-Id": "req-of-mine"}).status_code == 200
    assert client.put(f"{path}/files/content", params={"path": "/tmp/f"}, content=SECRET).status_code in {200, 201}
    assert client.get(f"{path}/files/content", params={"path": "/tmp/f"}).text == SECRET
    assert client.post(f"{path}/pause").status_code == 200
    assert client.post(f"{path}/resume").status_code == 200
    assert client.delete(path).status_code == 200
    return box


def test_a_life_is_told_in_order_and_readable_after_the_end(server, lived):
    answer = server.client.get(f"/sandboxes/{lived['id']}/audit")
    assert answer.status_code == 200
    lines = answer.json()["lines"]
    assert [line["event"] for line in lines] == [
        "sandbox.created", "exec.start", "exec.exit", "file.uploaded", "file.downloaded", "sandbox.paused",
        "sandbox.resumed", "sandbox.destroyed",
    ]  # fmt: skip
    assert [line["sandbox_seq"] for line in lines] == list(range(8))
    start, exit_ = lines[1], lines[2]
    assert start["actor"]["request_id"] == "req-of-mine"
    assert start["actor"]["via"] == "http"
    assert start["actor"]["address"] == "127.0.0.1"
    assert start["actor"]["dialect"] == "native"
    assert start["actor"]["key"]
    assert start["data"]["command"] == "sh -c cat; echo said"
    assert exit_["data"]["exec"] == start["data"]["exec"]
    assert (exit_["data"]["exit_code"], exit_["data"]["why"]) == (0, "exited")
    assert lines[3]["data"] == {"path": "/tmp/f", "size_bytes": len(SECRET)}
    assert lines[-1]["data"]["reason"] == "requested"
    assert {"cpu_ms", "mem_peak_bytes", "uptime_ms"} <= lines[-1]["data"].keys()


def test_no_secret_and_no_output_is_in_the_trail(server, lived):
    text = server.client.get("/audit", params={"limit": 1000}).text
    assert SECRET not in text
    assert "said\\n" not in text
    assert server.key not in text


def test_reading_writes_nothing(server, lived):
    before = lines_of(server, newest=True)[0]["seq"]
    path = f"/sandboxes/{lived['id']}"
    for look in (path, "/sandboxes", "/server", "/keys", "/images", f"{path}/audit", "/audit/export"):
        assert server.client.get(look).status_code == 200
    assert lines_of(server, newest=True)[0]["seq"] == before


def test_pages_join_without_gaps_in_both_directions(server, lived):
    whole = lines_of(server)
    for newest in (False, True):
        found, cursor = [], None
        while True:
            query = {"limit": 3, "newest": newest} | ({} if cursor is None else {"cursor": cursor})
            page = server.client.get("/audit", params=query).json()
            found += page["lines"]
            cursor = page["cursor"]
            if cursor is None:
                break
        assert found == (whole[::-1] if newest else whole)


def test_filters(server, lived):
    assert {line["event"] for line in lines_of(server, event="exec.")} <= {"exec.start", "exec.exit"}
    assert {line["sandbox"] for line in lines_of(server, sandbox=lived["id"])} == {lived["id"]}
    last = lines_of(server)[-1]
    assert lines_of(server, since="2100-01-01T00:00:00Z") == []
    assert last in lines_of(server, since=last["at"])


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"cursor": -1},
        {"event": ""},
        {"since": "yesterday"},
        {"what": "1"},
        {"event": "x" * 65},
    ],
)
def test_bad_queries_are_refused_with_their_field(server, query):
    answer = server.client.get("/audit", params=query)
    assert answer.status_code in {400, 422}
    assert answer.json()["field"] == next(iter(query))


def test_an_export_of_a_project_verifies_with_its_key_alone(server, lived):
    lines = exported(server)
    verdict = verify(lines, key_of(server))
    assert verdict.is_good, verdict
    assert verdict.count == len(lines) - 1
    assert not verify(lines, bytes(32)).is_good


def test_an_export_of_a_sandbox_verifies_too(server, lived):
    lines = exported(server, sandbox=lived["id"])
    verdict = verify(lines, key_of(server))
    assert verdict.is_good, verdict
    assert (verdict.count, verdict.sandbox) == (8, lived["id"])
    assert all("hmac" not in json.loads(line) for line in lines[1:-1])


def test_a_later_export_continues_an_earlier_one(server, lived):
    key = key_of(server)
    earlier = verify(exported(server), key)
    server.client.delete(f"/sandboxes/{server.sandbox()['id']}")
    later = exported(server)
    assert verify(later, key, earlier=earlier).is_good
    assert not verify(later[: earlier.count] + later[-1:], key, earlier=earlier).is_good


def test_the_live_tail_tells_what_happens(server):
    found: list[dict[str, object]] = []
    ready, done = threading.Event(), threading.Event()

    def follow() -> None:
        client = httpx2.Client(base_url=server.client.base_url, headers=server.client.headers, timeout=30)
        with client, client.stream("GET", "/audit", params={"follow": "true"}) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            ready.set()
            for line in filter(None, answer.iter_lines()):
                found.append(json.loads(line))
                if found[-1]["event"] == "sandbox.destroyed":
                    break
        done.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert ready.wait(60)
    box = server.sandbox()
    server.client.delete(f"/sandboxes/{box['id']}")
    assert done.wait(60)
    thread.join()
    assert [one["event"] for one in found if one["sandbox"] == box["id"]] == ["sandbox.created", "sandbox.destroyed"]
    assert found[0] in lines_of(server)


def test_projects_are_apart_and_the_key_is_for_admins(server):
    name = f"audit-{time.time_ns()}"
    assert server.operator.post("/projects", json={"id": name}).status_code == 201
    made = server.operator.post("/keys", json={"name": "own", "project": name, "scopes": ["read", "create", "destroy"]})
    own = {"Authorization": f"Bearer {made.json()['key']}"}
    base = server.url + "/api/v1"
    with httpx2.Client(base_url=base, headers=own, timeout=30) as client:
        box = client.post("/sandboxes", json={}).json()
        client.delete(f"/sandboxes/{box['id']}")
        assert {line["project"] for line in client.get("/audit").json()["lines"]} == {name}
        for query in ({"project": "default"}, {"project": "_server"}, {"project": "no-such"}):
            assert client.get("/audit", params=query).status_code == 404
            assert client.get("/audit/export", params=query).status_code == 404
        assert client.get("/audit/key").status_code == 403
        other = server.sandbox()
        assert client.get(f"/sandboxes/{other['id']}/audit").status_code == 404
        assert client.get("/audit", params={"sandbox": other["id"]}).status_code == 404
    lines = server.operator.get("/audit", params={"project": name}).json()["lines"]
    assert [line["event"] for line in lines][:2] == ["project.created", "key.created"]
    assert made.json()["key"] not in json.dumps(lines)
    assert verify(
        server.operator.get("/audit/export", params={"project": name}).content.splitlines(),
        key_of(server, project=name),
    ).is_good


def test_a_key_that_nobody_knows_is_told_to_the_server_chain_and_not_repeated(server):
    bad = "cove_guess_of_somebody"
    assert httpx2.get(server.url + "/api/v1/server", headers={"Authorization": f"Bearer {bad}"}).status_code == 401
    query = {"project": "_server", "event": "key.refused", "newest": True}
    lines = []
    while not lines:  # the line is not waited for: a refusal is no operation
        lines = server.operator.get("/audit", params=query).json()["lines"]
    assert lines[0]["data"]["why"] == "unknown"
    assert lines[0]["actor"]["address"] == "127.0.0.1"
    assert bad not in json.dumps(lines)
    started = server.operator.get("/audit", params={"project": "_server"}).json()["lines"]
    assert "server.started" in {line["event"] for line in started}


def test_every_kind_of_work_has_its_lines(server):
    box = server.sandbox()
    path, client = f"/sandboxes/{box['id']}", server.client
    started = client.post(f"{path}/commands", json={"command": "exit 3"}).json()
    assert client.post(f"{path}/commands/{started['id']}/wait", json={}).status_code == 200
    shell = client.post(f"{path}/shells", json={})
    assert shell.status_code == 201, shell.text
    ref = f"{path}/shells/{shell.json()['id']}"
    assert client.post(f"{ref}/run", json={"command": "true # in a shell"}).status_code == 200
    assert client.delete(ref).status_code == 204
    terminal = client.post(f"{path}/terminals", json={"command": "cat"})
    assert terminal.status_code == 201, terminal.text
    assert client.delete(f"{path}/terminals/{terminal.json()['id']}").status_code == 204
    assert client.put(f"{path}/ports/8000", json={"access": "token"}).status_code == 200
    assert client.delete(f"{path}/ports/8000").status_code == 204
    assert client.put(f"{path}/files/content", params={"path": "/tmp/a"}, content=b"12").status_code in {200, 201}
    assert (
        client.post(f"{path}/files/move", json={"from": "/tmp/a", "to": "/tmp/b", "overwrite": True}).status_code == 200
    )
    assert client.delete(f"{path}/files", params={"path": "/tmp/b"}).status_code in {200, 204}
    assert client.patch(path, json={"name": "renamed-in-the-trail"}).status_code == 200
    client.delete(path)
    lines = client.get(f"{path}/audit").json()["lines"]
    events = [line["event"] for line in lines]
    wanted = {
        "terminal.opened", "terminal.closed", "port.exposed", "port.closed", "file.uploaded", "file.moved",
        "file.removed", "sandbox.changed", "sandbox.destroyed", "shell.opened", "shell.closed",
    }  # fmt: skip
    assert wanted <= set(events)
    background = next(line for line in lines if line["data"].get("background"))
    assert background["data"] == {"exec": started["id"], "command": "exit 3", "background": True}
    ended = next(line for line in lines if line["event"] == "exec.exit" and line["data"]["exec"] == started["id"])
    assert ended["data"]["exit_code"] == 3
    in_shell = next(line for line in lines if "shell" in line["data"] and line["event"] == "exec.start")
    assert in_shell["data"]["command"] == "true # in a shell"
    token = next(line for line in lines if line["event"] == "port.exposed")
    assert token["data"] == {"port": 8000, "access": "token", "host_port": None}
