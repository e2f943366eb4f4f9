"""Operations on sandboxes."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire
from cove.dialects.native.created import created
from cove.dialects.native.translate import change_of, filter_of, page_view, sandbox_ref, sandbox_view, spec_of
from cove.edge.ops import Call, Json, Nothing, Op
from cove.model.access import Scope
from cove.model.errors import (
    CapacityExceeded,
    Conflict,
    EngineFailure,
    Gone,
    IdempotencyConflict,
    NotFound,
    Unsupported,
)

TAG: Final = "Sandboxes"


async def create_sandbox(call: Call[wire.Create, Nothing]) -> Json:
    """Make one."""
    made = await call.core.sandboxes.create(call.who, spec_of(call.body), idempotency=call.idempotency())
    return created(call.exchange, made)


async def list_sandboxes(call: Call[None, wire.SandboxQuery]) -> Json:
    """A page of them."""
    query = call.query
    page = call.core.sandboxes.list(call.who, filter_of(query), limit=query.limit, cursor=query.cursor)
    return Json(page_view(page))


async def get_sandbox(call: Call[None, Nothing]) -> Json:
    """One, with what it uses now."""
    return Json(sandbox_view(await call.core.sandboxes.measure(call.who, sandbox_ref(call.path["id"]))))


async def update_sandbox(call: Call[wire.Update, Nothing]) -> Json:
    """Change timers, limits, name, metadata."""
    ref = sandbox_ref(call.path["id"])
    return Json(sandbox_view(await call.core.sandboxes.update(call.who, ref, change_of(call.body))))


async def destroy_sandbox(call: Call[None, Nothing]) -> Json:
    """End it."""
    return Json(sandbox_view(await call.core.sandboxes.destroy(call.who, sandbox_ref(call.path["id"]))))


async def pause_sandbox(call: Call[None, Nothing]) -> Json:
    """Freeze it."""
    return Json(sandbox_view(await call.core.sandboxes.pause(call.who, sandbox_ref(call.path["id"]))))


async def resume_sandbox(call: Call[wire.Resume, Nothing]) -> Json:
    """Let it go on."""
    ref = sandbox_ref(call.path["id"])
    return Json(sandbox_view(await call.core.sandboxes.resume(call.who, ref, memory=call.body.memory)))


OPS: Final = (
    Op(
        method="POST",
        path="/sandboxes",
        handler=create_sandbox,
        summary="Create a sandbox",
        description="Answers when a command can run in it. All fields are optional.",
        tag=TAG,
        body=wire.Create,
        answer=wire.Sandbox,
        status=201,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Conflict, IdempotencyConflict, CapacityExceeded, Unsupported, EngineFailure),
        headers=(("Idempotency-Key", "The same key and body within 24 hours give the same answer."),),
        watched=True,
    ),
    Op(
        method="GET",
        path="/sandboxes",
        handler=list_sandboxes,
        summary="List sandboxes",
        description="Newest first; without `state`, all that have not ended.",
        tag=TAG,
        query=wire.SandboxQuery,
        answer=wire.SandboxList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}",
        handler=get_sandbox,
        summary="Show a sandbox",
        description="Ended ones are shown for 30 days.",
        tag=TAG,
        answer=wire.Sandbox,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PATCH",
        path="/sandboxes/{id}",
        handler=update_sandbox,
        summary="Change a sandbox",
        description="`timeout_s` counts from now. Metadata is merged; null removes a key.",
        tag=TAG,
        body=wire.Update,
        answer=wire.Sandbox,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Gone, Conflict, CapacityExceeded),
    ),
    Op(
        method="DELETE",
        path="/sandboxes/{id}",
        handler=destroy_sandbox,
        summary="End a sandbox",
        description="Answers with its last state and final usage, again and again.",
        tag=TAG,
        answer=wire.Sandbox,
        scopes=(Scope.DESTROY,),
        errors=(NotFound,),
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/pause",
        handler=pause_sandbox,
        summary="Pause a sandbox",
        description="Its processes stop, memory is kept.",
        tag=TAG,
        answer=wire.Sandbox,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Gone, Conflict),
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/resume",
        handler=resume_sandbox,
        summary="Resume a sandbox",
        description="A paused one where it was, a hibernated one with what `kept` says.",
        tag=TAG,
        body=wire.Resume,
        answer=wire.Sandbox,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Gone, Conflict, CapacityExceeded, EngineFailure),
    ),
)
