"""What isorun requests say, and what is answered. Unknown fields are passed over, as over there; null is as left out.

Only shapes, types and ranges stand here; what values mean is in `translate.py`.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

LONGEST_S: Final = 10 * 365 * 86400

Vcpus = Annotated[float, Meta(ge=1, le=16)]
MemoryMib = Annotated[int, Meta(ge=128, le=65536)]
DiskMib = Annotated[int, Meta(ge=16, le=1048576)]
Timeout = Annotated[int, Meta(ge=0, le=LONGEST_S)]
Count = Annotated[int, Meta(ge=1, le=100)]


class Ignored(Struct, frozen=True):
    """The body or query of an operation that reads none of it."""


class Network(Struct, frozen=True, kw_only=True):
    """What may be reached."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] | None = None


class Endpoint(Struct, frozen=True, kw_only=True):
    """Requests that a credential is for; without methods any."""

    methods: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None


class Credential(Struct, frozen=True, kw_only=True):
    """A key with the requests that it is for."""

    key: str
    endpoints: tuple[Endpoint, ...] | None = None


class Create(Struct, frozen=True, kw_only=True):
    """A run as it is asked for."""

    image: Annotated[str, Meta(min_length=1)]
    vcpus: Vcpus | None = None
    mem_mib: MemoryMib | None = None
    disk_mib: DiskMib | None = None
    timeout: Timeout | None = None
    network: Network | None = None
    network_profile: str | None = None
    credentials: dict[str, str] | None = None
    credentials_v2: dict[str, Credential] | None = None
    env: dict[str, str] | None = None


class Patch(Struct, frozen=True, kw_only=True):
    """The timer anew; 0: never."""

    timeout: Timeout


class Exec(Struct, frozen=True, kw_only=True):
    """A command, and for how long it may run."""

    command: str
    timeout: Annotated[float, Meta(gt=0, le=LONGEST_S)] | None = None


class Run(Struct, frozen=True, kw_only=True):
    """A run."""

    id: str
    status: str
    image: str
    region: str
    vcpus: float
    mem_mib: int
    disk_mib: int
    create_ms: int
    created_at: str


class RunList(Struct, frozen=True):
    """The runs that have not ended."""

    runs: tuple[Run, ...]


class Destroyed(Struct, frozen=True, kw_only=True):
    """What a run used in all."""

    status: str = "destroyed"
    cpu_ms: int
    mem_peak_bytes: int
    uptime_ms: int
    cost_cents: float


class ExecResult(Struct, frozen=True, kw_only=True):
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str


class OutputEvent(Struct, frozen=True):
    """A piece of what a command prints; `type` is the stream."""

    type: str
    data: str


class ExitEvent(Struct, frozen=True):
    """The last event of a stream."""

    exit_code: int
    duration_ms: int
    type: str = "exit"


class Health(Struct, frozen=True):
    """The server answers."""

    status: str


class Failed(Struct, frozen=True):
    """What went wrong."""

    error: str


class State(Struct, frozen=True):
    """What a run is now."""

    id: str
    status: str


class Path(Struct, frozen=True):
    """Which file or directory."""

    path: str


class Uploaded(Struct, frozen=True):
    """A file that was written."""

    path: str
    size_bytes: int


class Entries(Struct, frozen=True):
    """The names in a directory."""

    entries: tuple[str, ...]


class MadeSnapshot(Struct, frozen=True, kw_only=True):
    """A snapshot that was made."""

    snapshot_id: str
    run_id: str
    size_bytes: int
    created_at: str


class Restore(Struct, frozen=True):
    """What to make a run of."""

    snapshot_id: str


class Fork(Struct, frozen=True):
    """How many."""

    count: Count | None = None


class ForkList(Struct, frozen=True):
    """The children."""

    forks: tuple[Run, ...]


class Snapshot(Struct, frozen=True, kw_only=True):
    """A snapshot in the list."""

    id: str
    size_bytes: int
    created_at: str
    run_id: str


class SnapshotList(Struct, frozen=True):
    """All of them."""

    snapshots: tuple[Snapshot, ...]


class Deleted(Struct, frozen=True):
    """What is there no more."""

    id: str
    status: str = "deleted"


class PastRun(Struct, frozen=True, kw_only=True):
    """A run that has ended."""

    id: str
    image: str
    vcpus: float
    mem_mib: int
    region: str
    create_ms: int
    created_at: str
    destroyed_at: str
    uptime_ms: int
    cost_cents: float
    cpu_ms: int
    mem_peak_bytes: int


class History(Struct, frozen=True):
    """The runs that have ended, newest first."""

    sandboxes: tuple[PastRun, ...]


class HistoryQuery(Struct, frozen=True):
    """How many of them."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class Usage(Struct, frozen=True, kw_only=True):
    """What all runs cost."""

    active_sandboxes: int
    history_sandboxes: int
    active_cost_cents: float
    history_cost_cents: float
    total_cost_cents: float
    cpu_seconds: float
    mem_seconds: float
    as_of: str


class Profile(Struct, frozen=True, kw_only=True):
    """A network policy with a name."""

    name: str
    description: str
    allow: tuple[str, ...]
    deny: tuple[str, ...]


class Image(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image that runs can have, now or soon, or why not."""

    name: str
    size_bytes: int
    status: str
    error: str = ""


class ImageList(Struct, frozen=True):
    """All of them."""

    images: tuple[Image, ...]


class Build(Struct, frozen=True):
    """Which image to fetch."""

    image: Annotated[str, Meta(min_length=1)]


class Built(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far that is."""

    image: str
    status: str
    error: str = ""
