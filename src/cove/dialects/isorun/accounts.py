"""What runs cost: those that have ended, and all together."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.dialects.isorun.translate import ENDED
from cove.dialects.isorun.translate_accounts import past_view, usage_view
from cove.edge.ops import Call, Json, Op
from cove.model.access import Scope

TAG: Final = "Usage"


async def list_history(call: Call[wire.Ignored, wire.HistoryQuery]) -> Json:
    """The runs that have ended, newest first."""
    core, region = call.core, call.services.facts.region
    found = await core.sandboxes.every(call.who, ENDED, most=call.query.limit)
    bills = await core.usage.bills(call.who, found)
    past = (past_view(one, bills.get(one.id), region) for one in found if one.source is not None)
    return Json(wire.History(tuple(past)))


async def show_usage(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """What all runs cost."""
    return Json(usage_view(await call.core.usage.totals(call.who)))


OPS: Final = (
    Op(
        method="GET",
        path="/v1/runs/history",
        handler=list_history,
        summary="List runs that have ended",
        description="Newest first, for 30 days.",
        tag=TAG,
        body=wire.Ignored,
        query=wire.HistoryQuery,
        answer=wire.History,
        scopes=(Scope.READ,),
    ),
    Op(
        method="GET",
        path="/v1/usage",
        handler=show_usage,
        summary="Show what runs used and cost",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.Usage,
        scopes=(Scope.READ,),
    ),
)
