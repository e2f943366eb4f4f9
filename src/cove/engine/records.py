"""A sandbox's record after a move. Pure; the state table is in `model/state.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace

from cove.model.errors import Conflict, CoveError, Gone
from cove.model.network import NetworkUse
from cove.model.sandbox import Sandbox, TimeoutCounts, Usage
from cove.model.state import FINAL, EndReason, State, may_move

FAILURES: Final = frozenset({EndReason.DIED, EndReason.OUT_OF_MEMORY, EndReason.CREATE_FAILED, EndReason.DAMAGED})
"""Ends that nobody asked for: state `failed`. All others are `terminated`."""

AT_REST: Final = frozenset({State.PAUSED, State.HIBERNATED})
"""Nothing runs in it, and work in it resumes it first."""


def moved(sandbox: Sandbox, state: State, **facts: object) -> Sandbox:
    """The record in another state. Raises: Conflict when the table forbids the move."""
    if not may_move(sandbox.state, state):
        raise Conflict(f"the sandbox is {sandbox.state.value}")
    return replace(sandbox, state=state, **facts)


def ended(sandbox: Sandbox, reason: EndReason, detail: str | None, *, at: float) -> Sandbox:
    """The last record."""
    state = State.FAILED if reason in FAILURES else State.TERMINATED
    return replace(sandbox, state=state, end_reason=reason, end_detail=detail, ended_at=at)


def timed(sandbox: Sandbox, *, now: float, left_s: float) -> Sandbox:
    """The record with its time to live passing, or standing still, as its state has it. `left_s`: what is left now."""
    stands_still = sandbox.timeout_counts is TimeoutCounts.RUNNING and sandbox.state in AT_REST
    if stands_still and sandbox.expires_at is not None:
        return replace(sandbox, expires_at=None, time_left_s=max(left_s, 0.0))
    if not stands_still and sandbox.time_left_s is not None:
        return replace(sandbox, expires_at=now + sandbox.time_left_s, time_left_s=None)
    return sandbox


def summed(before: Usage, now: Usage) -> Usage:
    """What a sandbox has used: in the boxes that it had before, and in the one that it has."""
    return Usage(
        cpu_ms=before.cpu_ms + now.cpu_ms,
        memory_peak_bytes=max(before.memory_peak_bytes, now.memory_peak_bytes),
        memory_bytes=now.memory_bytes,
        disk_bytes=now.disk_bytes,
        oom_kills=before.oom_kills + now.oom_kills,
        pids=now.pids,
        sent_bytes=before.sent_bytes + now.sent_bytes,
        received_bytes=before.received_bytes + now.received_bytes,
    )


def with_network(used: Usage, over_network: NetworkUse) -> Usage:
    """What a box used, with the bytes of its network."""
    return replace(used, sent_bytes=over_network.sent_bytes, received_bytes=over_network.received_bytes)


def at_rest_error(sandbox: Sandbox) -> Conflict:
    """Why there is no work in a sandbox that only its owner resumes."""
    return Conflict(f"the sandbox is {sandbox.state.value}; resume it first", field="state")


def ended_error(sandbox: Sandbox) -> CoveError:
    """Why nothing can be done with a sandbox any more (or, while the server stops, now)."""
    if sandbox.state not in FINAL or sandbox.ended_at is None:
        return Conflict("the server is stopping; the sandbox goes on")
    ended_at = datetime.fromtimestamp(sandbox.ended_at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    reason = sandbox.end_reason.value if sandbox.end_reason is not None else "unknown"
    return Gone(f"sandbox {sandbox.name} ended at {ended_at}: {reason}")
