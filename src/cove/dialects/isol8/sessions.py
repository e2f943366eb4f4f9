"""Sessions: which there are, and ending them."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from cove.dialects.isol8 import wire_sessions as wire
from cove.dialects.isol8.bodies import lenient
from cove.dialects.isol8.times import timestamp
from cove.edge.errors import NoSuchRoute
from cove.edge.ops import Call, Json, Nothing, Op
from cove.model.access import Scope
from cove.model.executionsession import Cleared, SessionInfo

TAG: Final = "Sessions"
_MARK: Final = b"/session/"


async def list_sessions(call: Call[None, Nothing]) -> Json:
    """Show all."""
    found = call.core.execution_sessions.list(call.who)
    return Json(wire.Sessions([_view(one) for one in found]))


async def delete_session(call: Call[None, Nothing]) -> Json:
    """End one; none is as good."""
    raw: bytes = call.exchange.scope["raw_path"]
    await call.core.execution_sessions.remove(call.who, session_id_of(raw))
    return Json(wire.Ok())


async def clean_up(call: Call[None, Nothing]) -> Json:
    """End all sessions of the caller's project, and what executions left behind. Images are never removed here."""
    order = await lenient(call, wire.CleanupOrder)
    sessions, kept = await call.core.execution_sessions.clear(call.who)
    images = None if order.images is False else _removed(Cleared(removed=0))
    return Json(wire.CleanedUp(ok=True, sessions=_removed(sessions), containers=_removed(kept), images=images))


def session_id_of(raw_path: bytes) -> str:
    """The id in a path, which may be any text, percent-encoded. Raises: NoSuchRoute (a slash that is not)."""
    raw = raw_path.partition(b"?")[0].partition(_MARK)[2]
    if not raw or b"/" in raw:
        raise NoSuchRoute("no operation has this path")
    return unquote(raw.decode("latin-1"), errors="replace")


def _view(one: SessionInfo) -> wire.Session:
    return wire.Session(id=one.id, is_active=one.is_active, last_accessed_at=timestamp(one.last_used_at))


def _removed(cleared: Cleared) -> wire.Removed:
    return wire.Removed(removed=cleared.removed, failed=len(cleared.errors), errors=list(cleared.errors))


OPS: Final = (
    Op(
        method="GET",
        path="/sessions",
        handler=list_sessions,
        name="list_execution_sessions",
        summary="List sessions",
        tag=TAG,
        answer=wire.Sessions,
        scopes=(Scope.READ,),
    ),
    Op(
        method="DELETE",
        path="/session/{id:path}",
        handler=delete_session,
        summary="End a session",
        tag=TAG,
        answer=wire.Ok,
        scopes=(Scope.DESTROY,),
    ),
    Op(
        method="POST",
        path="/cleanup",
        handler=clean_up,
        summary="End all sessions",
        tag=TAG,
        answer=wire.CleanedUp,
        scopes=(Scope.DESTROY,),
        upload=True,
    ),
)
