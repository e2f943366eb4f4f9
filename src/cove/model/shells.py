"""Long-lived shells in a sandbox. Frozen values, no I/O. Each command of a shell is a background command too."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

from cove.model.execs import OUTPUT_LIMIT_BYTES, ExecExit


class ShellProgram(StrEnum):
    """What a shell can be."""

    BASH = "bash"
    SH = "sh"


class ShellSpec(Struct, frozen=True, kw_only=True):
    """A shell to be. `program` None: bash, or sh where there is none; the rest as of `ExecSpec`."""

    program: ShellProgram | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    cwd: str | None = None
    user: str | None = None


class ShellCommand(Struct, frozen=True, kw_only=True):
    """Text for a shell to run. `timeout_s` counts from its turn, not from the queue."""

    text: str
    timeout_s: float | None = None
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES


class Shell(Struct, frozen=True, kw_only=True):
    """A shell. `running` is the id of the command whose turn it is, `exit` how the shell itself ended.

    `job_control`: it has a terminal of its own, which a signal to the running command needs to spare the others.
    """

    id: str
    pid: int
    program: str
    cwd: str
    started_at: float
    running: str | None
    queued: int
    job_control: bool
    exit: ExecExit | None
