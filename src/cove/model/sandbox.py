"""What a sandbox is asked to be and what it is: frozen values without behaviour. No I/O.

To add a property of a sandbox: a field in `SandboxSpec` (asked) or `Sandbox` (fact, with a default, because older
records lack it), a field in `dialects/native/wire.py`, a line in `docs/reference/native-api.md`; a column in a new
`store/migrations/NNNN_*.sql` only if a query asks for it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct, field

from cove.model.credentials import PLACEHOLDER, CredentialWish
from cove.model.network import NO_NETWORK, NetworkPolicy, NetworkRequest
from cove.model.state import EndReason, State

MIB: Final = 1024 * 1024


class IdleAction(StrEnum):
    """What an idle sandbox's timer does."""

    PAUSE = "pause"
    HIBERNATE = "hibernate"
    TERMINATE = "terminate"
    NONE = "none"


class TimeoutCounts(StrEnum):
    """When a sandbox's time to live passes: `always`, or only while it runs (not paused, not hibernated)."""

    ALWAYS = "always"
    RUNNING = "running"


class Source(StrEnum):
    """How a create was served."""

    WARM = "warm"
    COLD = "cold"


class Limits(Struct, frozen=True, kw_only=True):
    """What a sandbox may use. All are hard limits enforced by the kernel.

    `cpus` in cores (fractions allowed); `memory_bytes` counts anonymous, tmpfs and kernel memory;
    `disk_bytes` is what the sandbox may write over its image; `pids` counts processes and threads of its commands;
    the io limits are bytes per second to the disk under the writable layer, None: not limited.
    """

    cpus: float = 1.0
    memory_bytes: int = 512 * MIB
    disk_bytes: int = 4096 * MIB
    pids: int = 512
    io_read_bps: int | None = None
    io_write_bps: int | None = None


class SandboxSpec(Struct, frozen=True, kw_only=True):
    """What a caller asks for, already checked. `driver` None: the project's default, else the operator's.

    `network` None: the project's default, which is `none` unless the project says otherwise. `open_network`: it is the
    internet then, where this machine can connect sandboxes.
    `run_entrypoint` starts what the image says is its program (ENTRYPOINT and CMD) as a background command.
    `auto_resume`: work in it resumes it when it is paused or hibernated; otherwise that is refused.
    `timeout_counts`: when `timeout_s` passes; None: as the server says.
    `credentials` by service: keys that stay outside; `placeholder` stands in the environment in their place.
    """

    image: str = "base"
    driver: str | None = None
    limits: Limits = field(default_factory=Limits)
    env: dict[str, str] = field(default_factory=dict[str, str])
    hostname: str | None = None
    name: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    timeout_s: float | None = None
    timeout_counts: TimeoutCounts | None = None
    idle_timeout_s: float | None = 1800.0
    idle_action: IdleAction = IdleAction.PAUSE
    auto_resume: bool = True
    run_entrypoint: bool = False
    network: NetworkRequest | None = None
    open_network: bool = False
    credentials: dict[str, CredentialWish] = field(default_factory=dict[str, CredentialWish])
    placeholder: str = PLACEHOLDER


class Isolation(Struct, frozen=True, kw_only=True):
    """The isolation a sandbox really has, for its view and for `cove doctor`.

    `missing` has one sentence for each layer that this machine could not give, with the reason.
    """

    driver: str
    driver_version: str
    user_namespace: bool
    seccomp: str
    quota: str
    cgroup: str
    network: str = "none"
    missing: tuple[str, ...] = ()


class Usage(Struct, frozen=True, kw_only=True):
    """What a sandbox has used: CPU milliseconds, peak memory bytes, bytes now, bytes over its network."""

    cpu_ms: int = 0
    memory_peak_bytes: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    oom_kills: int = 0
    pids: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Kept(Struct, frozen=True, kw_only=True):
    """What was carried over of a source: of a hibernated sandbox, a snapshot, a fork. Files always are.

    `memory`: its processes with their memory too; if not, `reason` says why in one sentence.
    """

    memory: bool
    reason: str | None = None


class Lineage(Struct, frozen=True, kw_only=True):
    """Where a sandbox came from: the snapshot, the sandbox that it was of (core ids; it may have ended), what came."""

    snapshot: str | None
    sandbox: str
    kept: Kept


class Sandbox(Struct, frozen=True, kw_only=True):
    """A sandbox as the store knows it. Times are Unix seconds; None means absent.

    `id` is the core id (16 lowercase hex digits); each dialect spells it in its own form.
    `image` is the name that was asked for; `image_used` and `image_digest` say which image and version really runs, and
    `image_note` why it is another (an alias in place of an unreachable registry). `key`: the id of its
    maker's key. `came_from`: of one made from a snapshot or by a fork. `kept`: of a hibernated one what will be there
    again when it is resumed, afterwards what was; None: it never was hibernated.
    `kept_bytes`: what the memory of a hibernated one takes on the disk. `resume_ms`: how long its last way back from
    there took.
    `rolled_back_to`, `rolled_back_at`: the snapshot that it was made again last, and when.
    `time_left_s`: while its time to live stands still, what is left of it (`expires_at` is None then).
    `state_note`: where its state is another than was asked for, or not what one would think: why, in one sentence.
    """

    id: str
    project: str
    name: str
    state: State
    image: str
    driver: str
    limits: Limits
    metadata: dict[str, str]
    isolation: Isolation | None
    dialect: str
    created_by: str
    created_at: float
    expires_at: float | None
    idle_timeout_s: float | None
    idle_action: IdleAction
    last_active_at: float
    create_ms: float | None = None
    source: Source | None = None
    ended_at: float | None = None
    end_reason: EndReason | None = None
    end_detail: str | None = None
    usage: Usage = field(default_factory=Usage)
    image_used: str = ""
    image_digest: str = ""
    image_note: str | None = None
    network: NetworkPolicy = NO_NETWORK
    key: str = ""
    auto_resume: bool = True
    came_from: Lineage | None = None
    kept: Kept | None = None
    kept_bytes: int = 0
    rolled_back_to: str | None = None
    rolled_back_at: float | None = None
    timeout_counts: TimeoutCounts = TimeoutCounts.ALWAYS
    time_left_s: float | None = None
    state_note: str | None = None
    resume_ms: float | None = None
