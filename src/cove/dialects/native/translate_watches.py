"""Between the native wire format and the core's values, for watches. Pure functions, no decisions."""

from __future__ import annotations

from typing import Final, cast

import msgspec
from msgspec import UNSET

from cove.dialects.native import wire_watches as wire
from cove.dialects.native.times import timestamp
from cove.edge.sse import event
from cove.model.watches import Change, ChangeKind, Lost, Watch, WatchEnded, WatchEvent, WatchPaused, WatchSpec

_ENCODE: Final = msgspec.json.Encoder().encode


def watch_of(body: wire.Start) -> WatchSpec:
    """What to watch."""
    return WatchSpec(
        path=body.path,
        recursive=body.recursive,
        kinds=frozenset(map(ChangeKind, body.kinds)),
        glob=body.glob,
        keep_events=body.keep_events,
    )


def watch_view(watch: Watch) -> wire.Watch:
    """A watch."""
    return wire.Watch(
        id=watch.id,
        path=watch.path,
        recursive=watch.recursive,
        kinds=cast("tuple[wire.Kind, ...]", tuple(kind.value for kind in watch.kinds)),
        glob=watch.glob,
        started_at=timestamp(watch.started_at),
        ended=None if watch.ended is None else watch.ended.value,
        cursor=watch.cursor,
        oldest_cursor=watch.oldest_cursor,
    )


def change_view(change: Change) -> wire.Change:
    """One event."""
    return wire.Change(
        kind=change.kind.value,
        path=change.path,
        directory=change.is_directory,
        at=timestamp(change.at),
        source=UNSET if change.source is None else change.source,
    )


def page_view(events: list[WatchEvent], cursor: int) -> wire.EventPage:
    """A page of events."""
    changes: list[wire.Change] = []
    lost, ended = 0, None
    for one in events:
        match one:
            case Change():
                changes.append(change_view(one))
            case Lost(count):
                lost += count
            case WatchEnded(why):
                ended = why.value
            case WatchPaused():
                pass
        cursor = one.cursor if one.cursor is not None else cursor
    return wire.EventPage(events=tuple(changes), lost_events=lost, cursor=cursor, ended=ended)


def encode_event(one: WatchEvent) -> bytes:
    """A server-sent event; its id is the cursor to go on from."""
    match one:
        case Change():
            return event(b"change", _ENCODE(change_view(one)), id_=one.cursor)
        case Lost(count):
            return event(b"gap", _ENCODE(wire.GapEvent(count)), id_=one.cursor)
        case WatchEnded(why, cursor):
            return event(b"ended", _ENCODE(wire.EndedEvent(why.value, cursor)), id_=cursor)
        case WatchPaused(cursor):
            return event(b"paused", _ENCODE(wire.PausedEvent(cursor)), id_=cursor)
