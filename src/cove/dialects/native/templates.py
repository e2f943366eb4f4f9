"""Operations on templates: `POST /templates/{template}/sandboxes` takes the body of a restore."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET

from cove.core.templates import TemplateSpec
from cove.dialects.native import wire_templates as wire
from cove.dialects.native.created import created
from cove.dialects.native.snapshots import MAKING, ONCE
from cove.dialects.native.times import timestamp
from cove.dialects.native.translate_snapshots import restore_of, snapshot_id, snapshot_ref
from cove.dialects.native.wire import Sandbox
from cove.dialects.native.wire_snapshots import Restore
from cove.edge.ops import Call, Json, Nothing, Op, Raw, empty
from cove.model.access import Scope
from cove.model.errors import CapacityExceeded, Conflict, NotFound
from cove.model.template import TemplateState

TAG: Final = "Templates"


def view(state: TemplateState) -> wire.Template:
    """A template as the wire has it."""
    template = state.template
    return wire.Template(
        name=template.name,
        snapshot=snapshot_id(template.snapshot),
        snapshot_name=state.snapshot_name or None,
        ready=template.ready,
        ready_now=state.ready_now,
        claimed=state.claimed,
        missed=state.missed,
        reason=state.reason,
        created_at=timestamp(template.created_at),
        created_by=template.created_by,
    )


async def list_templates(call: Call[None, Nothing]) -> Json:
    """All of the project."""
    return Json(wire.TemplateList(tuple(map(view, call.core.templates.list(call.who)))))


async def show_template(call: Call[None, Nothing]) -> Json:
    """One."""
    return Json(view(call.core.templates.get(call.who, call.path["template"])))


async def set_template(call: Call[wire.TemplateWish, Nothing]) -> Json:
    """Make or change one."""
    body = call.body
    spec = TemplateSpec(snapshot=UNSET if body.snapshot is None else snapshot_ref(body.snapshot), ready=body.ready)
    return Json(view(await call.core.templates.set(call.who, call.path["template"], spec)))


async def create_from_template(call: Call[Restore, Nothing]) -> Json:
    """Make a sandbox of one."""
    name, spec = call.path["template"], restore_of(call.body)
    made = await call.core.templates.create(call.who, name, spec, idempotency=call.idempotency())
    return created(call.exchange, made)


async def remove_template(call: Call[None, Nothing]) -> Raw:
    """Forget one."""
    await call.core.templates.remove(call.who, call.path["template"])
    return empty()


OPS: Final = (
    Op(
        method="GET",
        path="/templates",
        handler=list_templates,
        summary="List templates",
        tag=TAG,
        answer=wire.TemplateList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="GET",
        path="/templates/{template}",
        handler=show_template,
        summary="Show a template",
        tag=TAG,
        answer=wire.Template,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PUT",
        path="/templates/{template}",
        handler=set_template,
        summary="Make or change a template",
        description="A name for a snapshot. `ready` copies of it are kept ready to be claimed: they are started and "
        "stand still. What was made of it before goes on.",
        tag=TAG,
        body=wire.TemplateWish,
        answer=wire.Template,
        scopes=(Scope.ADMIN,),
        errors=(NotFound, Conflict, CapacityExceeded),
    ),
    Op(
        method="POST",
        path="/templates/{template}/sandboxes",
        handler=create_from_template,
        summary="Make a sandbox of a template",
        description="As a restore of its snapshot, in milliseconds where a copy is ready.",
        tag=TAG,
        body=Restore,
        answer=Sandbox,
        status=201,
        scopes=(Scope.CREATE,),
        errors=MAKING,
        headers=ONCE,
        watched=True,
    ),
    Op(
        method="DELETE",
        path="/templates/{template}",
        handler=remove_template,
        summary="Remove a template",
        description="Its snapshot stays, and what was made of it goes on.",
        tag=TAG,
        status=204,
        scopes=(Scope.ADMIN,),
        errors=(NotFound,),
    ),
)
