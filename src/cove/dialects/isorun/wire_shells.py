"""isorun's shell on the wire: text messages, both ways."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Tag = Annotated[str, Meta(max_length=256)] | int | None
"""What a client calls a command by; what comes of it bears it unchanged."""


class ShellQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`token` is the key, where no header brings it."""

    token: Annotated[str, Meta(max_length=512)] = ""


class ClientFrame(Struct, frozen=True):
    """A command to run (`cmd` is another word for `command`), a `signal` for the one that runs, or `close`."""

    type: str = "run"
    id: Tag = None
    command: str | None = None
    cmd: str | None = None
    timeout: float | None = None
    signal: str | int | None = None


class OutputFrame(Struct, frozen=True):
    """A piece of what a command writes; `type` is `stdout` or `stderr`."""

    type: str
    id: Tag
    data: str


class ExitFrame(Struct, frozen=True, tag="exit"):
    """A command has ended."""

    id: Tag
    exit_code: int
    duration_ms: int


class ErrorFrame(Struct, frozen=True, tag="error"):
    """A message that changed nothing, and why. `id`: the command that was not queued."""

    id: Tag
    error: str


class ClosedFrame(Struct, frozen=True, tag="closed"):
    """The shell has ended. The last message."""

    exit_code: int
