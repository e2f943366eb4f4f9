"""An execution: one program run in a sandbox of its own, or in a session's. Frozen values, no I/O.

Who wants a result and no sandbox asks for one: the sandbox is made, filled, used and ended around the program. In a
*session* the sandbox stays for the next execution of the same name.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct, field

from cove.model.errors import BadRequest, Conflict
from cove.model.execs import Stream, Why
from cove.model.network import NetworkRequest, Visit
from cove.model.sandbox import MIB, Usage

HOME: Final = "/sandbox"
"""Where executions work: the home of their user."""

EXECUTION_UID: Final = 100
EXECUTION_GID: Final = 101
EXECUTION_USER: Final = f"{EXECUTION_UID}:{EXECUTION_GID}"
"""Who executions run as, in any image."""

EXECUTION_TIMEOUT_S: Final = 30.0
EXECUTION_OUTPUT_BYTES: Final = MIB


class Stage(StrEnum):
    """The steps of an execution that run programs of the caller, each with the whole time limit for itself."""

    INSTALL = "install"
    SETUP = "setup"
    CODE = "code"


class Seccomp(StrEnum):
    """Which system calls an execution's sandbox has. Nobody gets more than what a sandbox has."""

    STRICT = "strict"
    UNCONFINED = "unconfined"
    CUSTOM = "custom"


class WrongRuntime(Conflict):
    """A session works in one language; this execution names another."""

    kind = "wrong-runtime"

    def __init__(self, had: str, asked: str) -> None:
        super().__init__(f"this session runs {had}, not {asked}", field="runtime")
        self.had = had
        self.asked = asked


class RemoteFault(StrEnum):
    """Why a program was not fetched. `RemoteRefused.detail` is what the comment says."""

    DISABLED = "disabled"
    INVALID = "invalid"
    INSECURE = "insecure"
    SCHEME = "scheme"  # the scheme
    HOST = "host"  # the host that may not be asked
    UNRESOLVED = "unresolved"  # the host
    UNHASHED = "unhashed"
    TIMEOUT = "timeout"  # the limit in milliseconds
    STATUS = "status"  # of HTTP
    FAILED = "failed"  # why
    TOO_LARGE = "too-large"  # the limit in bytes
    MISMATCH = "mismatch"
    BINARY = "binary"


class RemoteRefused(BadRequest):
    """The program was not fetched: the operator's policy is against it, or what is there is not a program."""

    kind = "remote-refused"

    def __init__(self, fault: RemoteFault, detail: str = "") -> None:
        said = f"the program was not fetched: {fault.value}" + (f" ({detail})" if detail else "")
        super().__init__(said, field="code_url")
        self.fault = fault
        self.detail = detail


class ExecutionSettings(Struct, frozen=True, kw_only=True):
    """What the sandbox of an execution is like. A session keeps those of its first execution.

    `network` None: none. `scratch_bytes` and `tmp_bytes`: the size of /sandbox and of /tmp. `read_only`: nothing else
    can be written. `image` None: the runtime's. `secrets` are in the environment, and masked in all output.
    `output_limit_bytes`: of each stream of a buffered execution. `keep`: the sandbox goes on after the execution.
    `log_network`: the result tells what names were asked for.
    """

    network: NetworkRequest | None = None
    cpus: float = 1.0
    memory_bytes: int = 512 * MIB
    pids: int = 64
    scratch_bytes: int = 512 * MIB
    tmp_bytes: int = 256 * MIB
    read_only: bool = True
    image: str | None = None
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    timeout_s: float = EXECUTION_TIMEOUT_S
    output_limit_bytes: int = EXECUTION_OUTPUT_BYTES
    seccomp: Seccomp = Seccomp.STRICT
    seccomp_profile: str | None = None
    log_network: bool = False
    keep: bool = False


class RemoteSource(Struct, frozen=True, kw_only=True):
    """A program that is fetched by the server; `sha256` (hex): what it must be. `plain`: http will do."""

    url: str
    sha256: str | None = None
    plain: bool = False


class ExecutionSpec(Struct, frozen=True, kw_only=True):
    """One execution. Exactly one of `code`, `remote` and `command` (for bash, whatever the runtime) is set.

    `timeout_s` None: that of the settings. `env` is not masked, and not there in install and set-up. `files` by path,
    relative ones below HOME. `collect`: paths whose content the result has; None: none asked for. `packages`: what the
    runtime's package manager is to install first, `setup`: a script for bash after that, at `setup_path`. `workdir` is
    resolved against HOME. `extension` of the program's file, with its dot. `flags`: of the agent runtime, shell text.
    `session`: the name of the session; None: a sandbox of its own.
    """

    runtime: str
    code: str | None = None
    remote: RemoteSource | None = None
    command: str | None = None
    timeout_s: float | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    stdin: bytes | None = None
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    collect: tuple[str, ...] | None = None
    packages: tuple[str, ...] = ()
    setup: str | None = None
    setup_path: str = f"{HOME}/.setup.sh"
    workdir: str = HOME
    extension: str | None = None
    flags: str = ""
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    session: str | None = None
    settings: ExecutionSettings = field(default_factory=ExecutionSettings)


class StageFailure(Struct, frozen=True, kw_only=True):
    """Why the program was not started: an install or a set-up that failed, or (`path`) a file that was not written."""

    stage: Stage | None
    code: int
    stderr: str = ""
    path: str | None = None
    timed_out: bool = False


class ExecutionOutput(Struct, frozen=True, tag="output"):
    """A piece of what a stage wrote, masked; no character is cut in two."""

    stage: Stage
    stream: Stream
    text: str


class StageEnded(Struct, frozen=True, tag="stage-ended", kw_only=True):
    """A stage is over. One that failed is followed by the end of the execution."""

    stage: Stage
    code: int
    why: Why


class ExecutionResult(Struct, frozen=True, tag="done", kw_only=True):
    """How an execution ended: always the last event. Of a streamed one the texts are empty.

    `failure`: the program was not started. `*_bytes`: what each stream had in all; of it `stdout` and `stderr` are the
    first, masked, where the limit cut it. `duration_ms` is the program's alone. `sandbox` is its core id, None: it was
    ended meanwhile. `usage` of the sandbox since it was made, `cpu_ms` of the program.
    """

    id: str
    runtime: str
    ended_at: float
    failure: StageFailure | None = None
    code: int = 0
    why: Why = Why.EXITED
    stdout: str = ""
    stderr: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    output_limit_bytes: int = 0
    stdout_cut: bool = False
    stderr_cut: bool = False
    duration_ms: float = 0.0
    cpu_ms: float = 0.0
    sandbox: str | None = None
    usage: Usage = field(default_factory=Usage)
    files: dict[str, bytes] | None = None
    visits: tuple[Visit, ...] = ()


ExecutionEvent = ExecutionOutput | StageEnded | ExecutionResult
