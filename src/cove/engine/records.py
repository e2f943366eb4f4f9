"""A sandbox's record after a move. Pure; the state table is in `model/state.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace

from cove.model.errors import Conflict, CoveError, Gone
from cove.model.network import NetworkUse
from cove.model.sandbox import Sandbox, Usage
from cove.model.state import FINAL, EndReason, State, may_move

FAILURES: Final = frozenset({EndReason.DIED, EndReason.OUT_OF_MEMORY, EndReason.CREATE_FAILED})
"""Ends that nobody asked for: state `failed`. All others are `terminated`."""


def moved(sandbox: Sandbox, state: State, **facts: object) -> Sandbox:
    """The record in another state. Raises: Conflict when the table forbids the move."""
    if not may_move(sandbox.state, state):
        raise Conflict(f"the sandbox is {sandbox.state.value}")
    return replace(sandbox, state=state, **facts)


def ended(sandbox: Sandbox, reason: EndReason, detail: str | None, *, at: float) -> Sandbox:
    """The last record."""
    state = State.FAILED if reason in FAILURES else State.TERMINATED
    return replace(sandbox, state=state, end_reason=reason, end_detail=detail, ended_at=at)


def with_network(used: Usage, over_network: NetworkUse) -> Usage:
    """What a box used, with the bytes of its network."""
    return replace(used, sent_bytes=over_network.sent_bytes, received_bytes=over_network.received_bytes)


def ended_error(sandbox: Sandbox) -> CoveError:
    """Why nothing can be done with a sandbox any more (or, while the server stops, now)."""
    if sandbox.state not in FINAL or sandbox.ended_at is None:
        return Conflict("the server is stopping; the sandbox goes on")
    ended_at = datetime.fromtimestamp(sandbox.ended_at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    reason = sandbox.end_reason.value if sandbox.end_reason is not None else "unknown"
    return Gone(f"sandbox {sandbox.name} ended at {ended_at}: {reason}")
