"""What goes over the wire about usage and quotas: frozen structs, nothing else. Pure.

Money is a decimal number without a currency: that of the operator's prices. In answers it is text, exact.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from cove.dialects.native.wire import Request

MOST = 9007199254740992
"""2^53: whole numbers stay whole in every client's JSON."""

Group = Literal["project", "key", "sandbox", "day", "hour"]
Count = Annotated[int, Meta(ge=0, le=MOST)]
When = Annotated[str, Meta(max_length=40, description="A day (2026-11-21) or a time in RFC 3339; UTC if it says none.")]


class Quota(Request, frozen=True):
    """Limits; null: none. The first four are of all sandboxes together that have not ended."""

    sandboxes: Count | None = None
    cpus: Annotated[float, Meta(ge=0, le=1_000_000)] | None = None
    memory_mib: Annotated[int, Meta(ge=0, le=2**32)] | None = None
    disk_mib: Annotated[int, Meta(ge=0, le=2**32)] | None = None
    snapshots: Annotated[int, Meta(ge=0, le=MOST, description="Projects only.")] | None = None
    host_ports: Annotated[int, Meta(ge=0, le=MOST, description="Projects only.")] | None = None
    requests_per_minute: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    budget: Annotated[Decimal, Meta(description="Money per `budget_period`.")] | None = None
    budget_period: Literal["day", "month", "total"] = "month"
    budget_action: Annotated[
        Literal["refuse", "pause", "stop"], Meta(description="What happens to what runs when it is used up.")
    ] = "refuse"


class QuotaUse(Struct, frozen=True, kw_only=True):
    """What is used now. `spent`: money, since `spent_since` (null: ever)."""

    sandboxes: int
    cpus: float
    memory_mib: int
    disk_mib: int
    snapshots: int
    host_ports: int
    spent: str
    spent_since: str | None


class QuotaState(Struct, frozen=True, kw_only=True):
    """Limits of a project or key (`subject`), and what it uses."""

    subject: str
    id: str
    quota: Quota
    used: QuotaUse


class QuotaList(Struct, frozen=True):
    """All that limits the caller: its project's quota, its key's, and those of the keys that made it."""

    quotas: tuple[QuotaState, ...]


class ReportQuery(Request, frozen=True):
    """Which usage: `from` included, `to` not; both go by the hour, and by the day in what is older than a week."""

    since: When | None = field(default=None, name="from")
    until: When | None = field(default=None, name="to")
    group_by: tuple[Group, ...] = ()
    project: Annotated[str, Meta(max_length=63)] | None = None
    key: Annotated[str, Meta(max_length=63)] | None = None
    sandbox: Annotated[str, Meta(max_length=63)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    cursor: Annotated[str, Meta(max_length=16)] | None = None
    format: Literal["json", "ndjson", "csv"] = "json"


class Amounts(Struct, frozen=True, kw_only=True):
    """What was used: seconds running and paused, billed vCPU- and GiB-seconds of limits, CPU seconds, bytes, money."""

    running_s: float
    paused_s: float
    vcpu_s: float
    gib_s: float
    cpu_s: float
    sent_bytes: int
    received_bytes: int
    cost: str


class UsageLine(Amounts, frozen=True, kw_only=True):
    """One line. What it was not grouped by is missing; `sandboxes`: how many it is about."""

    at: str | UnsetType = UNSET
    project: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    sandbox: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    started_at: str | UnsetType = UNSET
    ended_at: str | UnsetType | None = UNSET
    sandboxes: int


class UsageReport(Struct, frozen=True, kw_only=True):
    """Lines in the order of their groups; `cursor` for the next page, null: that was all."""

    usage: tuple[UsageLine, ...]
    cursor: str | None


class Bill(Amounts, frozen=True, kw_only=True):
    """All of one sandbox, live or ended. `key`: the id of the key that made it."""

    sandbox: str
    project: str
    key: str
    name: str
    started_at: str
    ended_at: str | None
    memory_peak_bytes: int
    disk_bytes: int
