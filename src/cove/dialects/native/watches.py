"""Operations on watches."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_watches as wire
from cove.dialects.native.translate import sandbox_ref
from cove.dialects.native.translate_watches import encode_event, page_view, watch_of, watch_view
from cove.edge.ops import Answer, Call, Json, Nothing, Op, Raw, empty
from cove.edge.sse import LAST_EVENT_ID, Events, resumed_at
from cove.model.access import Scope
from cove.model.errors import (
    AgentTimeout,
    AgentViolation,
    Conflict,
    FileError,
    Gone,
    NotFound,
    SandboxGone,
    Unsupported,
)

TAG: Final = "Watches"
ERRORS: Final = (NotFound, Gone, SandboxGone, AgentTimeout, AgentViolation, Unsupported)


async def start_watch(call: Call[wire.Start, Nothing]) -> Json:
    """Begin to watch."""
    made = await call.core.watches.start(call.who, sandbox_ref(call.path["id"]), watch_of(call.body))
    where = f"/api/v1/sandboxes/{call.path['id']}/watches/{made.id}"
    return Json(watch_view(made), status=201, headers=[(b"location", where.encode())])


async def list_watches(call: Call[None, Nothing]) -> Json:
    """All it knows."""
    found = await call.core.watches.list(call.who, sandbox_ref(call.path["id"]))
    return Json(wire.WatchList(tuple(map(watch_view, found))))


async def get_watch(call: Call[None, Nothing]) -> Json:
    """One."""
    ref = sandbox_ref(call.path["id"])
    return Json(watch_view(await call.core.watches.get(call.who, ref, call.path["watch"])))


async def stop_watch(call: Call[None, Nothing]) -> Raw:
    """End and forget."""
    await call.core.watches.stop(call.who, sandbox_ref(call.path["id"]), call.path["watch"])
    return empty()


async def read_events(call: Call[None, wire.EventsQuery]) -> Answer:
    """What happened: a page, or followed."""
    query = call.query
    cursor = resumed_at(call.exchange.text_header(LAST_EVENT_ID), query.cursor)
    ref, watch = sandbox_ref(call.path["id"]), call.path["watch"]
    source = call.core.watches.events(
        call.who, ref, watch, cursor=cursor, follow=query.follow, limit=query.limit, wait_s=query.wait_s
    )
    if query.follow:
        return Events(source, encode_event)
    async with source as events:
        return Json(page_view([one async for one in events], cursor))


OPS: Final = (
    Op(
        method="POST",
        path="/sandboxes/{id}/watches",
        handler=start_watch,
        summary="Watch a directory",
        description="What happens from the answer on is kept in the sandbox and read from a cursor. The watch outlives "
        "this connection and the server; at most 64.",
        tag=TAG,
        body=wire.Start,
        answer=wire.Watch,
        status=201,
        scopes=(Scope.FILES,),
        errors=(*ERRORS, FileError, Conflict),
        watched=True,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/watches",
        handler=list_watches,
        summary="List watches",
        tag=TAG,
        answer=wire.WatchList,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/watches/{watch}",
        handler=get_watch,
        summary="Show a watch",
        tag=TAG,
        answer=wire.Watch,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="DELETE",
        path="/sandboxes/{id}/watches/{watch}",
        handler=stop_watch,
        summary="End a watch and forget its events",
        tag=TAG,
        status=204,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/watches/{watch}/events",
        handler=read_events,
        summary="Read a watch's events from a cursor",
        description="With `follow=true` an event stream: `change`, `gap`, and last `ended` or `error`, each with its "
        "cursor as `id`. Closing it ends nothing.",
        tag=TAG,
        query=wire.EventsQuery,
        answer=wire.EventPage,
        headers=((LAST_EVENT_ID, "The `id` of the last event seen; wins over `cursor`."),),
        scopes=(Scope.FILES,),
        errors=ERRORS,
        watched=True,
    ),
)
