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


@contextmanager
def waiting(what: str, *, quiet: bool = False) -> Generator[None]:
    """Show `what` with the seconds passed while the body runs."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_draw, args=(what, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _draw(what: str, over: threading.Event) -> None:
    begin = time.monotonic()
    if over.wait(NOTICEABLE_S):
        return
    turn = 0
    while not over.wait(0.1):
        turn += 1
        passed = time.monotonic() - begin
        sys.stderr.write(f"\r\x1b[K{_FRAMES[turn % len(_FRAMES)]} {what} {passed:.0f} s")
        sys.stderr.flush()
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()
