"""Section 12 of docs/protocols/isorun.md: snapshot, restore, fork, hibernate, resume."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2
import pytest
from tests.dialects.isorun.conftest import Make
from tests.dialects.isorun.test_commands import execute

SMALL = {"mem_mib": 128, "disk_mib": 64}


@pytest.fixture(autouse=True)
def memory(driver: str) -> None:
    if driver == "fake":
        pytest.skip("it keeps no memory: test_without_memory")


@pytest.fixture
def tidy(runs: httpx2.Client) -> Iterator[list[str]]:
    """Runs and snapshots that end with the test."""
    made: list[str] = []
    yield made
    for one in reversed(made):
        runs.delete(f"/v1/snapshots/{one}" if one.startswith("snap") else f"/v1/runs/{one}")


def counting(runs: httpx2.Client, run: str) -> None:
    """A program whose only copy of a number is its memory: it counts the lines of a pipe, from 41 on."""
    script = "n=41; while :; do if read line < /tmp/pipe; then n=$((n+1)); echo $n > /tmp/n; fi; done"
    found = execute(runs, run, f"mkfifo /tmp/pipe; nohup setsid sh -c '{script}' >/dev/null 2>&1 &")
    assert found["exit_code"] == 0


def count(runs: httpx2.Client, run: str) -> str:
    command = "rm -f /tmp/n; echo > /tmp/pipe; while [ ! -s /tmp/n ]; do sleep 0.02; done; cat /tmp/n"
    return str(execute(runs, run, command, timeout=60)["stdout"]).strip()


def test_a_snapshot_is_restored_with_its_memory_after_its_source_has_ended(
    runs: httpx2.Client, make: Make, tidy: list[str]
) -> None:
    run = make(**SMALL, env={"KEPT": "yes"})
    counting(runs, run)
    assert count(runs, run) == "42"
    answer = runs.post(f"/v1/runs/{run}/snapshot")  # as the client: no body, no content type
    made = answer.json()
    assert (answer.status_code, set(made)) == (200, {"snapshot_id", "run_id", "size_bytes", "created_at"})
    tidy.append(made["snapshot_id"])
    assert made["run_id"] == run
    assert made["size_bytes"] > 0
    assert count(runs, run) == "43"  # it went on
    assert runs.delete(f"/v1/runs/{run}").status_code == 200
    restored = runs.post("/v1/runs/restore", json={"snapshot_id": made["snapshot_id"]}).json()
    tidy.append(restored["id"])
    assert restored["id"] != run
    assert (restored["status"], restored["image"], restored["mem_mib"]) == ("running", "base", 128)
    assert count(runs, restored["id"]) == "43"
    assert execute(runs, restored["id"], "echo $KEPT")["stdout"] == "yes\n"
    listed = {one["id"]: one for one in runs.get("/v1/snapshots").json()["snapshots"]}
    mine = listed[made["snapshot_id"]]
    assert mine == {
        "id": made["snapshot_id"],
        "size_bytes": made["size_bytes"],
        "created_at": made["created_at"],
        "run_id": run,
    }


def test_a_deleted_snapshot_is_404(runs: httpx2.Client, make: Make) -> None:
    snapshot = runs.post(f"/v1/runs/{make(**SMALL)}/snapshot").json()["snapshot_id"]
    answer = runs.delete(f"/v1/snapshots/{snapshot}")
    assert (answer.status_code, answer.json()["id"]) == (200, snapshot)
    assert runs.delete(f"/v1/snapshots/{snapshot}").status_code == 404
    assert runs.post("/v1/runs/restore", json={"snapshot_id": snapshot}).status_code == 404
    assert snapshot not in {one["id"] for one in runs.get("/v1/snapshots").json()["snapshots"]}


def test_forks_run_at_once_with_the_memory_and_apart(runs: httpx2.Client, make: Make, tidy: list[str]) -> None:
    run = make(**SMALL)
    counting(runs, run)
    assert count(runs, run) == "42"
    answer = runs.post(f"/v1/runs/{run}/fork", json={"count": 3})
    forks = answer.json()["forks"]
    tidy += [one["id"] for one in forks]
    assert (answer.status_code, len({one["id"] for one in forks})) == (200, 3)
    assert all(re.fullmatch(r"run[0-9a-f]{16}", one["id"]) and one["status"] == "running" for one in forks)
    assert all((one["image"], one["mem_mib"], one["disk_mib"]) == ("base", 128, 64) for one in forks)
    for wanted in ("43", "44"):
        assert [count(runs, one["id"]) for one in forks] == [wanted] * 3
    assert count(runs, run) == "43"


def test_one_fork_without_a_body(runs: httpx2.Client, make: Make, tidy: list[str]) -> None:
    forks = runs.post(f"/v1/runs/{make(**SMALL)}/fork").json()["forks"]
    tidy += [one["id"] for one in forks]
    assert len(forks) == 1


def test_hibernation_keeps_processes_and_refuses_work_until_resumed(runs: httpx2.Client, make: Make) -> None:
    run = make(**SMALL, timeout=2)
    counting(runs, run)
    assert count(runs, run) == "42"
    for _ in range(2):
        answer = runs.post(f"/v1/runs/{run}/hibernate")
        assert (answer.status_code, answer.json()) == (200, {"id": run, "status": "hibernated"})
    assert runs.get(f"/v1/runs/{run}").json()["status"] == "hibernated"
    assert run in {one["id"] for one in runs.get("/v1/runs").json()["runs"]}
    execute(runs, make(**SMALL), "sleep 3")  # longer than its timer, which stands still
    for method, path, body in (
        ("POST", "exec", {"command": "true"}),
        ("POST", "exec/stream", {"command": "true"}),
        ("GET", "files?path=/", None),
        ("GET", "files/download?path=/etc/passwd", None),
        ("POST", "files/upload?path=/tmp/x", None),
    ):
        answer = runs.request(method, f"/v1/runs/{run}/{path}", json=body)
        assert (answer.status_code, answer.json()) == (409, {"error": "sandbox is hibernated"}), path
    for _ in range(2):
        answer = runs.post(f"/v1/runs/{run}/resume")
        assert (answer.status_code, answer.json()) == (200, {"id": run, "status": "running"})
    assert count(runs, run) == "43"


def test_a_hibernated_run_can_be_destroyed(runs: httpx2.Client, make: Make) -> None:
    run = make(**SMALL)
    assert runs.post(f"/v1/runs/{run}/hibernate").status_code == 200
    assert runs.delete(f"/v1/runs/{run}").json()["status"] == "destroyed"
    assert runs.post(f"/v1/runs/{run}/resume").status_code == 404
