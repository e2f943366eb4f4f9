"""A session of executions: a caller's own name for a sandbox that stays between them. Frozen values, no I/O."""

from __future__ import annotations

from msgspec import Struct


class ExecutionSession(Struct, frozen=True, kw_only=True):
    """One row. `id` is the caller's own text, unique in the project; `sandbox` None: none was needed yet.

    `settings`: the `ExecutionSettings` of its first execution, sealed. Times are Unix seconds.
    """

    project: str
    id: str
    runtime: str
    settings: str
    sandbox: str | None
    created_at: float
    last_used_at: float


class SessionInfo(Struct, frozen=True, kw_only=True):
    """What is told of a session. `is_active`: an execution runs in it, or waits."""

    id: str
    runtime: str
    sandbox: str | None
    is_active: bool
    last_used_at: float


class Cleared(Struct, frozen=True, kw_only=True):
    """What became of some objects that were to be removed: how many are gone, and why others are not."""

    removed: int
    errors: tuple[str, ...] = ()
