"""What isol8 requests say, and answers in the order of their fields. Unknown fields are passed over, as over there.

Only shapes and types stand here; what values mean is in `translate.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Byte = Annotated[int, Meta(ge=0, le=255)]


class Buffer(Struct, frozen=True):
    """Bytes as the JSON of the original's runtime has them."""

    type: Literal["Buffer"]
    data: list[Byte]


class Request(Struct, frozen=True, kw_only=True, rename="camel"):
    """The program, and what is around it."""

    runtime: str = "undefined"
    code: str | None = None
    code_url: str | None = None
    cmd: str | None = None
    timeout_ms: float | None = None
    env: dict[str, str] | None = None
    stdin: str | None = None
    files: dict[str, str | Buffer] | None = None
    output_paths: list[str] | None = None
    install_packages: list[str] | None = None
    setup_script: str | None = None
    workdir: str | None = None
    file_extension: str | None = None
    code_hash: str | None = None
    allow_insecure_code_url: bool | None = None
    agent_flags: str | None = None
    metadata: dict[str, Any] | None = None


class NetworkFilter(Struct, frozen=True, kw_only=True):
    """Patterns of host names."""

    whitelist: list[str] = field(default_factory=list[str])
    blacklist: list[str] = field(default_factory=list[str])


class Security(Struct, frozen=True, kw_only=True, rename="camel"):
    """Which system calls there are."""

    seccomp: Literal["strict", "unconfined", "custom"] = "strict"
    custom_profile_path: str | None = None


class Options(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the sandbox is like."""

    network: Literal["none", "host", "filtered"] | None = None
    network_filter: NetworkFilter | None = None
    cpu_limit: float | None = None
    memory_limit: str | None = None
    pids_limit: int | None = None
    readonly_root_fs: bool | None = field(default=None, name="readonlyRootFs")
    max_output_size: int | None = None
    secrets: dict[str, str] | None = None
    timeout_ms: float | None = None
    sandbox_size: str | None = None
    tmp_size: str | None = None
    image: str | None = None
    security: Security | None = None
    log_network: bool | None = None
    persist: bool | None = None


class Envelope(Struct, frozen=True, kw_only=True, rename="camel"):
    """The body of an execution."""

    request: Request
    options: Options | None = None
    session_id: str | None = None


class Event(Struct, frozen=True):
    """One event of a stream."""

    type: Literal["stdout", "stderr", "exit", "error"]
    data: str
    phase: Literal["setup", "code"]


class Refusal(Struct, frozen=True, tag="error"):
    """The last event of an execution that was refused: no `exit` follows."""

    data: str


class ResourceUsage(Struct, frozen=True, kw_only=True):
    """What the sandbox used."""

    cpu_percent: float = field(name="cpuPercent")
    memory_mb: float = field(name="memoryMB")
    network_bytes_in: int = field(name="networkBytesIn")
    network_bytes_out: int = field(name="networkBytesOut")


class Result(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How an execution ended."""

    stdout: str
    stderr: str
    exit_code: int
    duration_ms: int
    truncated: bool
    execution_id: str
    runtime: str
    timestamp: str
    container_id: str | None = None
    resource_usage: ResourceUsage
    network_logs: list[dict[str, Any]] | None = None
    files: dict[str, str] | None = None


class Health(Struct, frozen=True):
    """The server answers."""

    status: str
    version: str


class Told(Struct, frozen=True):
    """What went wrong."""

    error: str
