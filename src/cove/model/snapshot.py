"""Snapshots: a sandbox at one instant, to make others of. Frozen values without behaviour. No I/O.

A snapshot has the files that a sandbox wrote over its image and, where `kept.memory` says so, its processes with their
memory. It is independent of the sandbox: either may end first.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import UNSET, Struct, UnsetType, field

from cove.model.credentials import PLACEHOLDER, CredentialWish
from cove.model.network import NO_NETWORK, NetworkPolicy, NetworkRequest
from cove.model.sandbox import IdleAction, Kept, Limits, TimeoutCounts

FORK_LIMIT: Final = 100
"""Most children of one fork (docs/protocols/isorun.md, section 12)."""


class SnapshotState(StrEnum):
    """`creating`: being written, not to be used yet. `ready`. `deleting`: it goes, or the next start removes it.

    `failed`: it could not be made, or what it holds is missing or damaged now; `Snapshot.failure` says which.
    """

    CREATING = "creating"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


class SnapshotSpec(Struct, frozen=True, kw_only=True):
    """What a caller asks for. `memory` None: with it where that can be had; True: else refuse; False: files only."""

    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict[str, str])
    memory: bool | None = None


class Snapshot(Struct, frozen=True, kw_only=True):
    """A snapshot as the store knows it. Times are Unix seconds, ids core ids.

    `sandbox`: of which it was made; `parent`: the snapshot which that one came from. `image` to `network` are the
    source's at that moment. `memory_bytes`, `disk_bytes`: what it takes on the disk. `stopped_ms`: how long the source
    stood still for it. `processes`: how many it holds. `is_imported`: it came from a file. `failure`: why it is
    `failed`, one sentence.
    """

    id: str
    project: str
    name: str
    state: SnapshotState
    tags: dict[str, str]
    sandbox: str
    sandbox_name: str
    parent: str | None
    kept: Kept
    driver: str
    image: str
    image_used: str
    image_digest: str
    limits: Limits
    network: NetworkPolicy = NO_NETWORK
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    idle_timeout_s: float | None = None
    idle_action: IdleAction = IdleAction.PAUSE
    auto_resume: bool = True
    timeout_counts: TimeoutCounts = TimeoutCounts.ALWAYS
    memory_bytes: int = 0
    disk_bytes: int = 0
    processes: int = 0
    stopped_ms: float = 0.0
    took_ms: float = 0.0
    created_at: float
    created_by: str
    key: str = ""
    dialect: str = "native"
    is_imported: bool = False
    failure: str | None = None


class SnapshotFilter(Struct, frozen=True, kw_only=True):
    """Which snapshots a list shows. None: any. `tags` must all be equal; `states` empty: all.

    `sandbox`: its core id, also after its end, or a live one's name.
    """

    states: frozenset[SnapshotState] = frozenset()
    sandbox: str | None = None
    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict[str, str])


class SnapshotPage(Struct, frozen=True, kw_only=True):
    """One page, newest first. `cursor` None: that was the last page."""

    snapshots: tuple[Snapshot, ...]
    cursor: str | None


class SnapshotChange(Struct, frozen=True, kw_only=True):
    """What to change; UNSET: leave as it is. `tags` are merged into the present ones; a value of None removes one."""

    name: str | UnsetType = UNSET
    tags: dict[str, str | None] | UnsetType = UNSET


class RestoreSpec(Struct, frozen=True, kw_only=True):
    """What a caller asks of a sandbox that is made from a snapshot or by a fork. UNSET or None: as the source has it.

    `env` is added to the source's, for what is started from then on: programs that run keep theirs. `timeout_s` UNSET:
    it does not expire. `memory` as in `SnapshotSpec`; True of a snapshot without memory is refused.
    `inherit_credentials`: also the source's credentials; otherwise it has only those of `credentials`.
    """

    name: str | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    metadata: dict[str, str] | UnsetType = UNSET
    network: NetworkRequest | None = None
    cpus: float | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    disk_bytes: int | UnsetType = UNSET
    pids: int | UnsetType = UNSET
    timeout_s: float | UnsetType | None = UNSET
    timeout_counts: TimeoutCounts | UnsetType = UNSET
    idle_timeout_s: float | UnsetType | None = UNSET
    idle_action: IdleAction | UnsetType = UNSET
    auto_resume: bool | UnsetType = UNSET
    memory: bool | None = None
    credentials: dict[str, CredentialWish] = field(default_factory=dict[str, CredentialWish])
    inherit_credentials: bool = False
    placeholder: str = PLACEHOLDER
