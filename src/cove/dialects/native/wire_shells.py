"""What goes over the wire about shells: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from cove.dialects.native.wire import TEN_YEARS_S, Encoding, Exit, Path, Request


class OpenShell(Request, frozen=True):
    """A shell to be. Everything is optional."""

    program: (
        Annotated[Literal["bash", "sh"], Meta(description="null: bash, or sh in an image that has no bash.")] | None
    ) = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    cwd: Path | None = None
    user: (
        Annotated[
            str, Meta(max_length=64, description="A name or uid[:gid] inside; null: the image's user, else root.")
        ]
        | None
    ) = None


class ShellRun(Request, frozen=True):
    """A command of a shell: text, at most 128 KiB. `timeout_s` counts from its turn."""

    command: str
    timeout_s: Annotated[float, Meta(ge=0.01, le=TEN_YEARS_S)] | None = None
    encoding: Encoding = "utf-8"


class ShellStart(ShellRun, frozen=True):
    """A command of a shell that nobody waits for."""

    keep_bytes: Annotated[int, Meta(ge=4096, le=16777216)] = 1048576


class Shell(Struct, frozen=True, kw_only=True):
    """A shell. `running` is the command whose turn it is, `queued` how many wait, `exit` the end of the shell itself.

    `job_control` false: this machine gives it no terminal, so `fg` and `bg` do not work in it.
    """

    id: str
    pid: int
    program: str
    cwd: str
    started_at: str
    running: str | None
    queued: int
    job_control: bool
    exit: Exit | None


class ShellList(Struct, frozen=True):
    """The shells that the sandbox still knows."""

    shells: tuple[Shell, ...]
