"""Section 9 of docs/protocols/isorun.md: the audit trail and its chain."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.dialects.conftest import DialectServer
from tests.dialects.isorun.conftest import Make


def trail(runs: httpx2.Client, run: str) -> list[dict[str, Any]]:
    answer = runs.get(f"/v1/runs/{run}/audit")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines() if line.strip()]


def life(runs: httpx2.Client, make: Make) -> str:
    run = make()
    assert runs.post(f"/v1/runs/{run}/exec", json={"command": "echo 'é'; exit 3"}).status_code == 200
    runs.get(f"/v1/runs/{run}")
    runs.get("/v1/runs")
    assert runs.delete(f"/v1/runs/{run}").status_code == 200
    return run


def test_a_life_with_one_command_is_exactly_these_lines(runs: httpx2.Client, make: Make) -> None:
    run = life(runs, make)
    lines = trail(runs, run)
    assert lines == trail(runs, run)  # reading writes nothing
    assert [one["event"] for one in lines] == ["sandbox.created", "exec.start", "exec.exit", "sandbox.destroyed"]
    assert [one["seq"] for one in lines] == [0, 1, 2, 3]
    for one in lines:
        assert list(one) == ["seq", "ts", "sandbox_id", "event", "data", "hmac"]
        assert one["sandbox_id"] == run
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["ts"])
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", one["hmac"])
    created, start, end, destroyed = (one["data"] for one in lines)
    assert created == {"image": "base", "vcpus": 1, "mem_mib": 1024, "disk_mib": 4096}
    assert start == {"command": "echo 'é'; exit 3"}
    assert end == {"command": "echo 'é'; exit 3", "exit_code": 3, "duration_ms": end["duration_ms"]}
    assert isinstance(end["duration_ms"], int)
    assert set(destroyed) == {"cpu_ms", "mem_peak_bytes", "uptime_ms"}


def test_an_exit_is_there_as_soon_as_the_command_has_answered(runs: httpx2.Client, make: Make) -> None:
    run = make()
    for _ in range(5):
        runs.post(f"/v1/runs/{run}/exec", json={"command": "true"})
        assert trail(runs, run)[-1]["event"] == "exec.exit"


def test_the_timer_writes_the_line_that_delete_writes(runs: httpx2.Client, make: Make) -> None:
    from tests.dialects.isorun.test_runs import wait_gone

    run = make(timeout=1)
    wait_gone(runs, run)
    assert [one["event"] for one in trail(runs, run)] == ["sandbox.created", "sandbox.destroyed"]


def test_transfers_of_files_are_told(runs: httpx2.Client, make: Make, make_path: str) -> None:
    run = make()
    runs.post(f"/v1/runs/{run}/files/upload", params={"path": make_path}, content=b"12345")
    runs.get(f"/v1/runs/{run}/files/download", params={"path": make_path})
    runs.get(f"/v1/runs/{run}/files", params={"path": "/"})
    lines = trail(runs, run)
    assert [one["event"] for one in lines] == ["sandbox.created", "file.uploaded", "file.downloaded"]
    assert all(one["data"] == {"path": make_path, "size_bytes": 5} for one in lines[1:])


def test_what_becomes_of_a_run_is_told(server: DialectServer, runs: httpx2.Client, make: Make, driver: str) -> None:
    if driver == "fake":
        pytest.skip("it keeps no memory")
    run = make(mem_mib=128, disk_mib=64)
    snapshot = runs.post(f"/v1/runs/{run}/snapshot").json()
    child = runs.post(f"/v1/runs/{run}/fork").json()["forks"][0]["id"]
    copy = runs.post("/v1/runs/restore", json={"snapshot_id": snapshot["snapshot_id"]}).json()["id"]
    runs.post(f"/v1/runs/{run}/hibernate")
    runs.post(f"/v1/runs/{run}/resume")
    lines = trail(runs, run)
    assert [one["event"] for one in lines] == [
        "sandbox.created",
        "sandbox.snapshotted",
        "sandbox.hibernated",
        "sandbox.resumed",
    ]
    assert lines[1]["data"] == {"snapshot_id": snapshot["snapshot_id"], "size_bytes": snapshot["size_bytes"]}
    assert lines[2]["data"]["snapshot_size_bytes"] > 0
    assert lines[3]["data"]["restore_ms"] >= 1
    forked, restored = trail(runs, child), trail(runs, copy)
    assert [(one["event"], one["data"]) for one in forked] == [("sandbox.forked", {"parent": run, "image": "base"})]
    assert [(one["event"], one["data"]) for one in restored] == [
        ("sandbox.restored", {"snapshot_id": snapshot["snapshot_id"]})
    ]
    for one in (child, copy):
        runs.delete(f"/v1/runs/{one}")
    runs.delete(f"/v1/snapshots/{snapshot['snapshot_id']}")


def test_the_chain_is_as_the_protocol_says(server: DialectServer, runs: httpx2.Client, make: Make) -> None:
    """By the documented bytes alone, with what the operator reads."""
    lines = trail(runs, life(runs, make))
    secret = server.client.get("/audit/key").json()["key"].encode()
    last = ""
    for line in lines:
        data = json.dumps(line["data"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        message = f"{last}{line['seq']}{line['event']}{data}".encode()
        last = "sha256:" + hmac.new(secret, message, hashlib.sha256).hexdigest()
        assert line["hmac"] == last


def checked(file: Path, key: Path) -> tuple[int, str]:
    command = [str(Path(sys.executable).with_name("cove")), "audit", "verify", str(file), "--key", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_saved_trail_verifies_offline_and_a_tampered_copy_does_not(
    server: DialectServer, runs: httpx2.Client, make: Make, tmp_path: Path
) -> None:
    text = runs.get(f"/v1/runs/{life(runs, make)}/audit").content
    file, key = tmp_path / "audit.ndjson", tmp_path / "audit.key"
    key.write_text(server.client.get("/audit/key").json()["key"] + "\n")
    file.write_bytes(text)
    code, said = checked(file, key)
    assert (code, "good: 4 lines" in said) == (0, True), said
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    for changed, bad in (
        (text.replace(b'"exit_code":3', b'"exit_code":0'), 3),
        (b"".join(lines[:1] + lines[2:]), 2),
        (b"".join([lines[1], lines[0], *lines[2:]]), 1),
        (b"".join([*lines[:2], lines[1], *lines[2:]]), 3),
    ):
        file.write_bytes(changed)
        code, said = checked(file, key)
        assert (code, f"line {bad} " in said) == (1, True), said


def test_an_unknown_run_has_no_trail(runs: httpx2.Client) -> None:
    answer = runs.get("/v1/runs/run0123456789abcdef/audit")
    assert (answer.status_code, set(answer.json())) == (404, {"error"})
