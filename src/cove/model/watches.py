"""Watched directories of a sandbox: what is asked, what happened. Frozen values, no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

KEPT_EVENTS: Final = 4096
"""How many events the agent keeps of a watch unless told otherwise; the oldest are dropped, and counted as lost."""


class ChangeKind(StrEnum):
    """What happened to a path. A move into or out of what is watched is a `create` or a `remove`."""

    CREATE = "create"
    MODIFY = "modify"
    ATTRIBUTES = "attributes"
    REMOVE = "remove"
    MOVE = "move"
    OVERFLOW = "overflow"
    """The kernel dropped events because too many came: look at the whole directory again."""


ASKABLE: Final = frozenset(ChangeKind) - {ChangeKind.OVERFLOW}
"""The kinds that a watch can be asked for; an overflow is always told."""


class WatchEnd(StrEnum):
    """Why a watch ended."""

    REMOVED = "removed"
    MOVED = "moved"
    LIMIT = "limit"
    STOPPED = "stopped"
    SANDBOX_GONE = "sandbox-gone"


class WatchSpec(Struct, frozen=True, kw_only=True):
    """A directory to watch. `kinds` empty: all. `glob` None: every path; links are not followed."""

    path: str
    recursive: bool = True
    kinds: frozenset[ChangeKind] = frozenset()
    glob: str | None = None
    keep_events: int = KEPT_EVENTS


class Watch(Struct, frozen=True, kw_only=True):
    """A watch. It outlives its caller and the server. `cursor` is behind its last event, counted since its start."""

    id: str
    path: str
    recursive: bool
    kinds: tuple[ChangeKind, ...]
    glob: str | None
    started_at: float
    ended: WatchEnd | None
    cursor: int
    oldest_cursor: int


class Change(Struct, frozen=True, kw_only=True):
    """One event. `source`: where a moved path was before. `cursor` is behind this event: go on there."""

    kind: ChangeKind
    path: str
    source: str | None
    is_directory: bool
    at: float
    cursor: int


class Lost(Struct, frozen=True):
    """`events` before this point are no longer kept; `cursor` is behind them."""

    events: int
    cursor: int


class WatchEnded(Struct, frozen=True):
    """The last one of a watch that has ended, after all its events."""

    why: WatchEnd
    cursor: int | None


class WatchPaused(Struct, frozen=True):
    """The last one of a page: the watch goes on; so do you at `cursor`."""

    cursor: int


WatchEvent = Change | Lost | WatchEnded | WatchPaused
