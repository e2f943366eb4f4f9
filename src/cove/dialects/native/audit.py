"""Operations on the audit trail."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_audit as wire
from cove.dialects.native.translate import sandbox_ref
from cove.dialects.native.translate_audit import encode_line, filter_of, page_view, sandbox_filter_of
from cove.edge.ndjson import MEDIA_TYPE, Lines
from cove.edge.ops import Answer, Call, Json, Op
from cove.model.access import Scope
from cove.model.errors import NotFound

TAG: Final = "Audit"
FOLLOW: Final = (
    "With `follow=true` lines as they come, as NDJSON, from after `cursor` on (none: from now on); the connection is "
    "closed only by the caller, or by a server that stops, which says so in a last line."
)


async def list_audit(call: Call[None, wire.LinesQuery]) -> Answer:
    """Of a project."""
    query, trail, wanted = call.query, call.core.trail, filter_of(call.query)
    if query.follow:
        return Lines(trail.follow(call.who, wanted, project=query.project, cursor=query.cursor), encode_line)
    page = await trail.page(
        call.who, wanted, project=query.project, limit=query.limit, cursor=query.cursor, newest=query.newest
    )
    return Json(page_view(page))


async def list_sandbox_audit(call: Call[None, wire.SandboxLinesQuery]) -> Answer:
    """Of a sandbox."""
    query, trail = call.query, call.core.trail
    wanted = sandbox_filter_of(call.path["id"], query)
    if query.follow:
        return Lines(trail.follow(call.who, wanted, cursor=query.cursor), encode_line)
    page = await trail.page(call.who, wanted, limit=query.limit, cursor=query.cursor, newest=query.newest)
    return Json(page_view(page))


async def export_audit(call: Call[None, wire.ExportQuery]) -> Answer:
    """All of it, to be verified."""
    sandbox = None if call.query.sandbox is None else sandbox_ref(call.query.sandbox)
    source = call.core.trail.export(call.who, sandbox=sandbox, project=call.query.project)
    return Lines(source, lambda line: line + b"\n")


async def show_audit_key(call: Call[None, wire.KeyQuery]) -> Json:
    """For whoever verifies."""
    return Json(wire.VerificationKey(*await call.core.trail.key(call.who, call.query.project)))


OPS: Final = (
    Op(
        method="GET",
        path="/audit",
        handler=list_audit,
        summary="Read the audit trail",
        description=FOLLOW,
        tag=TAG,
        query=wire.LinesQuery,
        answer=wire.LinePage,
        scopes=(Scope.READ,),
        errors=(NotFound,),
        watched=True,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/audit",
        handler=list_sandbox_audit,
        summary="Read a sandbox's audit trail",
        description="Also of one that has ended. " + FOLLOW,
        tag=TAG,
        query=wire.SandboxLinesQuery,
        answer=wire.LinePage,
        scopes=(Scope.READ,),
        errors=(NotFound,),
        watched=True,
    ),
    Op(
        method="GET",
        path="/audit/export",
        handler=export_audit,
        summary="Export the audit trail",
        description="Every line that is kept, and a signed head as the last one; `cove audit verify` checks it "
        "anywhere. A stream without a head was cut.",
        tag=TAG,
        query=wire.ExportQuery,
        media_type=MEDIA_TYPE,
        scopes=(Scope.READ,),
        errors=(NotFound,),
        watched=True,
    ),
    Op(
        method="GET",
        path="/audit/key",
        handler=show_audit_key,
        summary="Show the key that verifies exports",
        description="Whoever has it could also forge them. That it was shown is a line of the trail.",
        tag=TAG,
        query=wire.KeyQuery,
        answer=wire.VerificationKey,
        scopes=(Scope.ADMIN,),
        errors=(NotFound,),
    ),
)
