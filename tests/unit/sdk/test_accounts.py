"""Usage and quotas from Python: what is sent, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

import cove
from cove import aio
from cove.sdk import account_calls, account_models

LINE = {
    "key": "k1", "sandboxes": 2, "running_s": 1.5, "paused_s": 0, "vcpu_s": 3.0, "gib_s": 0.5, "cpu_s": 0.1,
    "sent_bytes": 7, "received_bytes": 8, "cost": "0.000011111",
}  # fmt: skip
STATE = {
    "subject": "key",
    "id": "k1",
    "quota": {"sandboxes": 3, "cpus": None, "budget": "12.50", "budget_period": "day", "budget_action": "stop"},
    "used": {"sandboxes": 1, "cpus": 0.5, "spent": "0.25", "spent_since": "2026-11-01T00:00:00.000Z"},
}


@pytest.fixture
def client(address: str) -> Iterator[cove.Client]:
    with cove.Client(address, "k-test") as one:
        yield one


def answers(stub: Any, wire: Any, method: str, path: str, *bodies: dict[str, Any]) -> None:
    stub.fail(method, path, *(wire.answer(200, body) for body in bodies))


def test_pages_of_usage_are_one_iteration(client: cove.Client, stub: Any, wire: Any) -> None:
    pages = [{"usage": [LINE], "cursor": "1000"}, {"usage": [{**LINE, "key": "k2"}], "cursor": None}]
    answers(stub, wire, "GET", "/api/v1/usage", *pages)
    since = datetime(2026, 11, 1, tzinfo=UTC)
    lines = list(client.account.usage(since=since, until="2026-12-01", group_by=["key"], project="p"))
    assert [(line.key, line.cost, line.project) for line in lines] == [
        ("k1", Decimal("0.000011111"), None),
        ("k2", Decimal("0.000011111"), None),
    ]
    asked = [request.query for request in stub.asked("GET", "/api/v1/usage")]
    first = {"from": ["2026-11-01T00:00:00+00:00"], "to": ["2026-12-01"], "group_by": ["key"], "project": ["p"]}
    assert asked == [first, {**first, "cursor": ["1000"]}]


def test_limits_go_out_whole_and_come_back_exact(client: cove.Client, stub: Any, wire: Any) -> None:
    answers(stub, wire, "PUT", "/api/v1/keys/k1/quota", STATE)
    state = client.account.set_quota(cove.Quota(sandboxes=3, budget=Decimal("12.50")), key="k1")
    assert stub.asked("PUT", "/api/v1/keys/k1/quota")[0].json == {
        "sandboxes": 3, "cpus": None, "memory_mib": None, "disk_mib": None, "snapshots": None, "host_ports": None,
        "requests_per_minute": None, "budget": "12.50", "budget_period": "month", "budget_action": "refuse",
    }  # fmt: skip
    assert (state.quota.budget, state.used.spent) == (Decimal("12.50"), Decimal("0.25"))
    assert state.used.spent_since == datetime(2026, 11, 1, tzinfo=UTC)


def test_a_quota_is_of_a_project_or_of_a_key(client: cove.Client) -> None:
    for both in ({}, {"project": "p", "key": "k"}):
        with pytest.raises(cove.BadRequest, match="a project or a key"):
            client.account.quota(**both)


def test_an_answer_of_another_version_is_read_leniently() -> None:
    state = account_models.quota_info({"subject": "project", "id": "p", "quota": {"new": 1}, "extra": 2})
    assert (state.quota, state.used.spent) == (cove.Quota(), Decimal(0))
    bill = account_models.bill({"sandbox": "sb_0", "project": "p", "key": "", "name": "n", "new": 1})
    assert (bill.cost, bill.ended_at) == (Decimal(0), None)
    assert account_calls.quota_body(cove.Quota())["budget"] is None


@pytest.mark.parametrize("kind", [cove.QuotaTooSmall, cove.BudgetExceeded])
def test_what_ran_out_is_told(client: cove.Client, stub: Any, wire: Any, kind: type[cove.QuotaExceeded]) -> None:
    stub.fail("POST", "/api/v1/sandboxes", wire.problem(kind.code, 402, field="cpus", limit=2, used=1.5))
    with pytest.raises(cove.QuotaExceeded) as caught:
        client.create()
    assert (type(caught.value), caught.value.limit, caught.value.used) == (kind, 2, 1.5)


def test_too_many_requests_are_asked_again(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("GET", "/api/v1/server", wire.problem("rate-limited", 429, retry_after=0))
    assert client.server()["version"] == "1"
    assert len(stub.asked("GET", "/api/v1/server")) == 2


async def test_the_awaited_twin_does_the_same(address: str, stub: Any, wire: Any) -> None:
    async with aio.connect(address, "k-test") as client:
        answers(stub, wire, "GET", "/api/v1/usage", {"usage": [LINE], "cursor": "1"}, {"usage": [LINE], "cursor": None})
        assert len([line async for line in client.account.usage(group_by="key")]) == 2
        answers(stub, wire, "GET", "/api/v1/quota", {"quotas": [STATE]})
        assert [one.id for one in await client.account.quotas()] == ["k1"]
        answers(stub, wire, "GET", "/api/v1/projects/p/quota", STATE)
        assert (await client.account.quota(project="p")).quota.sandboxes == 3
        answers(stub, wire, "PUT", "/api/v1/projects/p/quota", STATE)
        await client.account.set_quota(cove.Quota(), project="p")
        answers(stub, wire, "GET", "/api/v1/sandboxes/otter/usage", {**LINE, "sandbox": "sb_1", "name": "otter"})
        assert (await client.account.bill("otter")).name == "otter"
