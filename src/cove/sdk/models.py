"""Facts about objects as the server reports them: frozen values, no I/O.

Read leniently: an unknown field is ignored and a missing one has a default, so that client and server may differ by a
version. Times are aware `datetime`s in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Isolation:
    """The isolation that a sandbox really has; `missing` says in a sentence each what this machine could not give."""

    driver: str
    driver_version: str
    user_namespace: bool
    seccomp: str
    quota: str
    cgroup: str
    network: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sandbox has used so far."""

    cpu_ms: float
    memory_bytes: int
    memory_peak_bytes: int
    disk_bytes: int
    oom_kills: int
    pids: int
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What was carried over besides the files. `memory` False: no process, and `reason` says why."""

    memory: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class CameFrom(Kept):
    """What a sandbox was made of: `sandbox` is the source, `snapshot` None says by a fork. Either may be gone."""

    snapshot: str | None
    sandbox: str


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """A sandbox as it was when the server answered. `Sandbox.refresh()` asks again.

    `state_note`: why its state is not what was asked for. `time_left_s`: of its time to live, while that stands still.
    `came_from`: of one that was restored or forked. `rolled_back_to`: the snapshot. `kept`: of one that is or was
    hibernated, `kept_bytes`: what its memory takes on the disk.
    """

    id: str
    name: str
    project: str
    state: str
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
    metadata: dict[str, str]
    dialect: str
    created_by: str
    created_at: datetime | None
    expires_at: datetime | None
    timeout_counts: str
    time_left_s: float | None
    idle_timeout_s: float | None
    idle_action: str
    auto_resume: bool
    last_active_at: datetime | None
    create_ms: float | None
    source: str | None
    ended_at: datetime | None
    end_reason: str | None
    end_detail: str | None
    came_from: CameFrom | None
    rolled_back_to: str | None
    rolled_back_at: datetime | None
    kept: Kept | None
    kept_bytes: int
    usage: Usage
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A sandbox at one instant, kept: its files, and with `memory` its processes too; if not, `reason` says why.

    `state` is `creating`, `ready`, `failed` (`failure` says why) or `deleting`. `memory_bytes` and `disk_bytes` are
    what it takes on the server's disk; `memory_mib`, `disk_mib` and what else has the name of a sandbox's property
    are the sandbox's of that moment. `stopped_ms`: how long the sandbox stood still for it.
    """

    id: str
    name: str
    project: str
    state: str
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
    timeout_counts: str
    idle_timeout_s: float | None
    idle_action: str
    auto_resume: bool
    memory_bytes: int
    disk_bytes: int
    processes: int
    stopped_ms: float
    took_ms: float
    created_at: datetime | None
    created_by: str
    dialect: str
    imported: bool
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """A background command. `cursor` is the end of its output so far, `oldest_cursor` the first byte still kept.

    `shell` is the id of the shell whose command it is; `queued`: it waits for its turn there.
    """

    id: str
    pid: int
    command: tuple[str, ...]
    started_at: datetime | None
    running: bool
    exit: dict[str, Any] | None
    cursor: int
    oldest_cursor: int
    shell: str | None
    queued: bool
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TerminalInfo(CommandInfo):
    """A terminal: the command that runs on it, and its size."""

    cols: int
    rows: int


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One directory entry; a link is shown as itself. `mode` is permission bits, owners are ids inside."""

    path: str
    name: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: datetime | None
    target: str | None


@dataclass(frozen=True, slots=True)
class Image:
    """An image that sandboxes can be made from. `config` is how it runs (env, workdir, user, entrypoint, …).

    `origin` is `builtin`, `pulled`, `built` or `imported`; `manifest_digest` what a registry calls it. A list has no
    `config`: `client.image.get` has.
    """

    name: str
    digest: str
    size_bytes: int
    status: str
    origin: str
    manifest_digest: str | None
    created_at: datetime | None
    config: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. `key`, the secret itself, is there only in the answer that made it, and not in `repr`."""

    id: str
    name: str
    project: str
    scopes: tuple[str, ...]
    dialect: str | None
    created_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    key: str | None

    def __repr__(self) -> str:
        """Return a text that can be logged."""
        return f"Key(id={self.id!r}, name={self.name!r}, project={self.project!r})"


@dataclass(frozen=True, slots=True)
class SshKey:
    """A public key that may log in to the sandboxes of its project."""

    id: str
    name: str
    project: str
    type: str
    public_key: str
    fingerprint: str
    created_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Project:
    """A tenant."""

    id: str
    created_at: datetime | None
    default_driver: str | None
    drivers: tuple[str, ...]


def time_of(value: object) -> datetime | None:
    """Read an RFC 3339 time; None for none."""
    return datetime.fromisoformat(value) if isinstance(value, str) and value else None


def isolation(wire: dict[str, Any] | None) -> Isolation | None:
    """Read the isolation object."""
    if not wire:
        return None
    return Isolation(
        driver=str(wire.get("driver", "")),
        driver_version=str(wire.get("driver_version", "")),
        user_namespace=bool(wire.get("user_namespace")),
        seccomp=str(wire.get("seccomp", "")),
        quota=str(wire.get("quota", "")),
        cgroup=str(wire.get("cgroup", "")),
        network=str(wire.get("network", "")),
        missing=tuple(wire.get("missing") or ()),
    )


def usage(wire: dict[str, Any] | None) -> Usage:
    """Read the usage object; what is not there counts as 0."""
    wire = wire or {}
    return Usage(
        cpu_ms=float(wire.get("cpu_ms") or 0),
        **{
            name: int(wire.get(name) or 0)
            for name in (
                "memory_bytes",
                "memory_peak_bytes",
                "disk_bytes",
                "oom_kills",
                "pids",
                "sent_bytes",
                "received_bytes",
            )
        },
    )


def sandbox(wire: dict[str, Any]) -> SandboxInfo:
    """Read a sandbox."""
    return SandboxInfo(
        id=str(wire["id"]),
        name=str(wire.get("name") or ""),
        project=str(wire.get("project") or ""),
        state=str(wire.get("state") or ""),
        state_note=wire.get("state_note"),
        image=str(wire.get("image") or ""),
        image_used=str(wire.get("image_used") or ""),
        image_digest=str(wire.get("image_digest") or ""),
        image_note=wire.get("image_note"),
        driver=str(wire.get("driver") or ""),
        isolation=isolation(wire.get("isolation")),
        cpus=float(wire.get("cpus") or 0),
        memory_mib=int(wire.get("memory_mib") or 0),
        disk_mib=int(wire.get("disk_mib") or 0),
        pids=int(wire.get("pids") or 0),
        metadata=dict(wire.get("metadata") or {}),
        dialect=str(wire.get("dialect") or ""),
        created_by=str(wire.get("created_by") or ""),
        created_at=time_of(wire.get("created_at")),
        expires_at=time_of(wire.get("expires_at")),
        timeout_counts=str(wire.get("timeout_counts") or "always"),
        time_left_s=wire.get("time_left_s"),
        idle_timeout_s=wire.get("idle_timeout_s"),
        idle_action=str(wire.get("idle_action") or ""),
        auto_resume=bool(wire.get("auto_resume", True)),
        last_active_at=time_of(wire.get("last_active_at")),
        create_ms=wire.get("create_ms"),
        source=wire.get("source"),
        ended_at=time_of(wire.get("ended_at")),
        end_reason=wire.get("end_reason"),
        end_detail=wire.get("end_detail"),
        came_from=_came_from(wire.get("came_from")),
        rolled_back_to=wire.get("rolled_back_to"),
        rolled_back_at=time_of(wire.get("rolled_back_at")),
        kept=_kept(wire.get("kept")),
        kept_bytes=int(wire.get("kept_bytes") or 0),
        usage=usage(wire.get("usage")),
        raw=wire,
    )


def _kept(wire: dict[str, Any] | None) -> Kept | None:
    return Kept(memory=bool(wire.get("memory")), reason=wire.get("reason")) if wire else None


def _came_from(wire: dict[str, Any] | None) -> CameFrom | None:
    if not wire:
        return None
    return CameFrom(
        memory=bool(wire.get("memory")),
        reason=wire.get("reason"),
        snapshot=wire.get("snapshot"),
        sandbox=str(wire.get("sandbox") or ""),
    )


def snapshot(wire: dict[str, Any]) -> Snapshot:
    """Read a snapshot."""
    texts = ("name", "project", "state", "sandbox", "sandbox_name", "driver", "image", "image_used", "image_digest")
    numbers = ("memory_mib", "disk_mib", "pids", "memory_bytes", "disk_bytes", "processes")
    given: dict[str, Any] = {name: str(wire.get(name) or "") for name in texts}
    given |= {name: int(wire.get(name) or 0) for name in numbers}
    return Snapshot(
        id=str(wire["id"]),
        failure=wire.get("failure"),
        memory=bool(wire.get("memory")),
        reason=wire.get("reason"),
        tags=dict(wire.get("tags") or {}),
        parent=wire.get("parent"),
        cpus=float(wire.get("cpus") or 0),
        metadata=dict(wire.get("metadata") or {}),
        timeout_counts=str(wire.get("timeout_counts") or "always"),
        idle_timeout_s=wire.get("idle_timeout_s"),
        idle_action=str(wire.get("idle_action") or ""),
        auto_resume=bool(wire.get("auto_resume", True)),
        stopped_ms=float(wire.get("stopped_ms") or 0),
        took_ms=float(wire.get("took_ms") or 0),
        created_at=time_of(wire.get("created_at")),
        created_by=str(wire.get("created_by") or ""),
        dialect=str(wire.get("dialect") or ""),
        imported=bool(wire.get("imported")),
        raw=wire,
        **given,
    )


def command(wire: dict[str, Any]) -> CommandInfo:
    """Read a background command."""
    return CommandInfo(**_command(wire))


def terminal(wire: dict[str, Any]) -> TerminalInfo:
    """Read a terminal."""
    return TerminalInfo(**_command(wire), cols=int(wire.get("cols") or 0), rows=int(wire.get("rows") or 0))


def _command(wire: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": str(wire["id"]),
        "pid": int(wire.get("pid") or 0),
        "command": tuple(wire.get("command") or ()),
        "started_at": time_of(wire.get("started_at")),
        "running": bool(wire.get("running")),
        "exit": wire.get("exit"),
        "cursor": int(wire.get("cursor") or 0),
        "oldest_cursor": int(wire.get("oldest_cursor") or 0),
        "shell": wire.get("shell"),
        "queued": bool(wire.get("queued")),
        "raw": wire,
    }


def file(wire: dict[str, Any]) -> FileInfo:
    """Read a directory entry."""
    return FileInfo(
        path=str(wire["path"]),
        name=str(wire.get("name") or ""),
        kind=str(wire.get("kind") or "other"),
        size=int(wire.get("size") or 0),
        mode=int(str(wire.get("mode") or "0"), 8),
        uid=int(wire.get("uid") or 0),
        gid=int(wire.get("gid") or 0),
        mtime=time_of(wire.get("mtime")),
        target=wire.get("target"),
    )


def image(wire: dict[str, Any]) -> Image:
    """Read an image."""
    return Image(
        name=str(wire["name"]),
        digest=str(wire.get("digest") or ""),
        size_bytes=int(wire.get("size_bytes") or 0),
        status=str(wire.get("status") or ""),
        origin=str(wire.get("origin") or "builtin"),
        manifest_digest=wire.get("manifest_digest"),
        created_at=time_of(wire.get("created_at")),
        config=wire.get("config"),
    )


def key(wire: dict[str, Any]) -> Key:
    """Read a key."""
    return Key(
        id=str(wire["id"]),
        name=str(wire.get("name") or ""),
        project=str(wire.get("project") or ""),
        scopes=tuple(wire.get("scopes") or ()),
        dialect=wire.get("dialect"),
        created_at=time_of(wire.get("created_at")),
        expires_at=time_of(wire.get("expires_at")),
        revoked_at=time_of(wire.get("revoked_at")),
        last_used_at=time_of(wire.get("last_used_at")),
        key=wire.get("key"),
    )


def ssh_key(wire: dict[str, Any]) -> SshKey:
    """Read a public key for SSH."""
    return SshKey(
        id=str(wire["id"]),
        name=str(wire.get("name") or ""),
        project=str(wire.get("project") or ""),
        type=str(wire.get("type") or ""),
        public_key=str(wire.get("public_key") or ""),
        fingerprint=str(wire.get("fingerprint") or ""),
        created_at=time_of(wire.get("created_at")),
        last_used_at=time_of(wire.get("last_used_at")),
    )


def project(wire: dict[str, Any]) -> Project:
    """Read a project."""
    return Project(
        id=str(wire["id"]),
        created_at=time_of(wire.get("created_at")),
        default_driver=wire.get("default_driver"),
        drivers=tuple(str(name) for name in wire.get("drivers") or ()),
    )
