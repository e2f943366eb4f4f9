"""How setup tells what it does: one line per step that took long enough to be noticed. Writes to stderr only.

Steps may run side by side in threads; a terminal shows them on one status line which each turns into a summary line
when it ends. Without a terminal there is no animation: the summary alone, and a line at the start of a long step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol, TextIO

NOTICEABLE_S: Final = 0.3  # what is over sooner needs no word
LONG_S: Final = 2.0  # without a terminal: after this long the reader is told what is being waited for


class Step:
    """One running step. `done` replaces the sentence of the summary line; `skip` says that there was nothing to do."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.started = time.monotonic()
        self.is_announced = False
        self.summary = doing

    def done(self, summary: str) -> None:
        """Set what the summary line says, without its time: "Built image base"."""
        self.summary = summary

    @property
    def elapsed_s(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started


class Progress(Protocol):
    """What setup reports to."""

    def step(self, doing: str) -> AbstractContextManager[Step]:
        """Announce a step ("Building image base"); leaving the context ends it."""
        ...

    def note(self, text: str) -> None:
        """Say one line that belongs to no step."""
        ...


class SilentProgress:
    """Reports nothing; for tests and `--quiet`."""

    @contextmanager
    def step(self, doing: str) -> Generator[Step]:
        """Run the step without a word."""
        yield Step(doing)

    def note(self, text: str) -> None:
        """Drop the line."""


class StderrProgress:
    """Reports to `out`, with an animation where it is a terminal. A thread draws it while a step runs."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._tty = out.isatty()
        self._lock = threading.Lock()
        self._active: list[Step] = []
        self._idle = threading.Event()

    @contextmanager
    def step(self, doing: str) -> Generator[Step]:
        """Show `doing` from 300 ms on; end with the summary and its time, or with "failed" when the body raises."""
        step = Step(doing)
        with self._lock:
            self._active.append(step)
            if len(self._active) == 1:
                self._idle = threading.Event()
                threading.Thread(target=self._draw, args=(self._idle,), daemon=True).start()
        try:
            yield step
        except BaseException:
            step.summary = f"{doing}: failed"
            self._end(step, always=True)
            raise
        self._end(step, always=False)

    def note(self, text: str) -> None:
        """Say one line above the status line."""
        with self._lock:
            self._line(text)

    def _end(self, step: Step, *, always: bool) -> None:
        with self._lock:
            self._active.remove(step)
            if not self._active:
                self._idle.set()
            if always or step.elapsed_s >= NOTICEABLE_S:
                self._line(f"{step.summary} in {step.elapsed_s:.1f} s.")
            elif self._tty:
                self._out.write("\r\x1b[K")
                self._out.flush()

    def _draw(self, idle: threading.Event) -> None:
        while not idle.wait(NOTICEABLE_S):
            with self._lock:
                if idle.is_set():
                    return
                self._announce()

    def _announce(self) -> None:
        if self._tty:
            parts = [f"{s.doing} ({s.elapsed_s:.0f} s)" for s in self._active if s.elapsed_s >= NOTICEABLE_S]
            if parts:
                self._out.write("\r\x1b[K" + " · ".join(parts)[:118])
                self._out.flush()
            return
        for step in self._active:
            if not step.is_announced and step.elapsed_s >= LONG_S:
                step.is_announced = True
                self._line(f"{step.doing} ...")

    def _line(self, text: str) -> None:
        self._out.write(f"\r\x1b[K{text}\n" if self._tty else f"{text}\n")
        self._out.flush()
