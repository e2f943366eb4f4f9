"""What goes over the wire in the native API about watches: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from cove.dialects.native.wire import Path, Request

Kind = Literal["create", "modify", "attributes", "remove", "move"]


class Start(Request, frozen=True):
    """A directory to watch."""

    path: Path
    recursive: Annotated[bool, Meta(description="Also all directories below, those made later too.")] = True
    kinds: Annotated[tuple[Kind, ...], Meta(max_length=5, description="Empty: all.")] = ()
    glob: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=1024,
                description="Only these: `*.py` by name, `src/**/*.py` by path below the directory.",
            ),
        ]
        | None
    ) = None
    keep_events: Annotated[int, Meta(ge=16, le=65536, description="How many are kept; the oldest are dropped.")] = 4096


class EventsQuery(Request, frozen=True):
    """Which events. `follow`: as server-sent events, until the watch ends."""

    cursor: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    limit: Annotated[int, Meta(ge=1, le=10000)] = 1000
    follow: bool = False
    wait_s: Annotated[
        float, Meta(ge=0, le=600, description="Without `follow`: how long to wait where there is nothing yet.")
    ] = 0.0


class Watch(Struct, frozen=True, kw_only=True):
    """A watch; `cursor` is behind its last event. `ended` null: it goes on."""

    id: str
    path: str
    recursive: bool
    kinds: tuple[Kind, ...]
    glob: str | None
    started_at: str
    ended: str | None
    cursor: int
    oldest_cursor: int


class WatchList(Struct, frozen=True):
    """The watches that the sandbox knows."""

    watches: tuple[Watch, ...]


class Change(Struct, frozen=True, kw_only=True):
    """Data of `change`. `source` only for a move: where it was. `overflow`: events were lost, look at everything."""

    kind: Literal["create", "modify", "attributes", "remove", "move", "overflow"]
    path: str
    directory: bool
    at: str
    source: str | UnsetType = UNSET


class GapEvent(Struct, frozen=True):
    """Data of `gap`: so many events are no longer kept."""

    lost_events: int


class EndedEvent(Struct, frozen=True):
    """Data of `ended`. `cursor` null: the sandbox ended."""

    why: str
    cursor: int | None


class PausedEvent(Struct, frozen=True):
    """Data of `paused`: the end of what there is so far."""

    cursor: int


class EventPage(Struct, frozen=True, kw_only=True):
    """Events in their order; go on at `cursor`. `ended`: why, once all events of an ended watch were read."""

    events: tuple[Change, ...]
    lost_events: int
    cursor: int
    ended: str | None
