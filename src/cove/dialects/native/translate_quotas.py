"""Between the native wire format of usage and quotas and the core's values. Pure."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict

from cove.core.usage import UsageReport
from cove.dialects.native import wire_quotas
from cove.dialects.native.times import optional_timestamp, timestamp
from cove.dialects.native.translate import sandbox_id, sandbox_ref
from cove.edge.errors import Malformed, Where
from cove.edge.exchange import Headers
from cove.edge.ops import Answer, Json, Raw
from cove.model.ids import is_core_id
from cove.model.quota import BudgetAction, BudgetPeriod, Quota, QuotaState
from cove.model.sandbox import MIB
from cove.model.usage import Amounts, SandboxUsage, UsageGroup, UsageQuery, UsageRow, money, nano

_ENCODE: Final = msgspec.json.Encoder().encode
_FIRST: Final = ("at", "project", "key", "sandbox", "name", "started_at", "ended_at", "sandboxes")
"""The columns of a table that stand before the amounts."""


def quota_of(body: wire_quotas.Quota) -> Quota:
    """Limits to set. Raises: Malformed (no such amount of money)."""
    try:
        budget = None if body.budget is None else nano(body.budget)
    except ValueError as error:
        raise Malformed(f"budget {error}", where=Where.BODY, field="budget") from error
    return Quota(
        sandboxes=body.sandboxes,
        cpus=body.cpus,
        memory_bytes=None if body.memory_mib is None else body.memory_mib * MIB,
        disk_bytes=None if body.disk_mib is None else body.disk_mib * MIB,
        snapshots=body.snapshots,
        host_ports=body.host_ports,
        requests_per_minute=body.requests_per_minute,
        budget_nano=budget,
        budget_period=BudgetPeriod(body.budget_period),
        budget_action=BudgetAction(body.budget_action),
    )


def optional_quota_of(body: wire_quotas.Quota | None) -> Quota | None:
    """Limits of a key that is made, if any."""
    return None if body is None else quota_of(body)


def quota_view(state: QuotaState) -> wire_quotas.QuotaState:
    """Limits and use."""
    quota, use = state.quota, state.use
    return wire_quotas.QuotaState(
        subject=state.subject,
        id=state.id,
        quota=wire_quotas.Quota(
            sandboxes=quota.sandboxes,
            cpus=quota.cpus,
            memory_mib=None if quota.memory_bytes is None else quota.memory_bytes // MIB,
            disk_mib=None if quota.disk_bytes is None else quota.disk_bytes // MIB,
            snapshots=quota.snapshots,
            host_ports=quota.host_ports,
            requests_per_minute=quota.requests_per_minute,
            budget=None if quota.budget_nano is None else Decimal(money(quota.budget_nano)),
            budget_period=quota.budget_period.value,
            budget_action=quota.budget_action.value,
        ),
        used=wire_quotas.QuotaUse(
            sandboxes=use.sandboxes,
            cpus=use.cpus,
            memory_mib=use.memory_bytes // MIB,
            disk_mib=use.disk_bytes // MIB,
            snapshots=use.snapshots,
            host_ports=use.host_ports,
            spent=money(use.spent_nano),
            spent_since=optional_timestamp(use.spent_since),
        ),
    )


def query_of(query: wire_quotas.ReportQuery) -> UsageQuery:
    """Which usage is asked for. Raises: Malformed, NotFound."""
    return UsageQuery(
        since=_moment(query.since, "from"),
        until=_moment(query.until, "to"),
        groups=tuple(UsageGroup(group) for group in query.group_by),
        project=query.project,
        key=query.key,
        sandbox=None if query.sandbox is None else _id_of(query.sandbox),
    )


def _id_of(text: str) -> str:
    found = sandbox_ref(text)
    if not is_core_id(found):
        raise Malformed("sandbox must be an id, such as sb_0123456789abcdef", where=Where.QUERY, field="sandbox")
    return found


def _moment(text: str | None, field: str) -> float | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise Malformed(
            f"{field} must be a day (2026-11-21) or a time (2026-11-21T09:00:00Z)", where=Where.QUERY, field=field
        ) from error


def report_answer(report: UsageReport, query: wire_quotas.ReportQuery) -> Answer:
    """A report in the form that was asked for. A table's next page is named by the header `next-cursor`."""
    lines = tuple(_line(row, report.bills.get(row.sandbox or "")) for row in report.rows)
    if query.format == "json":
        return Json(wire_quotas.UsageReport(usage=lines, cursor=report.cursor))
    headers: Headers = [] if report.cursor is None else [(b"next-cursor", report.cursor.encode())]
    if query.format == "ndjson":
        return Raw(b"".join(_ENCODE(line) + b"\n" for line in lines), b"application/x-ndjson", headers=headers)
    return Raw(_table(lines), b"text/csv; charset=utf-8", headers=headers)


def _table(lines: tuple[wire_quotas.UsageLine, ...]) -> bytes:
    columns = (*_FIRST, *wire_quotas.Amounts.__struct_fields__)
    text = io.StringIO()
    writer = csv.writer(text)  # RFC 4180
    writer.writerow(columns)
    for line in lines:
        values = (getattr(line, column) for column in columns)
        writer.writerow(["" if value in {UNSET, None} else value for value in values])
    return text.getvalue().encode()


def _line(row: UsageRow, bill: SandboxUsage | None) -> wire_quotas.UsageLine:
    return wire_quotas.UsageLine(
        at=UNSET if row.at is None else timestamp(row.at),
        project=UNSET if row.project is None else row.project,
        key=UNSET if row.key is None else row.key,
        sandbox=UNSET if row.sandbox is None else sandbox_id(row.sandbox),
        name=UNSET if bill is None else bill.name,
        started_at=UNSET if bill is None else timestamp(bill.started_at),
        ended_at=UNSET if bill is None else optional_timestamp(bill.ended_at),
        sandboxes=row.sandboxes,
        **asdict(amounts_view(row.amounts)),
    )


def amounts_view(amounts: Amounts) -> wire_quotas.Amounts:
    """Amounts in seconds. The whole numbers they are made of are below 2^53, so nothing is lost but the last digits."""
    return wire_quotas.Amounts(
        running_s=amounts.running_ms / 1000,
        paused_s=amounts.paused_ms / 1000,
        vcpu_s=amounts.vcpu_us / 10**6,
        gib_s=amounts.mib_ms / (1024 * 1000),
        cpu_s=amounts.cpu_ms / 1000,
        sent_bytes=amounts.sent_bytes,
        received_bytes=amounts.received_bytes,
        cost=money(amounts.cost_nano),
    )


def bill_view(bill: SandboxUsage) -> wire_quotas.Bill:
    """All of one sandbox."""
    return wire_quotas.Bill(
        sandbox=sandbox_id(bill.sandbox),
        project=bill.project,
        key=bill.key,
        name=bill.name,
        started_at=timestamp(bill.started_at),
        ended_at=optional_timestamp(bill.ended_at),
        memory_peak_bytes=bill.memory_peak_bytes,
        disk_bytes=bill.disk_bytes,
        **asdict(amounts_view(bill.amounts)),
    )
