"""What goes over the wire about snapshots, and what is made of them: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from cove.dialects.native.wire import (
    Cpus,
    DiskMib,
    IdleAction,
    Label,
    MemoryMib,
    Pids,
    Request,
    Sandbox,
    Seconds,
    TimeoutCounts,
)
from cove.dialects.native.wire_credentials import Key, Wish
from cove.dialects.native.wire_networks import Given

SnapshotState = Literal["creating", "ready", "failed", "deleting"]
SnapshotName = Annotated[str, Meta(min_length=1, max_length=63, description="RFC 1123 label.")]
SnapshotRef = Annotated[str, Meta(min_length=1, max_length=80, description="An id (`sn_…`) or a name.")]
WithMemory = Annotated[
    bool | None,
    Meta(
        description="Processes and their memory too. Null: where that can be had, and the answer says; true: else "
        "refuse; false: files only."
    ),
]


class Hibernate(Request, frozen=True):
    """How a sandbox is put on the disk."""

    memory: WithMemory = None


class Take(Request, frozen=True):
    """A snapshot to be."""

    name: SnapshotName | None = None
    tags: dict[str, str] = field(default_factory=dict[str, str])
    memory: WithMemory = None


class Restore(Request, frozen=True):
    """What a sandbox made of another's state is to be; what is not named is as the source has it."""

    name: Label | None = None
    memory: WithMemory = None
    env: Annotated[dict[str, str], Meta(description="Added, for what is started from then on.")] = field(
        default_factory=dict[str, str]
    )
    metadata: dict[str, str] | UnsetType = UNSET
    network: Given | None = None
    cpus: Cpus | UnsetType = UNSET
    memory_mib: MemoryMib | UnsetType = UNSET
    disk_mib: DiskMib | UnsetType = UNSET
    pids: Pids | UnsetType = UNSET
    timeout_s: Annotated[Seconds | UnsetType | None, Meta(description="Not given: it does not expire.")] = UNSET
    timeout_counts: TimeoutCounts | UnsetType = UNSET
    idle_timeout_s: Seconds | UnsetType | None = UNSET
    idle_action: IdleAction | UnsetType = UNSET
    auto_resume: bool | UnsetType = UNSET
    credentials: Annotated[dict[str, Key | Wish], Meta(max_length=32)] = field(default_factory=dict[str, Key | Wish])
    inherit_credentials: Annotated[bool, Meta(description="Also the source's.")] = False


class Fork(Restore, frozen=True):
    """Children of a running or paused sandbox, all or none."""

    count: Annotated[int, Meta(ge=1, le=100)] = 1


class Rollback(Request, frozen=True):
    """To which of its snapshots."""

    snapshot: SnapshotRef
    memory: WithMemory = None


class UpdateSnapshot(Request, frozen=True):
    """What to change; what is not named stays. Tags are merged; null removes one."""

    name: SnapshotName | UnsetType = UNSET
    tags: dict[str, str | None] | UnsetType = UNSET


class SnapshotQuery(Request, frozen=True):
    """Filters of a list. `tags.KEY=VALUE` may be repeated for several keys."""

    sandbox: Annotated[str, Meta(description="Of this sandbox, by its id or name; it may have ended.")] | None = None
    name: str | None = None
    state: tuple[SnapshotState, ...] = ()
    tags: dict[str, str] = field(default_factory=dict[str, str])
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: str | None = None


class SnapshotImportQuery(Request, frozen=True):
    """What the uploaded file becomes; without a name, as it was called."""

    name: SnapshotName | None = None


class Snapshot(Struct, frozen=True, kw_only=True):
    """A snapshot. `memory` false: files only, and `reason` says why. `parent`: which snapshot its sandbox was made of.

    `image` to `auto_resume` are the sandbox's of that moment. `memory_bytes`, `disk_bytes`: what it takes on the disk.
    `stopped_ms`: how long the sandbox stood still for it. `failure`: why there is nothing to restore.
    """

    id: str
    name: str
    project: str
    state: SnapshotState
    failure: str | None
    memory: bool
    reason: str | None
    tags: dict[str, str]
    sandbox: str
    sandbox_name: str
    parent: str | None
    driver: str
    image: str
    image_used: str
    image_digest: str
    cpus: float
    memory_mib: int
    disk_mib: int
    pids: int
    metadata: dict[str, str]
    timeout_counts: TimeoutCounts
    idle_timeout_s: float | None
    idle_action: IdleAction
    auto_resume: bool
    memory_bytes: int
    disk_bytes: int
    processes: int
    stopped_ms: float
    took_ms: float
    created_at: str
    created_by: str
    dialect: str
    imported: bool


class SnapshotList(Struct, frozen=True, kw_only=True):
    """A page, newest first; `cursor` null: the last one."""

    snapshots: tuple[Snapshot, ...]
    cursor: str | None


class Forked(Struct, frozen=True, kw_only=True):
    """The children. `memory` false: files only, and `reason` says why."""

    sandboxes: tuple[Sandbox, ...]
    memory: bool
    reason: str | None
