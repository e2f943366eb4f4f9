"""Snapshots of runs, and the runs that are made of runs."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.dialects.isorun.translate import NAME, run_ref, run_view, snapshot_ref
from cove.dialects.isorun.translate_snapshots import FORK, READY, SPEC, made_view, restore_of, snapshot_view
from cove.edge.ops import Call, Json, Op
from cove.model.access import Scope
from cove.model.errors import CapacityExceeded, Conflict, EngineFailure, NotFound, Unsupported

TAG: Final = "Snapshots"
ERRORS: Final = (NotFound, Conflict, CapacityExceeded, Unsupported, EngineFailure)


async def snapshot_run(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """Keep it as it is now."""
    return Json(made_view(await call.core.snapshots.create(call.who, run_ref(call.path["id"]), SPEC, dialect=NAME)))


async def restore_run(call: Call[wire.Restore, wire.Ignored]) -> Json:
    """Make a run of a snapshot."""
    ref, snapshots = snapshot_ref(call.body.snapshot_id), call.core.snapshots
    made = await snapshots.restore(call.who, ref, restore_of(snapshots.get(call.who, ref)), dialect=NAME)
    return Json(run_view(made, call.services.facts.region))


async def fork_run(call: Call[wire.Fork, wire.Ignored]) -> Json:
    """Make runs of a run."""
    ref, count = run_ref(call.path["id"]), call.body.count or 1
    made = await call.core.snapshots.fork(call.who, ref, FORK, count, dialect=NAME)
    return Json(wire.ForkList(tuple(run_view(one, call.services.facts.region) for one in made)))


async def list_snapshots(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """All of them."""
    found = await call.core.snapshots.every(call.who, READY)
    return Json(wire.SnapshotList(tuple(map(snapshot_view, found))))


async def delete_snapshot(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """Remove one."""
    await call.core.snapshots.delete(call.who, snapshot_ref(call.path["id"]))
    return Json(wire.Deleted(call.path["id"]))


OPS: Final = (
    Op(
        method="POST",
        path="/v1/runs/restore",
        handler=restore_run,
        summary="Make a run of a snapshot",
        tag=TAG,
        body=wire.Restore,
        query=wire.Ignored,
        answer=wire.Run,
        scopes=(Scope.CREATE,),
        errors=ERRORS,
        watched=True,
    ),
    Op(
        method="POST",
        path="/v1/runs/{id}/snapshot",
        handler=snapshot_run,
        summary="Make a snapshot of a run",
        description="With its memory; the run goes on.",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.MadeSnapshot,
        scopes=(Scope.CREATE,),
        errors=ERRORS,
        watched=True,
    ),
    Op(
        method="POST",
        path="/v1/runs/{id}/fork",
        handler=fork_run,
        summary="Make runs of a run",
        description="As many as `count` says, or none. They begin as it is now, with its memory.",
        tag=TAG,
        body=wire.Fork,
        query=wire.Ignored,
        answer=wire.ForkList,
        scopes=(Scope.CREATE,),
        errors=ERRORS,
        watched=True,
    ),
    Op(
        method="GET",
        path="/v1/snapshots",
        handler=list_snapshots,
        summary="List snapshots",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.SnapshotList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="DELETE",
        path="/v1/snapshots/{id}",
        handler=delete_snapshot,
        summary="Delete a snapshot",
        description="What was made of it stays.",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.Deleted,
        scopes=(Scope.DESTROY,),
        errors=(NotFound, Conflict, EngineFailure),
    ),
)
