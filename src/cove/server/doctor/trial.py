"""Tries something in a forked child, so that what it does to its process is gone with it and a hang costs a time limit.

Only for `cove doctor`: a fork of a process with threads could deadlock in the child, and the doctor's command has none.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from typing import Final

from msgspec import Struct

LIMIT_S: Final = 10.0
_MAX_ANSWER: Final = 8192


class Outcome(Struct, frozen=True, kw_only=True):
    """How a trial ended: `text` is what it returned, or why it failed in one line."""

    worked: bool
    text: str


def attempt(trial: Callable[[], str], *, limit_s: float = LIMIT_S) -> Outcome:
    """Run `trial` in a child of its own. Blocks for at most `limit_s`; its process group is killed after that."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(trial, writer)
    os.close(writer)
    try:
        return _read_outcome(reader, limit_s)
    finally:
        os.close(reader)
        for kill in (os.killpg, os.kill):
            try:
                kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        os.waitpid(pid, 0)


def _child(trial: Callable[[], str], writer: int) -> None:
    """Never returns: the caller's stack must not run twice."""
    try:
        os.setpgid(0, 0)
        devnull = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(devnull, fd)
        answer = b"y" + trial().encode()
    except OSError as error:
        answer = b"n" + (error.strerror or str(error)).encode()
    except Exception as error:  # noqa: BLE001 - the outermost frame of this process; its words go to the parent
        answer = b"n" + f"{type(error).__name__}: {error}".encode()
    os.write(writer, answer[:_MAX_ANSWER])
    os._exit(0)


def _read_outcome(reader: int, limit_s: float) -> Outcome:
    ready, _, _ = select.select([reader], [], [], limit_s)
    if not ready:
        return Outcome(worked=False, text=f"no answer within {limit_s:.0f} s")
    answer = os.read(reader, _MAX_ANSWER).decode(errors="replace")
    return Outcome(worked=answer.startswith("y"), text=answer[1:] or "the probe died")
