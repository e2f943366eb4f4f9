"""The audit trail of a run."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.dialects.isorun.auditlines import Teller
from cove.dialects.isorun.translate import run_ref
from cove.edge.ndjson import MEDIA_TYPE, Lines
from cove.edge.ops import Answer, Call, Op
from cove.model.access import Scope
from cove.model.errors import EngineFailure, NotFound

TAG: Final = "Audit"


async def read_audit(call: Call[wire.Ignored, wire.Ignored]) -> Answer:
    """All lines, also of a run that has ended."""
    source = call.core.trail.retold(call.who, run_ref(call.path["id"]), lambda sign: Teller(sign).tell)
    return Lines(source, lambda line: line)


OPS: Final = (
    Op(
        method="GET",
        path="/v1/runs/{id}/audit",
        handler=read_audit,
        summary="Read the audit trail of a run",
        description="One line per event, each with an HMAC over itself and the one before. `cove audit verify` checks "
        "it, with what `cove audit key` prints.",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        media_type=MEDIA_TYPE,
        scopes=(Scope.READ,),
        errors=(NotFound, EngineFailure),
    ),
)
