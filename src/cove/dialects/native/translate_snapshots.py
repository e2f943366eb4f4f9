"""Between the native wire format and the core's values, about snapshots and what comes of them. Pure functions."""

from __future__ import annotations

import re
from typing import Final

from msgspec import UNSET, UnsetType

from cove.dialects.native import wire_snapshots as wire
from cove.dialects.native.times import timestamp
from cove.dialects.native.translate import SNAPSHOT_PREFIX, sandbox_id, sandbox_ref, sandbox_view
from cove.dialects.native.translate_credentials import wishes_of
from cove.dialects.native.translate_networks import request_from
from cove.model.errors import NotFound
from cove.model.ids import is_core_id, is_name
from cove.model.sandbox import MIB, IdleAction, Kept, Sandbox, TimeoutCounts
from cove.model.snapshot import (
    RestoreSpec,
    Snapshot,
    SnapshotChange,
    SnapshotFilter,
    SnapshotPage,
    SnapshotSpec,
    SnapshotState,
)

_ID: Final = re.compile(SNAPSHOT_PREFIX + "[0-9a-f]{16}")


def snapshot_ref(text: str) -> str:
    """The core's reference for `sn_…` or a name. Raises: NotFound: whatever else it is, no snapshot has it."""
    if _ID.fullmatch(text):
        return text.removeprefix(SNAPSHOT_PREFIX)
    if is_name(text) and not is_core_id(text):
        return text
    raise NotFound(f"no snapshot {text[:80]!r}", field="snapshot")


def snapshot_id(core_id: str) -> str:
    """How the native API spells the core id of a snapshot."""
    return SNAPSHOT_PREFIX + core_id


def spec_of(body: wire.Take) -> SnapshotSpec:
    """What the core is asked for."""
    return SnapshotSpec(name=body.name, tags=body.tags, memory=body.memory)


def restore_of(body: wire.Restore) -> RestoreSpec:
    """What the core is asked for."""
    return RestoreSpec(
        name=body.name,
        env=body.env,
        metadata=body.metadata,
        network=request_from(body.network),
        cpus=body.cpus,
        memory_bytes=_bytes(body.memory_mib),
        disk_bytes=_bytes(body.disk_mib),
        pids=body.pids,
        timeout_s=body.timeout_s,
        timeout_counts=UNSET if isinstance(body.timeout_counts, UnsetType) else TimeoutCounts(body.timeout_counts),
        idle_timeout_s=body.idle_timeout_s,
        idle_action=UNSET if isinstance(body.idle_action, UnsetType) else IdleAction(body.idle_action),
        auto_resume=body.auto_resume,
        memory=body.memory,
        credentials=wishes_of(body.credentials),
        inherit_credentials=body.inherit_credentials,
    )


def _bytes(mib: int | UnsetType) -> int | UnsetType:
    return mib if isinstance(mib, UnsetType) else mib * MIB


def change_of(body: wire.UpdateSnapshot) -> SnapshotChange:
    """What to change."""
    return SnapshotChange(name=body.name, tags=body.tags)


def filter_of(query: wire.SnapshotQuery) -> SnapshotFilter:
    """Which snapshots are asked for. Raises: NotFound."""
    return SnapshotFilter(
        sandbox=None if query.sandbox is None else sandbox_ref(query.sandbox),
        name=query.name,
        states=frozenset(SnapshotState(state) for state in query.state),
        tags=query.tags,
    )


def snapshot_view(snapshot: Snapshot) -> wire.Snapshot:
    """A snapshot."""
    limits = snapshot.limits
    return wire.Snapshot(
        id=snapshot_id(snapshot.id),
        name=snapshot.name,
        project=snapshot.project,
        state=snapshot.state.value,
        failure=snapshot.failure,
        memory=snapshot.kept.memory,
        reason=snapshot.kept.reason,
        tags=snapshot.tags,
        sandbox=sandbox_id(snapshot.sandbox),
        sandbox_name=snapshot.sandbox_name,
        parent=None if snapshot.parent is None else snapshot_id(snapshot.parent),
        driver=snapshot.driver,
        image=snapshot.image,
        image_used=snapshot.image_used,
        image_digest=snapshot.image_digest,
        cpus=limits.cpus,
        memory_mib=limits.memory_bytes // MIB,
        disk_mib=limits.disk_bytes // MIB,
        pids=limits.pids,
        metadata=snapshot.metadata,
        timeout_counts=snapshot.timeout_counts.value,
        idle_timeout_s=snapshot.idle_timeout_s,
        idle_action=snapshot.idle_action.value,
        auto_resume=snapshot.auto_resume,
        memory_bytes=snapshot.memory_bytes,
        disk_bytes=snapshot.disk_bytes,
        processes=snapshot.processes,
        stopped_ms=round(snapshot.stopped_ms, 3),
        took_ms=round(snapshot.took_ms, 3),
        created_at=timestamp(snapshot.created_at),
        created_by=snapshot.created_by,
        dialect=snapshot.dialect,
        imported=snapshot.is_imported,
    )


def page_view(page: SnapshotPage) -> wire.SnapshotList:
    """A page of snapshots."""
    return wire.SnapshotList(snapshots=tuple(map(snapshot_view, page.snapshots)), cursor=page.cursor)


def forked_view(children: tuple[Sandbox, ...]) -> wire.Forked:
    """The children of a fork. All came of one checkpoint; one that lost its memory on the way speaks for all."""
    kept = [child.came_from.kept for child in children if child.came_from is not None]
    least = min(kept, key=lambda one: one.memory, default=Kept(memory=False))
    return wire.Forked(sandboxes=tuple(map(sandbox_view, children)), memory=least.memory, reason=least.reason)
