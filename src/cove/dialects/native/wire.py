"""What goes over the wire in the native API: frozen structs, nothing else. Pure.

The ranges here are for OpenAPI and for errors that name the field as the caller spelled it; the core has the last word
(`core/validation.py`). To change the format: here, `translate.py`, docs/reference/native-api.md, `sdk/models.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from cove.dialects.native.wire_credentials import Key, Wish
from cove.dialects.native.wire_networks import Given

TEN_YEARS_S = 315360000
MAX_MIB = 1048576

Cpus = Annotated[float, Meta(ge=0.05, le=64, description="Cores; fractions are allowed.")]
MemoryMib = Annotated[int, Meta(ge=32, le=MAX_MIB, description="Hard limit of memory, in MiB.")]
DiskMib = Annotated[int, Meta(ge=16, le=MAX_MIB, description="What it may write over its image, in MiB.")]
Pids = Annotated[int, Meta(ge=16, le=65536, description="Processes and threads.")]
IoMbps = Annotated[int, Meta(ge=1, le=MAX_MIB, description="MiB per second to the disk; null: not limited.")]
Seconds = Annotated[float, Meta(ge=1, le=TEN_YEARS_S)]
Label = Annotated[str, Meta(max_length=63, description="RFC 1123 label: 1-63 of a-z, 0-9, inner hyphens.")]
Mode = Annotated[str, Meta(pattern="^[0-7]{3,5}$", description="Permission bits in octal, such as 0644.")]
Owner = Annotated[int, Meta(ge=0, le=65535, description="An id as it is inside the sandbox.")]
Path = Annotated[str, Meta(min_length=1, max_length=4096, description="Absolute path, as the sandbox sees it.")]
Encoding = Literal["utf-8", "base64"]
State = Literal["pending", "running", "paused", "hibernated", "stopping", "terminated", "failed"]
IdleAction = Literal["pause", "hibernate", "terminate", "none"]
TimeoutCounts = Literal["always", "running"]
ScopeName = Literal["read", "create", "exec", "files", "destroy", "keys", "admin"]

DriverName = Annotated[str, Meta(min_length=1, max_length=63, description="An isolation driver.")]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parent of what callers send: an unknown field is an error."""


class Create(Request, frozen=True):
    """A sandbox to be. Everything is optional."""

    image: Annotated[str, Meta(min_length=1, max_length=255)] = "base"
    name: Label | None = None
    driver: DriverName | None = None
    cpus: Cpus = 1.0
    memory_mib: MemoryMib = 512
    disk_mib: DiskMib = 4096
    pids: Pids = 512
    io_read_mbps: IoMbps | None = None
    io_write_mbps: IoMbps | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    hostname: Label | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    timeout_s: Seconds | None = None
    timeout_counts: Annotated[
        TimeoutCounts | None, Meta(description="When `timeout_s` passes; null: as the server is set.")
    ] = None
    idle_timeout_s: Seconds | None = 1800.0
    idle_action: IdleAction = "pause"
    auto_resume: Annotated[
        bool, Meta(description="Work in it resumes it when it is paused or hibernated; false: 409 until you do.")
    ] = True
    run_entrypoint: Annotated[
        bool, Meta(description="Start the image's ENTRYPOINT and CMD as the background command `entrypoint`.")
    ] = False
    network: Annotated[
        Given | None,
        Meta(description="A policy, or a word: none, open, a profile's name. Null: the project's default."),
    ] = None
    credentials: Annotated[
        dict[str, Key | Wish], Meta(max_length=32, description="Keys by service, which stay outside of the sandbox.")
    ] = field(default_factory=dict[str, Key | Wish])


class Update(Request, frozen=True):
    """What to change; what is not named stays."""

    timeout_s: Seconds | UnsetType | None = UNSET
    idle_timeout_s: Seconds | UnsetType | None = UNSET
    idle_action: IdleAction | UnsetType = UNSET
    auto_resume: bool | UnsetType = UNSET
    name: Label | UnsetType = UNSET
    metadata: dict[str, str | None] | UnsetType = UNSET
    cpus: Cpus | UnsetType = UNSET
    memory_mib: MemoryMib | UnsetType = UNSET
    pids: Pids | UnsetType = UNSET


class Resume(Request, frozen=True):
    """How a hibernated sandbox goes on."""

    memory: Annotated[
        bool | None, Meta(description="False: anew, with its files only; for one whose kept memory is damaged.")
    ] = None


class Exec(Request, frozen=True):
    """A command: text for `/bin/sh -c`, or a list of arguments."""

    command: str | tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict[str, str])
    cwd: Path | None = None
    user: (
        Annotated[
            str, Meta(max_length=64, description="A name or uid[:gid] inside; null: the image's user, else root.")
        ]
        | None
    ) = None
    timeout_s: Annotated[float, Meta(ge=0.01, le=TEN_YEARS_S)] | None = None
    stdin: str | None = None
    encoding: Encoding = "utf-8"


class Start(Exec, frozen=True):
    """A background command."""

    keep_bytes: Annotated[int, Meta(ge=4096, le=16777216)] = 1048576
    stdin_open: bool = False


class Signal(Request, frozen=True):
    """A signal by name (`TERM`, `SIGTERM`) or number."""

    signal: str | Annotated[int, Meta(ge=1, le=64)]


class Wait(Request, frozen=True):
    """How long to wait; null: until it ends."""

    timeout_s: Annotated[float, Meta(ge=0, le=TEN_YEARS_S)] | None = None


class Mkdir(Request, frozen=True):
    """A directory to make."""

    path: Path
    mode: Mode = "0755"
    parents: bool = False


class Move(Request, frozen=True, rename={"source": "from", "target": "to"}):
    """A rename."""

    source: Path
    target: Path
    overwrite: bool = False


class SandboxQuery(Request, frozen=True):
    """Filters of a list. `metadata.KEY=VALUE` may be repeated for several keys."""

    state: tuple[State, ...] = ()
    image: str | None = None
    driver: str | None = None
    name: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: str | None = None


class OutputQuery(Request, frozen=True):
    """Which part of a command's kept output. `follow`: as server-sent events, until the command ends."""

    cursor: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    limit: Annotated[int, Meta(ge=1, le=1048576)] = 1048576
    follow: bool = False
    wait_s: Annotated[
        float, Meta(ge=0, le=600, description="Without `follow`: how long to wait where there is nothing yet.")
    ] = 0.0
    encoding: Encoding = "utf-8"


class StdinQuery(Request, frozen=True):
    """`close`: end of input after these bytes."""

    close: bool = False


class PathQuery(Request, frozen=True):
    """A path."""

    path: Path


class ListQuery(PathQuery, frozen=True):
    """A page of a directory."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    cursor: Annotated[str, Meta(max_length=1024)] | None = None


class UploadQuery(PathQuery, frozen=True):
    """Where an upload goes. Without `mode` an existing file keeps its own, and a new one gets 0644."""

    mode: Mode | None = None
    parents: bool = True
    exclusive: bool = False
    sync: Annotated[bool, Meta(description="On the disk before the answer: it survives a power cut.")] = False


class RemoveQuery(PathQuery, frozen=True):
    """What to remove."""

    recursive: bool = False


class Isolation(Struct, frozen=True, kw_only=True):
    """The isolation it really has; `missing` has a sentence for each layer this machine could not give."""

    driver: str
    driver_version: str
    user_namespace: bool
    seccomp: str
    quota: str
    cgroup: str
    network: str
    missing: tuple[str, ...]


class Usage(Struct, frozen=True, kw_only=True):
    """What it has used."""

    cpu_ms: int
    memory_bytes: int
    memory_peak_bytes: int
    disk_bytes: int
    oom_kills: int
    pids: int
    sent_bytes: int
    received_bytes: int


class Kept(Struct, frozen=True, kw_only=True):
    """What was carried over besides the files. `memory` false: no process, and `reason` says why."""

    memory: bool
    reason: str | None


class CameFrom(Kept, frozen=True):
    """What a sandbox was made of. `sandbox` is the source, `snapshot` null: by a fork. Either may be gone."""

    snapshot: str | None
    sandbox: str


class Sandbox(Struct, frozen=True, kw_only=True):
    """A sandbox. `image` was asked for; `image_used` and `image_digest` run, `image_note` says why it is another.

    `state_note`: why its state is not what was asked for. `time_left_s`: of its time to live, while that stands still.
    `came_from`: of one that was restored or forked. `rolled_back_to`: the snapshot. `kept`: of one that is or was
    hibernated, `kept_bytes`: what its memory takes on the disk.
    """

    id: str
    name: str
    project: str
    state: State
    state_note: str | None
    image: str
    image_used: str
    image_digest: str
    image_note: str | None
    driver: str
    isolation: Isolation | None
    cpus: float
    memory_mib: int
    disk_mib: int
    pids: int
    io_read_mbps: int | None
    io_write_mbps: int | None
    metadata: dict[str, str]
    dialect: str
    created_by: str
    created_at: str
    expires_at: str | None
    timeout_counts: TimeoutCounts
    time_left_s: float | None
    idle_timeout_s: float | None
    idle_action: IdleAction
    auto_resume: bool
    last_active_at: str
    create_ms: float | None
    source: str | None
    ended_at: str | None
    end_reason: str | None
    end_detail: str | None
    came_from: CameFrom | None
    rolled_back_to: str | None
    rolled_back_at: str | None
    kept: Kept | None
    kept_bytes: int
    usage: Usage


class SandboxList(Struct, frozen=True, kw_only=True):
    """A page, newest first; `cursor` null: the last one."""

    sandboxes: tuple[Sandbox, ...]
    cursor: str | None


class Exit(Struct, frozen=True, kw_only=True):
    """How a command ended. `cursor`: only in a stream of kept output."""

    exit_code: int
    signal: int | None
    why: str
    duration_ms: float
    cpu_ms: float
    memory_peak_bytes: int
    cursor: int | UnsetType = UNSET


class ExecResult(Struct, frozen=True, kw_only=True):
    """A finished command with its output; `*_dropped_bytes` were cut from the head."""

    exit_code: int
    signal: int | None
    why: str
    stdout: str
    stderr: str
    stdout_dropped_bytes: int
    stderr_dropped_bytes: int
    encoding: Encoding
    duration_ms: float
    cpu_ms: float
    memory_peak_bytes: int


class Command(Struct, frozen=True, kw_only=True):
    """A background command; `cursor` is the end of its output so far, `oldest_cursor` the first byte still kept.

    `shell`: the shell whose command it is; `queued`: it waits for its turn there.
    """

    id: str
    pid: int
    command: tuple[str, ...]
    started_at: str
    running: bool
    exit: Exit | None
    cursor: int
    oldest_cursor: int
    shell: str | None
    queued: bool


class CommandList(Struct, frozen=True):
    """The background commands that the sandbox still knows."""

    commands: tuple[Command, ...]


class OutputChunk(Struct, frozen=True):
    """A piece of output."""

    stream: Literal["stdout", "stderr"]
    data: str


class Output(Struct, frozen=True, kw_only=True):
    """Kept output; go on at `cursor`. `ended`: the command has ended and all was read."""

    chunks: tuple[OutputChunk, ...]
    lost_bytes: int
    cursor: int
    ended: bool
    exit: Exit | None
    encoding: Encoding


class Written(Struct, frozen=True):
    """Bytes taken."""

    written: int


class FileInfo(Struct, frozen=True, kw_only=True):
    """A directory entry; a link is shown as itself."""

    path: str
    name: str
    kind: Literal["file", "directory", "symlink", "other"]
    size: int
    mode: str
    uid: int
    gid: int
    mtime: str
    target: str | None


class FileList(Struct, frozen=True, kw_only=True):
    """A page in byte order of names; `cursor` null: the last one."""

    entries: tuple[FileInfo, ...]
    cursor: str | None


class Removed(Struct, frozen=True):
    """Entries removed."""

    removed: int


class StartedEvent(Struct, frozen=True):
    """Data of `started`."""

    id: str
    pid: int


class DataEvent(Struct, frozen=True):
    """Data of `stdout` and `stderr`."""

    data: str


class GapEvent(Struct, frozen=True):
    """Data of `gap`."""

    lost_bytes: int


class PausedEvent(Struct, frozen=True):
    """Data of `paused`: the end of what there is so far."""

    cursor: int


class Problem(Struct, frozen=True, kw_only=True):
    """RFC 9457."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    retryable: bool
    field: str | UnsetType = UNSET
    hint: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    limit: Annotated[float, Meta(description="What a quota allows, in the unit of `field`.")] | UnsetType = UNSET
    used: Annotated[float, Meta(description="What of it is in use.")] | UnsetType = UNSET
