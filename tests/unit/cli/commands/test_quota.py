"""`cove quota` and `cove usage`: what they ask for and what they print."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import pytest

LINE = {
    "sandboxes": 2, "running_s": 90.0, "paused_s": 0, "vcpu_s": 180.0, "gib_s": 45.0, "cpu_s": 1.25,
    "sent_bytes": 1024, "received_bytes": 1024, "cost": "0.00126",
}  # fmt: skip
BILL = {
    **LINE, "sandbox": "sb_0000000000000001", "project": "default", "key": "local", "name": "brave-otter",
    "started_at": "2026-11-01T00:00:00.000Z", "ended_at": None, "memory_peak_bytes": 1 << 20, "disk_bytes": 0,
}  # fmt: skip
STATE = {
    "subject": "project",
    "id": "lab",
    "quota": {"sandboxes": 3, "memory_mib": 512, "budget": "5", "budget_period": "day", "budget_action": "stop"},
    "used": {"sandboxes": 1, "cpus": 0.5, "memory_mib": 128, "disk_mib": 64, "spent": "0.25"},
}


def test_usage_is_a_table_of_what_it_was_grouped_by(cove, stub) -> None:
    lines = [{**LINE, "at": "2026-11-01T00:00:00.000Z", "key": "k1"}]
    stub.extra["GET", "/usage"] = {"usage": lines, "cursor": None}
    ran = cove("usage", "--by", "day", "--by", "key", "--from", "2026-11-01")
    assert ran.out.splitlines() == [
        "DAY         KEY  SANDBOXES  RUNNING  VCPU    GIB    CPU   TRAFFIC  COST",
        "2026-11-01  k1   2          90.0s    180.0s  45.0s  1.2s  2.0K     0.0013",
    ]
    assert cove("usage", "--json", "cost,key").objects == [{"cost": "0.00126", "key": "k1"}]


def test_a_bill_is_shown_whole(cove, stub) -> None:
    stub.extra["GET", "/sandboxes/brave-otter/usage"] = BILL
    ran = cove("usage", "brave-otter")
    assert ran.out.splitlines()[0] == "SANDBOX      sb_0000000000000001 brave-otter"
    assert ran.out.splitlines()[-1] == "COST         0.00126"
    assert cove("usage", "brave-otter", "--json", "ended_at,cost").objects == [{"ended_at": None, "cost": "0.00126"}]
    assert cove("usage", "brave-otter", "--by", "day").code == 2


def test_limits_are_shown_beside_their_use(cove, stub) -> None:
    stub.extra["GET", "/quota"] = {"quotas": [STATE]}
    lines = cove("quota", "show").out.splitlines()
    assert lines[1].split() == ["project", "lab", "sandboxes", "1", "3"]
    assert lines[-1].endswith("0.2500   5 per day, then stop")
    assert cove("quota", "show", "--json").objects[0]["quota"]["budget"] == "5"


def test_what_is_not_named_stays(cove, stub) -> None:
    stub.extra["GET", "/projects/lab/quota"] = STATE
    stub.extra["PUT", "/projects/lab/quota"] = STATE
    ran = cove(
        "quota", "set", "--project", "lab", "--sandboxes", "none", "--cpus", "1.5", "--disk", "2g",
        "--budget", "7.25/month", "--then", "pause", "--rpm", "60",
    )  # fmt: skip
    assert ran.out == "lab\n"
    assert stub.seen[-1][2] == {
        "sandboxes": None, "cpus": 1.5, "memory_mib": 512, "disk_mib": 2048, "snapshots": None, "host_ports": None,
        "requests_per_minute": 60, "budget": "7.25", "budget_period": "month", "budget_action": "pause",
    }  # fmt: skip
    assert cove("quota", "set", "--project", "lab", "--budget", "none", "--quiet").code == 0
    assert stub.seen[-1][2]["budget"] is None


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--project", "lab", "--key", "k1"),
        ("--project", "lab", "--sandboxes", "many"),
        ("--project", "lab", "--cpus", "x"),
        ("--project", "lab", "--memory", "lots"),
        ("--project", "lab", "--budget", "much"),
        ("--project", "lab", "--budget", "5/year"),
    ],
)
def test_what_cannot_be_is_wrong_usage(cove, stub, options: tuple[str, ...]) -> None:
    stub.extra["GET", "/projects/lab/quota"] = STATE
    assert cove("quota", "set", *options).code == 2
