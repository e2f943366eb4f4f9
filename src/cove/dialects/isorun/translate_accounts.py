"""Between the core's bills and isorun's. Pure."""

from __future__ import annotations

from typing import Final

from cove.core.usage import UsageTotals
from cove.dialects.isorun import wire
from cove.dialects.isorun.translate import cents, number, run_id, timestamp, uptime_ms, whole_ms
from cove.model.sandbox import MIB, Sandbox
from cove.model.usage import SandboxUsage

_VCPU_SECOND: Final = 1e6
_GIB_SECOND: Final = 1024 * 1000
"""MiB-milliseconds in a GiB-second."""


def past_view(sandbox: Sandbox, bill: SandboxUsage | None, region: str) -> wire.PastRun:
    """A run that has ended; without a bill it cost nothing that is still known."""
    ended_at = sandbox.created_at if sandbox.ended_at is None else sandbox.ended_at
    return wire.PastRun(
        id=run_id(sandbox.id),
        image=sandbox.image,
        vcpus=number(sandbox.limits.cpus),
        mem_mib=sandbox.limits.memory_bytes // MIB,
        region=region,
        create_ms=whole_ms(sandbox.create_ms),
        created_at=timestamp(sandbox.created_at),
        destroyed_at=timestamp(ended_at),
        uptime_ms=uptime_ms(sandbox),
        cost_cents=0.0 if bill is None else cents(bill.amounts.cost_nano),
        cpu_ms=sandbox.usage.cpu_ms,
        mem_peak_bytes=sandbox.usage.memory_peak_bytes,
    )


def usage_view(totals: UsageTotals) -> wire.Usage:
    """All together."""
    active, ended = totals.active, totals.ended
    both = active + ended
    return wire.Usage(
        active_sandboxes=totals.active_count,
        history_sandboxes=totals.ended_count,
        active_cost_cents=cents(active.cost_nano),
        history_cost_cents=cents(ended.cost_nano),
        total_cost_cents=cents(both.cost_nano),
        cpu_seconds=both.vcpu_us / _VCPU_SECOND,
        mem_seconds=both.mib_ms / _GIB_SECOND,
        as_of=timestamp(totals.at),
    )
