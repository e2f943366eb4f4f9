"""Sections 1 to 3 of docs/protocols/isorun.md: base, authentication, errors; runs and their timer."""

from __future__ import annotations

import re
import time

import httpx2
import pytest
from tests.dialects.conftest import DialectServer
from tests.dialects.isorun.conftest import Make, caller

NOBODY = "run0123456789abcdef"
RECORD = {"id", "status", "image", "region", "vcpus", "mem_mib", "disk_mib", "create_ms", "created_at"}


def wait_gone(runs: httpx2.Client, run: str) -> None:
    deadline = time.monotonic() + 60
    while runs.get(f"/v1/runs/{run}").status_code != 404:
        assert time.monotonic() < deadline, "the timer did not fire"
        time.sleep(0.05)


# Base, authentication, errors.


def test_healthz_is_open_at_the_prefix_and_at_the_root(server: DialectServer) -> None:
    for prefix in ("/isorun", ""):
        answer = httpx2.get(f"{server.url}{prefix}/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_the_original_paths_work_at_the_root_too(server: DialectServer, run: str) -> None:
    with caller(server, prefix="") as client:
        assert client.get(f"/v1/runs/{run}").json()["id"] == run
        assert client.post(f"/v1/runs/{run}/exec", json={"command": "echo hi"}).json()["stdout"] == "hi\n"


@pytest.mark.parametrize("prefix", ["/isorun", ""])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer no"}, {"authorization": "Basic eA=="}])
def test_everything_below_v1_needs_a_key(server: DialectServer, prefix: str, headers: dict[str, str]) -> None:
    answer = httpx2.get(f"{server.url}{prefix}/v1/runs", headers=headers)
    assert answer.status_code == 401
    assert set(answer.json()) == {"error"}


def test_a_key_in_the_dialects_form_opens_this_dialect_alone(server: DialectServer) -> None:
    made = server.client.post("/keys", json={"name": "one", "dialect": "isorun"}).json()
    assert re.fullmatch(r"isorun_live_local_[0-9a-f]{40}_[0-9a-f]{32}", made["key"])
    with caller(server, key=made["key"]) as client:
        assert client.get("/v1/runs").status_code == 200
    with caller(server, key=made["key"], prefix="") as client:
        assert client.get("/v1/runs").status_code == 200
    native = httpx2.get(f"{server.url}/api/v1/sandboxes", headers={"authorization": f"Bearer {made['key']}"})
    assert native.status_code == 403
    forged = made["key"][:-1] + ("0" if made["key"][-1] != "0" else "1")
    with caller(server, key=forged) as client:
        assert client.get("/v1/runs").status_code == 401
    assert server.client.delete(f"/keys/{made['id']}").status_code == 204
    with caller(server, key=made["key"]) as client:
        assert client.get("/v1/runs").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/none", 404),
        ("GET", "/", 404),
        ("PUT", "/v1/runs", 405),
        ("GET", f"/v1/runs/{NOBODY}", 404),
        ("GET", "/v1/runs/x", 404),
        ("GET", "/v1/runs/sb_0123456789abcdef", 404),
        ("DELETE", f"/v1/runs/{NOBODY}", 404),
        ("POST", f"/v1/runs/{NOBODY}/hibernate", 404),
        ("POST", f"/v1/runs/{NOBODY}/resume", 404),
    ],
)
def test_errors_have_one_field(runs: httpx2.Client, method: str, path: str, status: int) -> None:
    answer = runs.request(method, path)
    assert (answer.status_code, set(answer.json())) == (status, {"error"}), answer.text
    assert answer.headers["content-type"] == "application/json"


def test_a_body_that_is_too_large_is_413(runs: httpx2.Client) -> None:
    answer = runs.post("/v1/runs", content=b'{"image":"' + b"x" * (3 * 1024 * 1024) + b'"}')
    assert (answer.status_code, set(answer.json())) == (413, {"error"})


def test_ids_of_another_project_answer_404(server: DialectServer, run: str) -> None:
    project = f"p{time.monotonic_ns()}"
    assert server.client.post("/projects", json={"id": project}).status_code == 201
    scopes = ["read", "create", "exec", "files", "destroy"]
    asked = {"name": "other", "project": project, "scopes": scopes, "dialect": "isorun"}
    key = server.client.post("/keys", json=asked).json()["key"]
    with caller(server, key=key) as client:
        assert client.get("/v1/runs").json() == {"runs": []}
        answers = [
            client.get(f"/v1/runs/{run}"),
            client.delete(f"/v1/runs/{run}"),
            client.patch(f"/v1/runs/{run}", json={"timeout": 1}),
            client.post(f"/v1/runs/{run}/exec", json={"command": "true"}),
        ]
        assert [one.status_code for one in answers] == [404] * len(answers)


# Creating.


def test_a_run_record_has_all_its_fields(runs: httpx2.Client, make: Make) -> None:
    run = make(vcpus=2, mem_mib=256, disk_mib=64)
    found = runs.get(f"/v1/runs/{run}").json()
    assert set(found) == RECORD
    assert re.fullmatch(r"run[0-9a-f]{16}", found["id"])
    assert found["status"] == "running"
    assert (found["image"], found["region"]) == ("base", "local")
    assert (found["vcpus"], found["mem_mib"], found["disk_mib"]) == (2, 256, 64)
    assert isinstance(found["create_ms"], int)
    assert found["create_ms"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["created_at"])


def test_create_ms_is_the_measured_time(server: DialectServer, runs: httpx2.Client, make: Make) -> None:
    run = make()
    measured = server.client.get(f"/sandboxes/sb_{run[3:]}").json()["create_ms"]
    assert measured <= runs.get(f"/v1/runs/{run}").json()["create_ms"] < measured + 1


def test_what_is_left_out_has_the_documented_defaults(server: DialectServer, runs: httpx2.Client, make: Make) -> None:
    run = make()
    found = runs.get(f"/v1/runs/{run}").json()
    assert (found["vcpus"], found["mem_mib"], found["disk_mib"]) == (1, 1024, 4096)
    box = server.client.get(f"/sandboxes/sb_{run[3:]}").json()
    assert (box["idle_timeout_s"], box["idle_action"], box["auto_resume"]) == (300, "terminate", False)
    assert box["dialect"] == "isorun"


def test_null_is_as_left_out_and_unknown_fields_are_ignored(make: Make) -> None:
    nothing = dict.fromkeys(
        ("vcpus", "mem_mib", "disk_mib", "timeout", "network", "network_profile", "credentials", "env")
    )
    make(**nothing, color="green", template={"deep": [1]})


def test_env_is_set_in_commands(runs: httpx2.Client, make: Make) -> None:
    run = make(env={"COLOR": "deep green"})
    assert runs.post(f"/v1/runs/{run}/exec", json={"command": 'echo "$COLOR"'}).json()["stdout"] == "deep green\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vcpus", 0.5),
        ("vcpus", 17),
        ("vcpus", "2"),
        ("mem_mib", 127),
        ("mem_mib", 65537),
        ("mem_mib", 512.5),
        ("disk_mib", 1),
        ("disk_mib", "big"),
        ("timeout", -1),
        ("timeout", "soon"),
        ("timeout", 10**12),
        ("image", ""),
        ("image", 7),
        ("image", None),
        ("network", []),
        ("network", {"allow": "a.example"}),
        ("network_profile", 3),
        ("credentials", ["openai"]),
        ("env", {"A": 1}),
        ("env", {"1A": "x"}),
    ],
)
def test_a_wrong_field_is_400_and_named(runs: httpx2.Client, field: str, value: object) -> None:
    answer = runs.post("/v1/runs", json={"image": "base", field: value})
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"nonsense", b"\xff"])
def test_a_body_that_is_none_is_400(runs: httpx2.Client, body: bytes) -> None:
    answer = runs.post("/v1/runs", content=body)
    assert (answer.status_code, set(answer.json())) == (400, {"error"})


@pytest.mark.parametrize("image", ["localhost/none-such", "no image at all", "UPPER/case", "../../etc"])
def test_an_unknown_image_is_a_4xx_with_a_text(runs: httpx2.Client, image: str) -> None:
    answer = runs.post("/v1/runs", json={"image": image})
    assert (answer.status_code, set(answer.json())) == (400, {"error"}), answer.text


# Finding and ending.


def test_the_list_has_running_runs_of_every_dialect(server: DialectServer, runs: httpx2.Client, make: Make) -> None:
    native = str(server.sandbox()["id"])
    mine = make()
    found = {one["id"]: one for one in runs.get("/v1/runs").json()["runs"]}
    assert mine in found
    assert f"run{native[3:]}" in found
    assert set(found[mine]) == RECORD
    assert runs.post(f"/v1/runs/run{native[3:]}/exec", json={"command": "echo here"}).json()["stdout"] == "here\n"
    assert runs.delete(f"/v1/runs/run{native[3:]}").status_code == 200


def test_destroying_says_what_was_used_and_a_second_time_404(runs: httpx2.Client, make: Make) -> None:
    run = make()
    runs.post(f"/v1/runs/{run}/exec", json={"command": "true"})
    answer = runs.delete(f"/v1/runs/{run}")
    body = answer.json()
    assert (answer.status_code, body["status"]) == (200, "destroyed")
    assert set(body) == {"status", "cpu_ms", "mem_peak_bytes", "uptime_ms", "cost_cents"}
    assert all(isinstance(body[name], int) for name in ("cpu_ms", "mem_peak_bytes", "uptime_ms"))
    assert body["uptime_ms"] > 0
    assert body["cost_cents"] == pytest.approx(4 / 3600 * body["uptime_ms"] / 1000, rel=0.5, abs=0.001)
    for again in (runs.delete(f"/v1/runs/{run}"), runs.get(f"/v1/runs/{run}")):
        assert (again.status_code, set(again.json())) == (404, {"error"})
    assert run not in {one["id"] for one in runs.get("/v1/runs").json()["runs"]}
    assert runs.post(f"/v1/runs/{run}/exec", json={"command": "true"}).status_code == 404


# The timer.


def test_the_timer_ends_a_run_as_delete_does(server: DialectServer, runs: httpx2.Client, make: Make) -> None:
    run = make(timeout=1)
    wait_gone(runs, run)
    box = server.client.get(f"/sandboxes/sb_{run[3:]}").json()
    assert (box["state"], box["end_reason"]) == ("terminated", "idle")


def test_patch_begins_the_timer_anew_and_zero_ends_it(server: DialectServer, runs: httpx2.Client, make: Make) -> None:
    run = make(timeout=3600)
    changed = runs.patch(f"/v1/runs/{run}", json={"timeout": 7})
    assert (changed.status_code, changed.json()["id"]) == (200, run)
    assert server.client.get(f"/sandboxes/sb_{run[3:]}").json()["idle_timeout_s"] == 7
    assert runs.patch(f"/v1/runs/{run}", json={"timeout": 0}).status_code == 200
    assert server.client.get(f"/sandboxes/sb_{run[3:]}").json()["idle_timeout_s"] is None
    assert runs.patch(f"/v1/runs/{run}", json={"timeout": 1}).status_code == 200
    wait_gone(runs, run)


def test_no_timer_with_zero(server: DialectServer, make: Make) -> None:
    box = server.client.get(f"/sandboxes/sb_{make(timeout=0)[3:]}").json()
    assert (box["idle_timeout_s"], box["expires_at"]) == (None, None)


def test_a_command_holds_the_timer_off(runs: httpx2.Client, make: Make) -> None:
    run = make(timeout=1)
    answer = runs.post(f"/v1/runs/{run}/exec", json={"command": "sleep 3; echo awake"})
    assert answer.json()["stdout"] == "awake\n"
    wait_gone(runs, run)


@pytest.mark.parametrize("body", [{}, {"timeout": "x"}, {"timeout": -1}, {"timeout": 1.5}])
def test_a_wrong_patch_is_400_and_names_the_field(runs: httpx2.Client, run: str, body: dict[str, object]) -> None:
    answer = runs.patch(f"/v1/runs/{run}", json=body)
    assert answer.status_code == 400
    assert "timeout" in answer.json()["error"]
