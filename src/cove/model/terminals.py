"""Terminals in a sandbox. Frozen values, no I/O. A terminal is a background command on a pseudo-terminal."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from cove.model.execs import Command

TERMINAL_SIDE: Final = (1, 10_000)
"""Columns or rows. The kernel counts them in 16 bits; programs take memory for their product."""


class TerminalSize(Struct, frozen=True):
    """The size of a terminal's window, in characters."""

    cols: int = 80
    rows: int = 24


class Terminal(Command, frozen=True, kw_only=True):
    """A terminal: the command that leads it, and its size now. Its output is one stream, told as stdout."""

    size: TerminalSize
