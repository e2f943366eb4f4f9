"""What goes over the wire about terminals: frozen structs, nothing else. Pure.

The frames of an attached terminal are here too: binary ones are output and input, text ones are these, as JSON.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from cove.dialects.native.wire import TEN_YEARS_S, Exit, Path, Request

Side = Annotated[int, Meta(ge=1, le=10000)]


class Open(Request, frozen=True):
    """A terminal to be; `command` null: the user's own shell."""

    command: str | tuple[str, ...] | None = None
    cols: Side = 80
    rows: Side = 24
    env: dict[str, str] = field(default_factory=dict[str, str])
    cwd: Path | None = None
    user: (
        Annotated[
            str, Meta(max_length=64, description="A name or uid[:gid] inside; null: the image's user, else root.")
        ]
        | None
    ) = None
    timeout_s: Annotated[float, Meta(ge=0.01, le=TEN_YEARS_S)] | None = None
    keep_bytes: Annotated[int, Meta(ge=4096, le=16777216)] = 1048576


class Resize(Request, frozen=True):
    """The window's size from now on."""

    cols: Side
    rows: Side


class AttachQuery(Request, frozen=True):
    """Where to begin; without it, at the oldest byte that is kept."""

    cursor: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None


class Terminal(Struct, frozen=True, kw_only=True):
    """A terminal; `cursor` is the end of its output so far, `oldest_cursor` the first byte still kept."""

    id: str
    pid: int
    command: tuple[str, ...]
    cols: int
    rows: int
    started_at: str
    running: bool
    exit: Exit | None
    cursor: int
    oldest_cursor: int


class TerminalList(Struct, frozen=True):
    """The terminals that the sandbox still knows."""

    terminals: tuple[Terminal, ...]


class ResizeFrame(Request, frozen=True, tag="resize"):
    """From the client: the window's size from now on."""

    cols: Side
    rows: Side


class SignalFrame(Request, frozen=True, tag="signal"):
    """From the client: a signal by name or number, to the group in the foreground."""

    signal: str | Annotated[int, Meta(ge=1, le=64)]


class AttachedFrame(Struct, frozen=True, tag="attached"):
    """The first frame: output begins at `cursor`."""

    cursor: int
    cols: int
    rows: int


class GapFrame(Struct, frozen=True, tag="gap"):
    """`lost` bytes of output are no longer kept."""

    lost: int


class ExitFrame(Struct, frozen=True, tag="exit"):
    """The last frame: why it ended. `exit` is the exit code."""

    exit: int
    why: Literal["exited", "killed", "timeout", "oom", "sandbox-gone", "canceled"]
    signal: int | None
    cursor: int | None


ClientFrame = ResizeFrame | SignalFrame
