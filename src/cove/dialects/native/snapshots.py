"""Operations on the state of sandboxes: hibernate, snapshot, restore, fork, roll back, and snapshots as such."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from cove.dialects.native import wire, wire_snapshots
from cove.dialects.native.created import created
from cove.dialects.native.translate import sandbox_ref, sandbox_view
from cove.dialects.native.translate_snapshots import (
    change_of,
    filter_of,
    forked_view,
    page_view,
    restore_of,
    snapshot_ref,
    snapshot_view,
    spec_of,
)
from cove.edge.download import Download, Reader
from cove.edge.interrupt import interruptible
from cove.edge.ops import Answer, Call, Json, Nothing, Op, Raw, empty
from cove.model.access import Scope
from cove.model.errors import (
    CapacityExceeded,
    Conflict,
    EngineFailure,
    Gone,
    IdempotencyConflict,
    NotFound,
    TooLarge,
    Unsupported,
)

TAG: Final = "Snapshots"
ZSTD: Final = "application/zstd"
OF_SANDBOX: Final = "/sandboxes/{id}"
ONE: Final = "/snapshots/{snapshot}"
ONCE: Final = (("Idempotency-Key", "The same key and body within 24 hours give the same answer."),)
SAVING: Final = (NotFound, Gone, Conflict, CapacityExceeded, Unsupported, EngineFailure)
MAKING: Final = (NotFound, Conflict, IdempotencyConflict, CapacityExceeded, Unsupported, EngineFailure)


async def hibernate_sandbox(call: Call[wire_snapshots.Hibernate, Nothing]) -> Json:
    """Put it on the disk."""
    ref = sandbox_ref(call.path["id"])
    return Json(sandbox_view(await call.core.sandboxes.hibernate(call.who, ref, memory=call.body.memory)))


async def snapshot_sandbox(call: Call[wire_snapshots.Take, Nothing]) -> Json:
    """Keep this moment of it."""
    ref = sandbox_ref(call.path["id"])
    made = await call.core.snapshots.create(call.who, ref, spec_of(call.body), idempotency=call.idempotency())
    call.exchange.mark("snapshot", made.took_ms)
    view = snapshot_view(made)
    return Json(view, status=201, headers=[(b"location", f"/api/v1/snapshots/{view.id}".encode())])


async def fork_sandbox(call: Call[wire_snapshots.Fork, Nothing]) -> Json:
    """Make others of it."""
    ref, body = sandbox_ref(call.path["id"]), call.body
    spec = restore_of(body)
    children = await call.core.snapshots.fork(call.who, ref, spec, body.count, idempotency=call.idempotency())
    return Json(forked_view(children), status=201)


async def rollback_sandbox(call: Call[wire_snapshots.Rollback, Nothing]) -> Json:
    """Take it back to one of its snapshots."""
    ref, snapshot = sandbox_ref(call.path["id"]), snapshot_ref(call.body.snapshot)
    return Json(sandbox_view(await call.core.snapshots.roll_back(call.who, ref, snapshot, memory=call.body.memory)))


async def list_snapshots(call: Call[None, wire_snapshots.SnapshotQuery]) -> Json:
    """A page of them."""
    query = call.query
    page = call.core.snapshots.list(call.who, filter_of(query), limit=query.limit, cursor=query.cursor)
    return Json(page_view(page))


async def get_snapshot(call: Call[None, Nothing]) -> Json:
    """One."""
    return Json(snapshot_view(call.core.snapshots.get(call.who, snapshot_ref(call.path["snapshot"]))))


async def update_snapshot(call: Call[wire_snapshots.UpdateSnapshot, Nothing]) -> Json:
    """Change name and tags."""
    ref = snapshot_ref(call.path["snapshot"])
    return Json(snapshot_view(await call.core.snapshots.update(call.who, ref, change_of(call.body))))


async def delete_snapshot(call: Call[None, Nothing]) -> Raw:
    """Forget it."""
    await call.core.snapshots.delete(call.who, snapshot_ref(call.path["snapshot"]))
    return empty()


async def restore_snapshot(call: Call[wire_snapshots.Restore, Nothing]) -> Json:
    """Make a sandbox of it."""
    ref, spec = snapshot_ref(call.path["snapshot"]), restore_of(call.body)
    made = await call.core.snapshots.restore(call.who, ref, spec, idempotency=call.idempotency())
    return created(call.exchange, made)


async def export_snapshot(call: Call[None, Nothing]) -> Answer:
    """Give it away as one file."""
    name = call.path["snapshot"]
    ref = snapshot_ref(name)

    @asynccontextmanager
    async def open_at(_offset: int, _length: int) -> AsyncGenerator[tuple[Reader, int | None]]:
        async with call.core.snapshots.export(call.who, ref) as export:
            yield export, export.size_bytes

    disposition = f'attachment; filename="{name}.cove"'.encode()  # names and ids have nothing to quote
    return Download(open_at, None, [(b"content-disposition", disposition)], ZSTD)


async def import_snapshot(call: Call[None, wire_snapshots.SnapshotImportQuery]) -> Json:
    """Take one that was exported."""
    async with interruptible(call.exchange):
        made = await call.core.snapshots.import_(call.who, call.chunks(), name=call.query.name)
    view = snapshot_view(made)
    return Json(view, status=201, headers=[(b"location", f"/api/v1/snapshots/{view.id}".encode())])


OPS: Final = (
    Op(
        method="POST",
        path=f"{OF_SANDBOX}/hibernate",
        handler=hibernate_sandbox,
        summary="Hibernate a sandbox",
        description="All of it goes to the disk: no process, no memory is left. Hibernated already: the same answer. "
        "`kept` says whether its memory was kept, and if not why.",
        tag=TAG,
        body=wire_snapshots.Hibernate,
        answer=wire.Sandbox,
        scopes=(Scope.CREATE,),
        errors=SAVING,
    ),
    Op(
        method="POST",
        path=f"{OF_SANDBOX}/snapshots",
        handler=snapshot_sandbox,
        summary="Take a snapshot of a sandbox",
        description="Memory and files of one instant; the sandbox goes on. `memory` says whether its processes were "
        "kept, `reason` why not.",
        tag=TAG,
        body=wire_snapshots.Take,
        answer=wire_snapshots.Snapshot,
        status=201,
        scopes=(Scope.CREATE,),
        errors=(*SAVING, IdempotencyConflict),
        headers=ONCE,
        watched=True,
    ),
    Op(
        method="POST",
        path=f"{OF_SANDBOX}/fork",
        handler=fork_sandbox,
        summary="Fork a sandbox",
        description="All children run, or there is none. What is not named is as the sandbox has it; credentials are "
        "not inherited unless asked.",
        tag=TAG,
        body=wire_snapshots.Fork,
        answer=wire_snapshots.Forked,
        status=201,
        scopes=(Scope.CREATE,),
        errors=(*MAKING, Gone),
        headers=ONCE,
        watched=True,
    ),
    Op(
        method="POST",
        path=f"{OF_SANDBOX}/rollback",
        handler=rollback_sandbox,
        summary="Roll a sandbox back",
        description="To one of its own snapshots, under the same id. If that fails it goes on as it was.",
        tag=TAG,
        body=wire_snapshots.Rollback,
        answer=wire.Sandbox,
        scopes=(Scope.CREATE,),
        errors=SAVING,
    ),
    Op(
        method="GET",
        path="/snapshots",
        handler=list_snapshots,
        summary="List snapshots",
        description="Newest first.",
        tag=TAG,
        query=wire_snapshots.SnapshotQuery,
        answer=wire_snapshots.SnapshotList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="POST",
        path="/snapshots/import",  # before those of one: the first path that fits is taken
        handler=import_snapshot,
        summary="Import a snapshot",
        description="The body: an exported file. One that this machine cannot restore is refused with the reason.",
        tag=TAG,
        query=wire_snapshots.SnapshotImportQuery,
        answer=wire_snapshots.Snapshot,
        status=201,
        scopes=(Scope.CREATE,),
        errors=(NotFound, TooLarge, Conflict, CapacityExceeded, Unsupported, EngineFailure),
        upload=True,
    ),
    Op(
        method="GET",
        path=ONE,
        handler=get_snapshot,
        summary="Show a snapshot",
        tag=TAG,
        answer=wire_snapshots.Snapshot,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PATCH",
        path=ONE,
        handler=update_snapshot,
        summary="Change a snapshot",
        description="Tags are merged; null removes one.",
        tag=TAG,
        body=wire_snapshots.UpdateSnapshot,
        answer=wire_snapshots.Snapshot,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Conflict),
    ),
    Op(
        method="DELETE",
        path=ONE,
        handler=delete_snapshot,
        summary="Delete a snapshot",
        description="Sandboxes that were made of it go on. Refused while it is being made or used.",
        tag=TAG,
        status=204,
        scopes=(Scope.DESTROY,),
        errors=(NotFound, Conflict),
    ),
    Op(
        method="POST",
        path=f"{ONE}/restore",
        handler=restore_snapshot,
        summary="Restore a snapshot",
        description="A new, independent sandbox. What is not named is as the source had it; credentials are not "
        "inherited unless asked. `came_from` says whether its processes came along, and if not why.",
        tag=TAG,
        body=wire_snapshots.Restore,
        answer=wire.Sandbox,
        status=201,
        scopes=(Scope.CREATE,),
        errors=MAKING,
        headers=ONCE,
        watched=True,
    ),
    Op(
        method="GET",
        path=f"{ONE}/export",
        handler=export_snapshot,
        summary="Export a snapshot",
        description="One file, packed by zstd and checked by digests, for another machine.",
        tag=TAG,
        media_type=ZSTD,
        scopes=(Scope.CREATE, Scope.FILES),
        errors=(NotFound, Conflict, CapacityExceeded, EngineFailure),
    ),
)
