"""History and usage: sections 2 and 13 of docs/protocols/isorun.md."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2
import pytest
from tests.dialects.conftest import DialectServer
from tests.dialects.isorun.conftest import Make, caller

PAST = {
    "id", "image", "vcpus", "mem_mib", "region", "create_ms", "created_at", "destroyed_at", "uptime_ms", "cost_cents",
    "cpu_ms", "mem_peak_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(server: DialectServer) -> Iterator[httpx2.Client]:
    """A project of its own, so that sums are of its runs alone."""
    project = "usage-of-isorun"
    assert server.client.post("/projects", json={"id": project}).status_code == 201
    scopes = ["read", "create", "exec", "files", "destroy"]
    key = server.client.post("/keys", json={"name": "k", "project": project, "scopes": scopes}).json()["key"]
    with caller(server, key=key) as client:
        yield client


def test_the_history_has_what_has_ended_newest_first(runs: httpx2.Client, make: Make) -> None:
    older, newer, alive = make(), make(vcpus=2, mem_mib=256), make()
    ends = {run: runs.delete(f"/v1/runs/{run}").json() for run in (newer, older)}
    found = runs.get("/v1/runs/history").json()["sandboxes"]
    ids = [one["id"] for one in found]
    assert ids.index(newer) < ids.index(older)
    assert alive not in ids
    for one in found:
        assert set(one) == PAST
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["destroyed_at"])
    mine = found[ids.index(newer)]
    assert (mine["image"], mine["vcpus"], mine["mem_mib"], mine["region"]) == ("base", 2, 256, "local")
    for name in ("cost_cents", "uptime_ms", "cpu_ms", "mem_peak_bytes"):
        assert mine[name] == ends[newer][name]
    assert len(runs.get("/v1/runs/history", params={"limit": 1}).json()["sandboxes"]) == 1


@pytest.mark.parametrize("limit", ["0", "1001", "x"])
def test_a_wrong_limit_is_400_and_named(runs: httpx2.Client, limit: str) -> None:
    answer = runs.get("/v1/runs/history", params={"limit": limit})
    assert answer.status_code == 400
    assert "limit" in answer.json()["error"]


def test_usage_adds_up(alone: httpx2.Client) -> None:
    nothing = alone.get("/v1/usage").json()
    assert set(nothing) == {
        "active_sandboxes", "history_sandboxes", "active_cost_cents", "history_cost_cents", "total_cost_cents",
        "cpu_seconds", "mem_seconds", "as_of",
    }  # fmt: skip
    assert {value for name, value in nothing.items() if name != "as_of"} == {0}
    made = [alone.post("/v1/runs", json={"image": "base", "vcpus": 2}).json()["id"] for _ in range(3)]
    ended = alone.delete(f"/v1/runs/{made[0]}").json()
    found = alone.get("/v1/usage").json()
    assert (found["active_sandboxes"], found["history_sandboxes"]) == (2, 1)
    assert found["history_cost_cents"] == pytest.approx(ended["cost_cents"])
    assert found["total_cost_cents"] == pytest.approx(found["active_cost_cents"] + found["history_cost_cents"])
    # 2 vCPUs and 1 GiB: what it costs follows from what was billed.
    assert found["total_cost_cents"] == pytest.approx(
        (found["cpu_seconds"] * 2.5 + found["mem_seconds"] * 1.5) / 3600, rel=1e-3, abs=1e-7
    )
    assert found["cpu_seconds"] == pytest.approx(2 * found["mem_seconds"], rel=1e-3, abs=0.01)
    for run in made[1:]:
        alone.delete(f"/v1/runs/{run}")
    assert alone.get("/v1/usage").json()["active_cost_cents"] == 0


def test_a_run_costs_the_published_rates_of_its_time(alone: httpx2.Client) -> None:
    run = alone.post("/v1/runs", json={"image": "base", "vcpus": 4, "mem_mib": 2048}).json()["id"]
    alone.post(f"/v1/runs/{run}/exec", json={"command": "sleep 1"})
    end = alone.delete(f"/v1/runs/{run}").json()
    per_second = (4 * 2.5 + 2 * 1.5) / 3600
    assert end["uptime_ms"] >= 1000
    # Billed is the time that it ran, which is a little less than its uptime.
    assert per_second <= end["cost_cents"] <= per_second * end["uptime_ms"] / 1000 * 1.001
