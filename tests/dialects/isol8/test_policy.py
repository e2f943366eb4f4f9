"""The operator's limits over what a client asks for: what is lowered, what is refused; sessions outlive the server."""

# ruff: noqa: ANN001, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests_support import RunningServer, make_server

pytestmark = pytest.mark.real

LIMIT_S = 60.0
STRICT = {
    "COVE_POOL_SIZE": "0",
    "COVE_EXECUTION_READY": "0",
    "COVE_EXECUTION_NETWORKS": "none,filtered",
    "COVE_EXECUTION_IMAGES": "base,python*",
    "COVE_EXECUTION_MEMORY_MIB": "128",
    "COVE_EXECUTION_PIDS": "40",
    "COVE_EXECUTION_CPUS": "0.5",
    "COVE_EXECUTION_DISK_MIB": "24",
    "COVE_EXECUTION_TIMEOUT_S": "2",
    "COVE_EXECUTION_OUTPUT_MIB": "1",
    "COVE_EXECUTION_AT_ONCE": "2",
    "COVE_EXECUTION_IDLE_S": "900",
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Iterator[RunningServer]:
    running = make_server(tmp_path_factory.mktemp("strict"), **STRICT)
    running.start()
    yield running
    running.down()


@pytest.fixture
def ask(strict):
    with httpx2.Client(base_url=f"{strict.url}/isol8", headers={"Authorization": strict.key}, timeout=60) as client:

        def one(code="true", *, session=None, runtime="bash", **options):
            body = {"request": {"runtime": runtime, "code": code}, "options": options, "sessionId": session}
            return client.post("/execute", json=body)

        yield one


@pytest.fixture
def sessions(strict):
    def now():
        answer = httpx2.get(f"{strict.url}/isol8/sessions", headers={"Authorization": strict.key}, timeout=60)
        return [one["id"] for one in answer.json()["sessions"]]

    return now


def until(fact):
    deadline = time.monotonic() + LIMIT_S
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_network_that_the_operator_does_not_give_is_refused(ask):
    answer = ask(network="host")
    assert answer.status_code == 403
    assert answer.json() == {"error": "executions on this server may have the networks none, filtered, not open"}


def test_an_image_that_the_operator_does_not_give_is_refused(ask):
    assert ask(image="node").json() == {"error": "executions on this server may not name this image"}
    assert ask(image="base").status_code == 200


def test_a_seccomp_profile_of_the_client_is_refused(ask):
    answer = ask(security={"seccomp": "custom", "customProfilePath": "/etc/passwd"})
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("Failed to load custom seccomp profile at /etc/passwd: ")


@pytest.mark.parametrize("mode", ["strict", "unconfined"])
def test_no_seccomp_mode_gives_more_than_the_servers_filter(ask, mode):
    found = ask("grep Seccomp: /proc/self/status; unshare -U true", security={"seccomp": mode}).json()
    assert found["stdout"].split() == ["Seccomp:", "2"]
    assert found["exitCode"] != 0


@pytest.mark.parametrize(("option", "path"), [("sandboxSize", "/sandbox"), ("tmpSize", "/tmp")])
def test_places_are_lowered_to_the_operators(ask, option, path):
    found = ask(f"df -B1 --output=size {path} | tail -1", **{option: "8g"}).json()
    assert int(found["stdout"]) == 24 << 20


def test_limits_are_lowered_to_the_operators(strict, ask):
    ask(session="limits", memoryLimit="8g", pidsLimit=5000, cpuLimit=64)
    with strict.client() as native:
        box = native.get("/sandboxes", params={"metadata.session": "limits"}).json()["sandboxes"][0]
    assert (box["memory_mib"], box["pids"], box["cpus"]) == (128, 40, 0.5)


def test_what_is_less_than_the_operators_limit_holds(strict, ask):
    ask(session="less", memoryLimit="64m", pidsLimit=20, cpuLimit=0.25)
    with strict.client() as native:
        box = native.get("/sandboxes", params={"metadata.session": "less"}).json()["sandboxes"][0]
    assert (box["memory_mib"], box["pids"], box["cpus"]) == (64, 20, 0.25)


def test_time_is_lowered_to_the_operators(ask):
    before = time.monotonic()
    found = ask("echo on; sleep 300", timeoutMs=3_600_000).json()
    assert found["stdout"] == "on"
    assert found["stderr"].endswith("--- EXECUTION TIMED OUT ---")
    assert time.monotonic() - before < LIMIT_S


def test_output_is_lowered_to_the_operators(ask):
    found = ask("head -c 3000000 /dev/zero | tr '\\0' x", maxOutputSize=1 << 30).json()
    assert found["truncated"]
    assert "OUTPUT TRUNCATED (3000000 bytes, limit: 1048576)" in found["stdout"]


def test_one_more_than_may_run_is_told_so_at_once(strict, ask):
    with ThreadPoolExecutor(2) as pool:
        running, found = [], []

        def is_full():
            running[:] = [one for one in running if not one.done()]
            running.extend(pool.submit(ask, "sleep 2") for _ in range(2 - len(running)))
            found.append(ask())
            return found[-1].status_code == 429

        until(is_full)
    assert list(found[-1].json()) == ["error"]
    assert int(found[-1].headers["retry-after"]) >= 1
    stream = f"{strict.url}/isol8/execute/stream"
    body = {"request": {"runtime": "bash", "code": "true"}}
    until(lambda: httpx2.post(stream, json=body, headers={"Authorization": strict.key}, timeout=60).status_code == 200)


def test_sessions_end_when_they_are_idle(strict, ask, sessions):
    ask(session="idle")
    with strict.client() as native:
        box = native.get("/sandboxes", params={"metadata.session": "idle"}).json()["sandboxes"][0]
        assert (box["idle_timeout_s"], box["idle_action"]) == (900, "terminate")
        assert "idle" in sessions()
        assert native.patch(f"/sandboxes/{box['id']}", json={"idle_timeout_s": 1}).status_code == 200
    until(lambda: "idle" not in sessions())


def test_a_session_outlives_the_server(strict, ask, sessions):
    ask("echo kept > /sandbox/f", session="old", secrets={"TOKEN": "very-secret"})
    strict.stop()
    for path in strict.data_dir.glob("*.db*"):
        assert b"very-secret" not in path.read_bytes()
    strict.start()
    assert "old" in sessions()
    found = ask("cat /sandbox/f; echo $TOKEN", session="old").json()
    assert found["stdout"] == "kept\n***", "its files and its first options"
