"""JSON of the agent protocol as closed types, and their translation into `cove.model`. Pure.

The agent is hostile: integers are bounded so that every store and dialect can hold them, texts are cut, a value of
another type is a breach. Unknown fields are ignored, because a newer agent may send them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import cache
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict

from cove.model.errors import AgentViolation
from cove.model.execs import Command, ExecExit, ExecSpec, Why
from cove.model.files import FileInfo, FileKind
from cove.model.terminals import Terminal, TerminalSize

MAX_TEXT: Final = 1024
MAX_PATH_TEXT: Final = 8192
"""A path of 4096 bytes under a directory of as many: more is not shown."""

_FAR_FUTURE_S: Final = 253_402_300_799.0
"""The end of the year 9999, beyond which no formatter behind us goes."""

Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Identifier = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Mode = Annotated[int, Meta(ge=0, le=0o7777)]
Code = Annotated[int, Meta(ge=-1, le=255)]
Pid = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Id = Annotated[str, Meta(max_length=64)]


class AgentHello(Struct, frozen=True, kw_only=True):
    """What the agent says of itself. Facts for a log and a version check, never for trust."""

    protocol: int
    agent: Annotated[str, Meta(max_length=64)]
    build: Annotated[str, Meta(max_length=64)]
    features: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=64)] = ()


class AgentStats(Struct, frozen=True, kw_only=True):
    """The agent's own use of its sandbox."""

    commands: Natural
    attached: Natural
    goroutines: Natural
    heap_bytes: Natural
    uptime_ms: Natural


class QuiesceReply(Struct, frozen=True):
    """RESULT of `quiesce`. `session`: the token of the session that is kept; empty: none is."""

    session: Annotated[str, Meta(max_length=64)] = ""


class Revived(Struct, frozen=True, kw_only=True):
    """RESULT of `revive`: how many attached commands go on, processes were told to reseed, watches were armed."""

    released: Natural = 0
    signaled: Natural = 0
    watches: Natural = 0


class ClaimedEnvironment(Struct, frozen=True, kw_only=True):
    """What a sandbox's commands start with: RESULT of `environment`. May hold secrets."""

    env: Annotated[dict[str, str], Meta(max_length=4096)]
    workdir: Annotated[str, Meta(max_length=4096)] | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None

    def __repr__(self) -> str:
        """Without the environment."""
        return f"ClaimedEnvironment(workdir={self.workdir!r}, user={self.user!r})"


class FailReply(Struct, frozen=True):
    """FAIL."""

    kind: Annotated[str, Meta(max_length=64)]
    text: str = ""


class Empty(Struct, frozen=True):
    """RESULT of an operation that has nothing to tell."""


class ExitReply(Struct, frozen=True):
    """*exit*: RESULT of `exec`."""

    code: Code
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    timed_out: bool = False
    canceled: bool = False
    duration_us: Natural = 0
    cpu_us: Natural = 0
    max_rss_bytes: Natural = 0

    def to_model(self) -> ExecExit:
        """The exit as the core knows it."""
        why = Why.KILLED if self.signal is not None else Why.EXITED
        if self.timed_out:
            why = Why.TIMEOUT
        elif self.canceled:
            why = Why.CANCELED
        return ExecExit(
            code=self.code,
            why=why,
            signal=self.signal,
            duration_ms=self.duration_us / 1000,
            cpu_ms=self.cpu_us / 1000,
            max_rss_bytes=self.max_rss_bytes,
        )


class StartedReply(Struct, frozen=True):
    """RESULT of `start`."""

    id: Id
    pid: Pid


class SizeReply(Struct, frozen=True):
    """*size*: of a terminal's window. A program inside may have set it to 0."""

    cols: Annotated[int, Meta(ge=0, le=65535)]
    rows: Annotated[int, Meta(ge=0, le=65535)]

    def to_model(self) -> TerminalSize:
        """The size as the core knows it."""
        return TerminalSize(cols=self.cols, rows=self.rows)


class CommandReply(Struct, frozen=True):
    """*info*: a kept command."""

    id: Id
    pid: Pid
    argv: Annotated[tuple[str, ...], Meta(max_length=4096)]
    started_at: float
    running: bool
    exit: ExitReply | None
    cursor: Natural
    oldest_cursor: Natural
    pty: SizeReply | None = None
    shell: Id = ""
    queued: bool = False

    def to_model(self) -> Command:
        """The command, or Terminal, as the core knows it. Raises: AgentViolation."""
        if not self.running and self.exit is None:
            raise violation("an ended command without its exit")
        command = Command(
            id=self.id,
            pid=self.pid,
            argv=self.argv,
            started_at=seconds(self.started_at),
            running=self.running,
            exit=None if self.running or self.exit is None else self.exit.to_model(),
            cursor=self.cursor,
            oldest_cursor=self.oldest_cursor,
            shell=self.shell or None,
            queued=self.queued,
        )
        return command if self.pty is None else Terminal(**asdict(command), size=self.pty.to_model())


class CommandsReply(Struct, frozen=True):
    """RESULT of `commands`."""

    commands: Annotated[tuple[CommandReply, ...], Meta(max_length=256)]


class OutputReply(Struct, frozen=True):
    """RESULT of `output`."""

    cursor: Natural
    ended: bool
    exit: ExitReply | None = None


class WrittenReply(Struct, frozen=True):
    """RESULT of `stdin`."""

    written: Natural


class StatReply(Struct, frozen=True):
    """*stat*: a directory entry."""

    path: str
    name: str
    kind: FileKind
    size: Natural
    mode: Mode
    uid: Identifier
    gid: Identifier
    mtime: float
    target: str | None = None

    def to_model(self) -> FileInfo:
        """The entry as the core knows it, texts cut."""
        return FileInfo(
            path=self.path[:MAX_PATH_TEXT],
            name=self.name[:MAX_TEXT],
            kind=self.kind,
            size=self.size,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            mtime=seconds(self.mtime),
            target=None if self.target is None else self.target[:MAX_PATH_TEXT],
        )


class ListReply(Struct, frozen=True):
    """RESULT of `list`."""

    entries: Annotated[tuple[StatReply, ...], Meta(max_length=1000)]
    more: bool


class RemovedReply(Struct, frozen=True):
    """RESULT of `remove`."""

    removed: Natural


class BytesReply(Struct, frozen=True):
    """RESULT of `read`."""

    bytes: Natural


class EventReply(Struct, frozen=True):
    """The union of all events' fields; `event` says which are meant."""

    event: Annotated[str, Meta(max_length=64)]
    id: Id = ""
    pid: Pid = 0
    lost: Natural = 0
    stat: StatReply | None = None


T = TypeVar("T")


@cache
def _decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(payload: bytes | bytearray, kind: type[T]) -> T:
    """`payload` as a `kind`. Raises: AgentViolation for anything else."""
    try:
        value: T = _decoder(kind).decode(payload)  # type: ignore[arg-type]  # a class is hashable
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise violation(f"not a {kind.__name__}: {str(error)[:200]}") from error
    return value


def violation(what: str) -> AgentViolation:
    """The error for a breach; `what` is for the log and holds no bytes of the sandbox beyond msgspec's own words."""
    return AgentViolation("the sandbox's agent broke the protocol", internal=what)


def exec_fields(spec: ExecSpec) -> dict[str, object]:
    """The fields that `exec` and `start` share."""
    return {
        "argv": spec.argv,
        "shell": spec.shell,
        "env": spec.env,
        "cwd": spec.cwd,
        "user": spec.user,
        "timeout_ms": 0 if spec.timeout_s is None else max(1, math.ceil(spec.timeout_s * 1000)),
        "tool": spec.tool,
    }


def seconds(value: float) -> float:
    """A time that the agent tells, as Unix seconds that can be shown."""
    # A year of 10^300 would break every formatter behind us; the file is then simply of 1970.
    return value if math.isfinite(value) and 0 <= value < _FAR_FUTURE_S else 0.0
