"""What callers ask of sandboxes beyond making one: filters, pages, changes, idempotency. Frozen values, no I/O."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Struct, UnsetType, field

from cove.model.sandbox import IdleAction, Sandbox
from cove.model.state import FINAL, State

UNENDED: Final = frozenset(State) - FINAL
"""What a list shows unless the caller names states: everything that has not ended."""

PAGE_LIMIT: Final = 1000
"""Most objects on one page, of sandboxes and of directory entries."""


class SandboxFilter(Struct, frozen=True, kw_only=True):
    """Which sandboxes a list shows. None: any. `metadata` must all be equal; `states` empty: the unended."""

    states: frozenset[State] = frozenset()
    image: str | None = None
    driver: str | None = None
    name: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])


class SandboxPage(Struct, frozen=True, kw_only=True):
    """One page, newest first. `cursor` None: that was the last page."""

    sandboxes: tuple[Sandbox, ...]
    cursor: str | None


class SandboxChange(Struct, frozen=True, kw_only=True):
    """What to change in a live sandbox; UNSET: leave as it is.

    `timeout_s` counts from now, None: never expires. `idle_timeout_s` None: never idle. `metadata` is merged
    into the present one; a value of None removes that key.
    """

    timeout_s: float | UnsetType | None = UNSET
    idle_timeout_s: float | UnsetType | None = UNSET
    idle_action: IdleAction | UnsetType = UNSET
    auto_resume: bool | UnsetType = UNSET
    name: str | UnsetType = UNSET
    metadata: dict[str, str | None] | UnsetType = UNSET
    cpus: float | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    pids: int | UnsetType = UNSET


class Idempotency(Struct, frozen=True, kw_only=True):
    """A caller's promise that two requests are the same one: its key and the hash of the request's body."""

    key: str
    body_sha256: str
