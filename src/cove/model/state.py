"""The sandbox state machine, as data. Pure; the only table of transitions.

::

    pending ──> running <──> paused
       │          │ ^          │
       │          v │          v
       │       hibernated <────┘
       v          v
    failed     stopping ──> terminated

`pending` is the intent written before anything exists. `hibernated` has no processes and takes no memory: all of it
lies on the disk. `stopping` is the intent to end. `terminated` and `failed` are final; `failed` means that Cove or the
machine, not the caller, ended it.

To add a state: add it here with its row, then the drawing, then `docs/reference/lifecycle.md`;
`tests/unit/model/test_state.py` walks the table.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class State(StrEnum):
    """Where a sandbox is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    HIBERNATED = "hibernated"
    STOPPING = "stopping"
    TERMINATED = "terminated"
    FAILED = "failed"


TRANSITIONS: Final = MappingProxyType(
    {
        State.PENDING: frozenset({State.RUNNING, State.STOPPING, State.FAILED}),
        State.RUNNING: frozenset({State.PAUSED, State.HIBERNATED, State.STOPPING, State.FAILED}),
        State.PAUSED: frozenset({State.RUNNING, State.HIBERNATED, State.STOPPING, State.FAILED}),
        State.HIBERNATED: frozenset({State.RUNNING, State.STOPPING, State.FAILED}),
        State.STOPPING: frozenset({State.TERMINATED, State.FAILED}),
        State.TERMINATED: frozenset[State](),
        State.FAILED: frozenset[State](),
    },
)

FINAL: Final = frozenset({State.TERMINATED, State.FAILED})
"""States that nothing leaves."""

LIVE: Final = frozenset({State.RUNNING, State.PAUSED})
"""States in which processes exist on this machine."""


def may_move(source: State, target: State) -> bool:
    """Whether the table allows `source` -> `target`."""
    return target in TRANSITIONS[source]


class EndReason(StrEnum):
    """Why a sandbox ended."""

    REQUESTED = "requested"
    EXPIRED = "expired"
    IDLE = "idle"
    CREATE_FAILED = "create-failed"
    DIED = "died"
    OUT_OF_MEMORY = "out-of-memory"
    LOST = "lost"
    DAMAGED = "damaged"
    BUDGET = "budget"
    SHUTDOWN = "shutdown"
