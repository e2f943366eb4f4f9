"""Operations on usage and quotas."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_quotas
from cove.dialects.native.translate import sandbox_ref
from cove.dialects.native.translate_quotas import bill_view, query_of, quota_of, quota_view, report_answer
from cove.edge.ops import Answer, Call, Json, Nothing, Op
from cove.model.access import Scope
from cove.model.errors import NotFound

TAG: Final = "Usage and quotas"


async def show_usage(call: Call[None, wire_quotas.ReportQuery]) -> Answer:
    """A report."""
    query = call.query
    report = await call.core.usage.report(call.who, query_of(query), limit=query.limit, cursor=query.cursor)
    return report_answer(report, query)


async def show_bill(call: Call[None, Nothing]) -> Json:
    """All of one sandbox."""
    return Json(bill_view(await call.core.usage.of_sandbox(call.who, sandbox_ref(call.path["id"]))))


async def show_own_quotas(call: Call[None, Nothing]) -> Json:
    """All that limits the caller."""
    return Json(wire_quotas.QuotaList(tuple(map(quota_view, await call.core.quotas.of_caller(call.who)))))


async def show_project_quota(call: Call[None, Nothing]) -> Json:
    """A project's."""
    return Json(quota_view(await call.core.quotas.of_project(call.who, call.path["project"])))


async def set_project_quota(call: Call[wire_quotas.Quota, Nothing]) -> Json:
    """A project's, anew."""
    return Json(quota_view(await call.core.quotas.set_project(call.who, call.path["project"], quota_of(call.body))))


async def show_key_quota(call: Call[None, Nothing]) -> Json:
    """A key's."""
    return Json(quota_view(await call.core.quotas.of_key(call.who, call.path["key"])))


async def set_key_quota(call: Call[wire_quotas.Quota, Nothing]) -> Json:
    """A key's, anew."""
    return Json(quota_view(await call.core.quotas.set_key(call.who, call.path["key"], quota_of(call.body))))


OPS: Final = (
    Op(
        method="GET",
        path="/usage",
        handler=show_usage,
        summary="Report usage and cost",
        description="Of the caller's project, for an admin of all; up to now. `group_by` may be given three times.",
        tag=TAG,
        query=wire_quotas.ReportQuery,
        answer=wire_quotas.UsageReport,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/usage",
        handler=show_bill,
        summary="Show what a sandbox used and costs",
        description="Also long after its end, by its id.",
        tag=TAG,
        answer=wire_quotas.Bill,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="GET",
        path="/quota",
        handler=show_own_quotas,
        summary="Show all that limits the caller",
        tag=TAG,
        answer=wire_quotas.QuotaList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="GET",
        path="/projects/{project}/quota",
        handler=show_project_quota,
        summary="Show a project's quota",
        tag=TAG,
        answer=wire_quotas.QuotaState,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PUT",
        path="/projects/{project}/quota",
        handler=set_project_quota,
        summary="Set a project's quota",
        description="The whole of it: what is left out is not limited. Nothing that is there ends.",
        tag=TAG,
        body=wire_quotas.Quota,
        answer=wire_quotas.QuotaState,
        scopes=(Scope.ADMIN,),
        errors=(NotFound,),
    ),
    Op(
        method="GET",
        path="/keys/{key}/quota",
        handler=show_key_quota,
        summary="Show a key's quota",
        description="One's own; with the scope `keys` those of the project's keys.",
        tag=TAG,
        answer=wire_quotas.QuotaState,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PUT",
        path="/keys/{key}/quota",
        handler=set_key_quota,
        summary="Set a key's quota",
        description="The whole of it. It only narrows the project's, and holds for keys that this key made, too.",
        tag=TAG,
        body=wire_quotas.Quota,
        answer=wire_quotas.QuotaState,
        scopes=(Scope.ADMIN,),
        errors=(NotFound,),
    ),
)
