"""Money that runs out under real sandboxes, and bills that a killed server does not falsify."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from tests_support import NewServer

pytestmark = pytest.mark.real

SMALL = {"memory_mib": 64, "cpus": 0.5, "idle_timeout_s": None}
DEAR = {
    "COVE_PRICE_VCPU_HOUR": "3600",
    "COVE_PRICE_GIB_HOUR": "0",
    "COVE_USAGE_INTERVAL_S": "0.2",
    "COVE_POOL_SIZE": "2",
}
"""One unit of money for each vCPU-second."""


def until(client: httpx2.Client, sandbox: str, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        found: dict[str, Any] = client.get(f"/sandboxes/{sandbox}").json()
        if found["state"] == state:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def put(client: httpx2.Client, subject: str, **limits: object) -> None:
    answer = client.put(f"/{subject}/quota", json=limits)
    assert answer.status_code == 200, answer.text


def test_a_spent_budget_pauses_then_ends_what_runs(new_server: NewServer) -> None:
    server = new_server(**DEAR)
    with server.client() as client:
        made = client.post("/sandboxes", json=SMALL)
        assert made.status_code == 201, made.text
        sandbox = made.json()["id"]
        put(client, "projects/default", budget="0.8", budget_period="total", budget_action="pause")
        until(client, sandbox, "paused")
        broke = client.post("/sandboxes", json=SMALL)
        assert (broke.status_code, broke.json()["code"]) == (402, "budget-exceeded")
        for refused in (
            client.post(f"/sandboxes/{sandbox}/resume"),
            client.post(f"/sandboxes/{sandbox}/exec", json={"command": "true"}),
        ):
            assert (refused.status_code, refused.json()["code"]) == (402, "budget-exceeded"), "work would resume it"
        spent = client.get("/projects/default/quota").json()["used"]["spent"]
        assert Decimal("0.8") <= Decimal(spent) < Decimal(10), "passed by what runs between two looks"
        time.sleep(0.5)
        assert client.get("/projects/default/quota").json()["used"]["spent"] == spent, "its cores cost nothing now"
        put(client, "projects/default", budget=str(Decimal(spent) + 1), budget_period="total", budget_action="stop")
        assert client.post(f"/sandboxes/{sandbox}/exec", json={"command": "true"}).json()["exit_code"] == 0
        ended = until(client, sandbox, "terminated")
        assert ended["end_reason"] == "budget"
        assert client.post("/sandboxes", json=SMALL).status_code == 402
        put(client, "projects/default")
        assert client.post("/sandboxes", json=SMALL).status_code == 201


def test_a_killed_server_loses_and_doubles_nothing(new_server: NewServer) -> None:
    server = new_server(**DEAR | {"COVE_USAGE_INTERVAL_S": "3600"})
    with server.client() as client:
        begun = time.monotonic()
        sandbox = client.post("/sandboxes", json=SMALL).json()["id"]
        running = time.monotonic()
        client.patch(f"/sandboxes/{sandbox}", json={"cpus": 1.0})
        changed = time.monotonic()
        burned = client.post(f"/sandboxes/{sandbox}/exec", json={"command": "ulimit -t 1; while :; do :; done"})
        assert burned.json()["signal"] is not None, "it has burned a second"
    for _ in range(2):
        server.kill()
        time.sleep(0.3)
        server.start()
    with server.client() as client:
        ending = time.monotonic()
        assert client.delete(f"/sandboxes/{sandbox}").json()["state"] == "terminated"
        ended = time.monotonic()
        bill = client.get(f"/sandboxes/{sandbox}/usage").json()
        assert ending - running - 0.1 <= bill["running_s"] <= ended - begun + 0.1, "downtime counts, and counts once"
        assert bill["vcpu_s"] <= bill["running_s"], "never more than the limits allow"
        assert bill["vcpu_s"] >= bill["running_s"] - (changed - begun) - 0.1, "its cores were more from the change on"
        assert Decimal(bill["cost"]) == Decimal(str(bill["vcpu_s"])), "one unit for each vCPU-second, exactly"
        assert bill["cpu_s"] >= 0.9
        assert bill["memory_peak_bytes"] > 0
        total = client.get("/usage").json()["usage"][0]
        assert {name: total[name] for name in ("running_s", "vcpu_s", "cost")} == {
            name: bill[name] for name in ("running_s", "vcpu_s", "cost")
        }
        assert client.get("/projects/default/quota").json()["used"]["sandboxes"] == 0
