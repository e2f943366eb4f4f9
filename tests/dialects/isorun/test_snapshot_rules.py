"""What section 12 of docs/protocols/isorun.md refuses; and a driver that keeps no memory."""

from __future__ import annotations

import httpx2
import pytest


@pytest.mark.parametrize("count", [0, -1, 101, 1.5, "2"])
def test_a_wrong_count_is_400_and_named(runs: httpx2.Client, run: str, count: object) -> None:
    answer = runs.post(f"/v1/runs/{run}/fork", json={"count": count})
    assert answer.status_code == 400
    assert "count" in answer.json()["error"]


@pytest.mark.parametrize("body", [{}, {"snapshot_id": 3}])
def test_a_restore_without_an_id_is_400_and_named(runs: httpx2.Client, body: dict[str, object]) -> None:
    answer = runs.post("/v1/runs/restore", json=body)
    assert answer.status_code == 400
    assert "snapshot_id" in answer.json()["error"]


@pytest.mark.parametrize("snapshot", ["snap0123456789abcdef", "sn_0123456789abcdef", "x", ""])
def test_an_unknown_snapshot_is_404(runs: httpx2.Client, snapshot: str) -> None:
    answer = runs.post("/v1/runs/restore", json={"snapshot_id": snapshot})
    assert (answer.status_code, set(answer.json())) == (404, {"error"})
    if snapshot:
        assert runs.delete(f"/v1/snapshots/{snapshot}").status_code == 404


@pytest.mark.parametrize("what", ["snapshot", "fork", "hibernate"])
def test_without_memory_it_is_refused_and_said_why(runs: httpx2.Client, run: str, driver: str, what: str) -> None:
    if driver != "fake":
        pytest.skip("it keeps memory")
    answer = runs.post(f"/v1/runs/{run}/{what}")
    assert answer.status_code == 501
    assert "memory" in answer.json()["error"]
