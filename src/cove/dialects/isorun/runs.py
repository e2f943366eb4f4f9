"""Runs: making, finding, ending them, and their timer."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.dialects.isorun.translate import (
    ACTIVE,
    NAME,
    active,
    change_of,
    destroyed_view,
    run_ref,
    run_view,
    spec_of,
    state_view,
)
from cove.edge.ops import Call, Json, Op
from cove.model.access import Scope
from cove.model.errors import CapacityExceeded, Conflict, EngineFailure, NotFound, Unsupported

TAG: Final = "Runs"


async def create_run(call: Call[wire.Create, wire.Ignored]) -> Json:
    """Make one."""
    made = await call.core.sandboxes.create(call.who, spec_of(call.body), dialect=NAME)
    return Json(run_view(made, call.services.facts.region))


async def list_runs(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """All that have not ended."""
    region = call.services.facts.region
    found = await call.core.sandboxes.every(call.who, ACTIVE)
    return Json(wire.RunList(tuple(run_view(one, region) for one in found)))


async def get_run(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """One."""
    found = active(call.core.sandboxes.get(call.who, run_ref(call.path["id"])))
    return Json(run_view(found, call.services.facts.region))


async def destroy_run(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """End it, and say what it used."""
    core, who = call.core, call.who
    found = active(core.sandboxes.get(who, run_ref(call.path["id"])))
    ended = await core.sandboxes.destroy(who, found.id)
    return Json(destroyed_view(ended, await core.usage.of_sandbox(who, ended.id)))


async def patch_run(call: Call[wire.Patch, wire.Ignored]) -> Json:
    """Begin its timer anew."""
    changed = await call.core.sandboxes.update(call.who, run_ref(call.path["id"]), change_of(call.body))
    return Json(run_view(changed, call.services.facts.region))


async def hibernate_run(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """Bring it to the disk, with its processes."""
    return Json(state_view(await call.core.sandboxes.hibernate(call.who, run_ref(call.path["id"]), memory=True)))


async def resume_run(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """Let it go on."""
    return Json(state_view(await call.core.sandboxes.resume(call.who, run_ref(call.path["id"]))))


OPS: Final = (
    Op(
        method="POST",
        path="/v1/runs",
        handler=create_run,
        summary="Create a run",
        tag=TAG,
        body=wire.Create,
        query=wire.Ignored,
        answer=wire.Run,
        scopes=(Scope.CREATE,),
        errors=(CapacityExceeded, Unsupported, EngineFailure),
        watched=True,
    ),
    Op(
        method="GET",
        path="/v1/runs",
        handler=list_runs,
        summary="List runs",
        description="Running and hibernated ones, newest first.",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.RunList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="GET",
        path="/v1/runs/{id}",
        handler=get_run,
        summary="Show a run",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.Run,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="DELETE",
        path="/v1/runs/{id}",
        handler=destroy_run,
        summary="Destroy a run",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.Destroyed,
        scopes=(Scope.DESTROY,),
        errors=(NotFound,),
    ),
    Op(
        method="PATCH",
        path="/v1/runs/{id}",
        handler=patch_run,
        summary="Begin a run's timer anew",
        description="`timeout` in seconds, 0: never.",
        tag=TAG,
        body=wire.Patch,
        query=wire.Ignored,
        answer=wire.Run,
        scopes=(Scope.CREATE,),
        errors=(NotFound,),
    ),
    Op(
        method="POST",
        path="/v1/runs/{id}/hibernate",
        handler=hibernate_run,
        summary="Hibernate a run",
        description="Its memory and processes go to the disk. One that is hibernated already stays so.",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.State,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Unsupported, EngineFailure),
    ),
    Op(
        method="POST",
        path="/v1/runs/{id}/resume",
        handler=resume_run,
        summary="Resume a run",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.State,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Conflict, CapacityExceeded, EngineFailure),
    ),
)
