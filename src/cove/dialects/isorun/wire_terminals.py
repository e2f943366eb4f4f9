"""isorun's terminal on the wire: the query of its WebSocket, and its text messages. Binary ones are the terminal's."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class TerminalQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How the terminal begins. `token` is the key, where no header brings it."""

    cols: int = 80
    rows: int = 24
    token: Annotated[str, Meta(max_length=512)] = ""


class InputFrame(Struct, frozen=True, tag="input"):
    """Keystrokes as text."""

    data: str


class ResizeFrame(Struct, frozen=True, tag="resize"):
    """Another size of the window."""

    cols: int
    rows: int


ClientFrame = InputFrame | ResizeFrame


class AnyFrame(Struct, frozen=True):
    """What tells a message of ours from keystrokes."""

    type: str


class ExitFrame(Struct, frozen=True, tag="exit"):
    """The shell has ended. The last message."""

    exit_code: int


class ErrorFrame(Struct, frozen=True, tag="error"):
    """A message that changed nothing, and why."""

    error: str
