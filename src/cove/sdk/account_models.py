"""Usage and quotas as the server reports them: frozen values, no I/O. Money is a `Decimal`, exact."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from cove.sdk.models import time_of


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits; None: none. `cpus`, `memory_mib`, `disk_mib`: of all sandboxes together that have not ended."""

    sandboxes: int | None = None
    cpus: float | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    snapshots: int | None = None
    host_ports: int | None = None
    requests_per_minute: int | None = None
    budget: Decimal | None = None
    budget_period: str = "month"
    budget_action: str = "refuse"


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """What is used now. `spent`: money, since `spent_since` (None: ever)."""

    sandboxes: int
    cpus: float
    memory_mib: int
    disk_mib: int
    snapshots: int
    host_ports: int
    spent: Decimal
    spent_since: datetime | None


@dataclass(frozen=True, slots=True)
class QuotaInfo:
    """Limits of a project or key (`subject`, `id`), and what it uses."""

    subject: str
    id: str
    quota: Quota
    used: QuotaUse


@dataclass(frozen=True, slots=True)
class UsageLine:
    """One line of a report. What it was not grouped by is None; `sandboxes`: how many it is about."""

    at: datetime | None
    project: str | None
    key: str | None
    sandbox: str | None
    name: str | None
    started_at: datetime | None
    ended_at: datetime | None
    sandboxes: int
    running_s: float
    paused_s: float
    vcpu_s: float
    gib_s: float
    cpu_s: float
    sent_bytes: int
    received_bytes: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class Bill:
    """All that one sandbox used and costs. `key`: the id of the key that made it."""

    sandbox: str
    project: str
    key: str
    name: str
    started_at: datetime | None
    ended_at: datetime | None
    running_s: float
    paused_s: float
    vcpu_s: float
    gib_s: float
    cpu_s: float
    sent_bytes: int
    received_bytes: int
    memory_peak_bytes: int
    disk_bytes: int
    cost: Decimal


_SECONDS = ("running_s", "paused_s", "vcpu_s", "gib_s", "cpu_s")
_TIMES = ("at", "started_at", "ended_at")
_COUNTS = ("sandboxes", "sent_bytes", "received_bytes", "memory_peak_bytes", "disk_bytes")


def _money(value: Any) -> Decimal:
    return Decimal(str(value or 0))


def _read(wire: dict[str, Any], name: str) -> Any:
    value = wire.get(name)
    if name in _SECONDS:
        return float(value or 0)
    if name in _COUNTS:
        return int(value or 0)
    if name in _TIMES:
        return time_of(value)
    return _money(value) if name == "cost" else value


def usage_line(wire: dict[str, Any]) -> UsageLine:
    """Read a line of a report."""
    return UsageLine(**{one.name: _read(wire, one.name) for one in fields(UsageLine)})


def bill(wire: dict[str, Any]) -> Bill:
    """Read a sandbox's bill."""
    return Bill(**{one.name: _read(wire, one.name) for one in fields(Bill)})


def quota_info(wire: dict[str, Any]) -> QuotaInfo:
    """Read limits and use."""
    limits: dict[str, Any] = wire.get("quota") or {}
    used: dict[str, Any] = wire.get("used") or {}
    known = {one.name: limits[one.name] for one in fields(Quota) if one.name in limits}
    if known.get("budget") is not None:
        known["budget"] = _money(known["budget"])
    return QuotaInfo(
        subject=str(wire.get("subject", "")),
        id=str(wire.get("id", "")),
        quota=Quota(**known),
        used=QuotaUse(
            sandboxes=int(used.get("sandboxes") or 0),
            cpus=float(used.get("cpus") or 0),
            memory_mib=int(used.get("memory_mib") or 0),
            disk_mib=int(used.get("disk_mib") or 0),
            snapshots=int(used.get("snapshots") or 0),
            host_ports=int(used.get("host_ports") or 0),
            spent=_money(used.get("spent")),
            spent_since=time_of(used.get("spent_since")),
        ),
    )
