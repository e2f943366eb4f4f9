"""Between isorun's snapshots and the core's. Pure."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.dialects.isorun.translate import run_id, snapshot_id, timestamp
from cove.model.sandbox import IdleAction
from cove.model.snapshot import RestoreSpec, Snapshot, SnapshotFilter, SnapshotSpec, SnapshotState

READY: Final = SnapshotFilter(states=frozenset({SnapshotState.READY}))
SPEC: Final = SnapshotSpec(memory=True)
"""With its processes or not at all: there is no word in an answer for less."""

FORK: Final = RestoreSpec(memory=True, idle_action=IdleAction.TERMINATE, auto_resume=False)


def restore_of(snapshot: Snapshot) -> RestoreSpec:
    """What a run that is made of a snapshot gets: all that the snapshot has."""
    memory = True if snapshot.kept.memory else None
    return RestoreSpec(memory=memory, idle_action=IdleAction.TERMINATE, auto_resume=False)


def size_bytes(snapshot: Snapshot) -> int:
    """What it takes on the disk."""
    return snapshot.memory_bytes + snapshot.disk_bytes


def made_view(snapshot: Snapshot) -> wire.MadeSnapshot:
    """One that was made now."""
    return wire.MadeSnapshot(
        snapshot_id=snapshot_id(snapshot.id),
        run_id=run_id(snapshot.sandbox),
        size_bytes=size_bytes(snapshot),
        created_at=timestamp(snapshot.created_at),
    )


def snapshot_view(snapshot: Snapshot) -> wire.Snapshot:
    """One of the list."""
    return wire.Snapshot(
        id=snapshot_id(snapshot.id),
        size_bytes=size_bytes(snapshot),
        created_at=timestamp(snapshot.created_at),
        run_id=run_id(snapshot.sandbox),
    )
