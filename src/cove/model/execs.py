"""Commands in a sandbox: what is asked, what comes back. Frozen values, no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct, field

OUTPUT_LIMIT_BYTES: Final = 10 * 1024 * 1024
"""Per stream, of a buffered exec. Beyond it the head is dropped and the tail wins; the result says so."""

KEPT_OUTPUT_BYTES: Final = 1024 * 1024
"""Default size of the ring in which the agent keeps a background command's output, both streams together."""


class Why(StrEnum):
    """Why a command ended. The first that applies, in this order: gone, canceled, timeout, oom, killed, exited."""

    EXITED = "exited"
    KILLED = "killed"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "oom"
    SANDBOX_GONE = "sandbox-gone"
    CANCELED = "canceled"
    """It waited for its turn in a shell, and was removed or the shell ended: it never ran."""


class Stream(StrEnum):
    """Which stream of a command a chunk came from."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ExecSpec(Struct, frozen=True, kw_only=True):
    """One command. Exactly one of `argv` and `shell` is set; `shell` runs as `/bin/sh -c`.

    `env` is added to the sandbox's own; `cwd` None: the image's working directory; `user` is a name or
    `uid[:gid]` inside, None: the image's, else root; `timeout_s` None: no limit; `stdin` None: /dev/null.
    `tool`: `argv` names a program that the agent brings (`login`, `sftp`, `socket`), not one of the sandbox.
    """

    argv: tuple[str, ...] | None = None
    shell: str | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    cwd: str | None = None
    user: str | None = None
    timeout_s: float | None = None
    stdin: bytes | None = None
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES
    tool: bool = False


class ExecExit(Struct, frozen=True, kw_only=True):
    """How a command ended. `code` is the exit status, or 128 + signal when a signal ended it (as a shell says it)."""

    code: int
    why: Why
    signal: int | None = None
    duration_ms: float = 0.0
    cpu_ms: float = 0.0
    max_rss_bytes: int = 0


class ExecResult(Struct, frozen=True, kw_only=True):
    """A finished buffered exec. `*_dropped_bytes` counts what was cut from the head of each stream."""

    exit: ExecExit
    stdout: bytes
    stderr: bytes
    stdout_dropped_bytes: int = 0
    stderr_dropped_bytes: int = 0


class Started(Struct, frozen=True, tag="started"):
    """The command runs."""

    id: str
    pid: int


class Chunk(Struct, frozen=True, tag="chunk"):
    """A piece of output, of arbitrary length, in the order in which the agent read it."""

    stream: Stream
    data: bytes


class Gap(Struct, frozen=True, tag="gap"):
    """`lost_bytes` of output before this point are no longer kept."""

    lost_bytes: int


class Ended(Struct, frozen=True, tag="ended"):
    """Always the last event of a stream that reached the command's end. `cursor` only for kept output."""

    exit: ExecExit
    cursor: int | None = None


class Paused(Struct, frozen=True, tag="paused"):
    """The end of a non-following read of kept output: the command still runs; go on at `cursor`."""

    cursor: int


ExecEvent = Started | Chunk | Gap | Ended | Paused


class Command(Struct, frozen=True, kw_only=True):
    """A background command, whose output the agent keeps in a ring.

    `cursor` is the end of the output, in bytes since the start over both streams; `oldest_cursor` the first byte kept.
    `shell`: whose command it is, if one's; `queued`: it waits for its turn there.
    """

    id: str
    pid: int
    argv: tuple[str, ...]
    started_at: float
    running: bool
    exit: ExecExit | None
    cursor: int
    oldest_cursor: int
    shell: str | None = None
    queued: bool = False
