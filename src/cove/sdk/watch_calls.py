"""The requests about watches, as data, and their answers. Pure; both surfaces use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cove.sdk.errors import BadAnswer, BadRequest, from_problem
from cove.sdk.file_calls import file_path
from cove.sdk.models import time_of
from cove.sdk.sse import EventParser
from cove.sdk.transport import Call, Retry
from cove.sdk.wire import box_path, checked, items_of, nothing, quoted

PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a path: `kind` is `create`, `modify`, `attributes`, `remove`, `move` or `overflow`.

    `source` is where a moved path was before. `overflow`: events were lost inside, look at the whole directory again.
    `lost` events before this one are no longer kept.
    """

    kind: str
    path: str
    source: str | None
    directory: bool
    at: datetime | None
    lost: int = 0


@dataclass(frozen=True, slots=True)
class WatchInfo:
    """A watch as the server describes it; `ended` says why it ended, None: it goes on."""

    id: str
    path: str
    recursive: bool
    kinds: tuple[str, ...]
    glob: str | None
    started_at: datetime | None
    ended: str | None
    cursor: int
    oldest_cursor: int
    raw: dict[str, Any]


class ChangeReader:
    """Feed it the bytes of an event stream, or a page; it yields changes.

    Attributes:
        seen: the cursor behind the last one.
        ended: why the watch ended, set by the last event.
    """

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen
        self.ended: str | None = None
        self._lost = 0
        self._parser = EventParser()

    def restart(self) -> None:
        """Forget a half-received event, before reading on over another connection."""
        self._parser = EventParser()

    def feed(self, piece: bytes) -> Iterator[Change]:
        """Take the next bytes of the stream and yield the changes in them.

        Raises: the Error that the stream ends in; BadAnswer.
        """
        for event, data in self._parser.feed(piece):
            fields = _fields(data)
            match event:
                case "change":
                    yield self._change(fields)
                case "gap":
                    self._skip(int(fields.get("lost_events") or 0))
                case "ended":
                    self.ended = str(fields.get("why") or "stopped")
                case "error":
                    raise from_problem(fields, status=int(fields.get("status") or 0))
                case _:  # a later server may say more
                    pass

    def page(self, wire: dict[str, Any]) -> list[Change]:
        """Read a page and move `seen` behind it."""
        self._skip(int(wire.get("lost_events") or 0))
        changes = [self._change(one) for one in wire.get("events") or ()]
        self.seen = int(wire.get("cursor") or self.seen)
        self.ended = wire.get("ended") or self.ended
        return changes

    def _skip(self, lost: int) -> None:
        self.seen += lost
        self._lost += lost

    def _change(self, wire: dict[str, Any]) -> Change:
        self.seen += 1
        lost, self._lost = self._lost, 0
        return Change(
            kind=str(wire.get("kind") or ""),
            path=str(wire.get("path") or ""),
            source=wire.get("source"),
            directory=bool(wire.get("directory")),
            at=time_of(wire.get("at")),
            lost=lost,
        )


def start(  # noqa: PLR0913 - the wire's own options
    ref: str, path: str, *, recursive: bool, kinds: Iterable[str] | None, glob: str | None, keep_events: int | None
) -> Call[WatchInfo]:
    """POST …/watches."""
    body: dict[str, Any] = {"path": file_path(path), "recursive": recursive}
    if kinds is not None:
        body["kinds"] = [kinds] if isinstance(kinds, str) else list(kinds)
    if glob is not None:
        body["glob"] = glob
    if keep_events is not None:
        body["keep_events"] = keep_events
    return Call("POST", box_path(ref, "/watches"), _watch, json=body)


def watches(ref: str) -> Call[list[WatchInfo]]:
    """GET …/watches."""
    return Call("GET", box_path(ref, "/watches"), items_of("watches", _watch), retry=Retry.LOST)


def get(ref: str, watch_id: str) -> Call[WatchInfo]:
    """GET …/watches/{watch}."""
    return Call("GET", _path(ref, watch_id), _watch, retry=Retry.LOST)


def stop(ref: str, watch_id: str) -> Call[None]:
    """DELETE …/watches/{watch}."""
    return Call("DELETE", _path(ref, watch_id), nothing, retry=Retry.LOST)


def events(ref: str, watch_id: str, *, cursor: int, limit: int, wait_s: float | None) -> Call[dict[str, Any]]:
    """GET …/events: what is there now, from `cursor`."""
    query = {"cursor": str(cursor), "limit": str(limit)}
    if wait_s:
        query["wait_s"] = str(wait_s)
    return Call("GET", _path(ref, watch_id, "/events"), checked, query=query, retry=Retry.LOST)


def follow(ref: str, watch_id: str, *, cursor: int) -> Call[None]:
    """GET …/events?follow=true: server-sent events, to the watch's end."""
    query = {"cursor": str(cursor), "follow": "true"}
    head = {"accept": "text/event-stream"}
    return Call("GET", _path(ref, watch_id, "/events"), nothing, query=query, headers=head)


def _path(ref: str, watch_id: str, rest: str = "") -> str:
    if not watch_id or watch_id in {".", ".."}:
        raise BadRequest(f'"{watch_id}" names no watch', field="id")
    return box_path(ref, f"/watches/{quoted(watch_id)}{rest}")


def _watch(wire: Any) -> WatchInfo:
    raw = checked(wire)
    return WatchInfo(
        id=str(raw.get("id") or ""),
        path=str(raw.get("path") or ""),
        recursive=bool(raw.get("recursive")),
        kinds=tuple(raw.get("kinds") or ()),
        glob=raw.get("glob"),
        started_at=time_of(raw.get("started_at")),
        ended=raw.get("ended"),
        cursor=int(raw.get("cursor") or 0),
        oldest_cursor=int(raw.get("oldest_cursor") or 0),
        raw=raw,
    )


def _fields(data: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise BadAnswer("the server sent an event that is not JSON") from error
    return fields if isinstance(fields, dict) else {}  # pyright: ignore[reportUnknownVariableType]
