"""One line that says what we wait for: from 300 ms on, on a terminal only, and gone when the wait is over."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

NOTICEABLE_S: Final = 0.3
_FRAMES: Final = "|/-\\"
_CLEAR: Final = "\r\x1b[K"


class Status:
    """What the line says; `what` and `how_far` may change while it is shown."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.how_far = ""
        self._is_shown = False
        self._lock = threading.Lock()

    def above(self, text: str) -> None:
        """Write a line of talk that stays, above the line that moves."""
        with self._lock:
            sys.stderr.write(f"{_CLEAR if self._is_shown else ''}{text}\n")
            sys.stderr.flush()
            self._is_shown = False

    def draw(self, line: str) -> None:
        """Replace the line that moves; empty: remove it."""
        with self._lock:
            sys.stderr.write(f"{_CLEAR}{line}")
            sys.stderr.flush()
            self._is_shown = bool(line)


@contextmanager
def waiting(what: str, *, quiet: bool = False) -> Generator[Status]:
    """Show `what` with the seconds passed while the body runs."""
    status = Status(what)
    if quiet or not sys.stderr.isatty():
        yield status
        return
    over = threading.Event()
    thread = threading.Thread(target=_draw, args=(status, over), daemon=True)
    thread.start()
    try:
        yield status
    finally:
        over.set()
        thread.join()


def _draw(status: Status, over: threading.Event) -> None:
    begin = time.monotonic()
    if over.wait(NOTICEABLE_S):
        return
    turn = 0
    while not over.wait(0.1):
        turn += 1
        parts = (status.what, status.how_far, f"{time.monotonic() - begin:.0f} s")
        line = f"{_FRAMES[turn % len(_FRAMES)]} {' '.join(part for part in parts if part)}"
        status.draw(line[: _columns() - 1])
    status.draw("")


def _columns() -> int:
    """A line that is wider than the terminal could not be taken back."""
    import os

    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max(columns or 80, 20)
