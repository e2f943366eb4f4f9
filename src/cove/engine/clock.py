"""Time as the engine and the core see it, so that tests can hold it still. No rule lives here."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Forget it. Harmless after it has fired."""


class Clock(Protocol):
    """`now` is what people call the time and may jump; every wait counts on `monotonic`, which does not."""

    def now(self) -> float:
        """Unix seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment, never backwards."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call on the loop after `delay_s` monotonic seconds."""
        ...


class SystemClock:
    """The real one."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since boot."""
        return time.monotonic()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call on the running loop."""
        return asyncio.get_running_loop().call_later(delay_s, callback)


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock:
    """The fake: time stands until `advance` or `jump_wall` moves it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._timers: list[tuple[float, int, _ManualTimer]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Unix seconds."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self._monotonic

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call when `advance` passes that moment."""
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (self._monotonic + max(delay_s, 0.0), next(self._order), timer))
        return timer

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock, as an operator or NTP does; no timer moves."""
        self._now += seconds

    def advance(self, seconds: float) -> None:
        """Let time pass, firing what is due in its order."""
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            at, _, timer = heapq.heappop(self._timers)
            self._now += max(at - self._monotonic, 0.0)
            self._monotonic = max(at, self._monotonic)
            if not timer.is_cancelled:
                timer.callback()
        self._now += end - self._monotonic
        self._monotonic = end


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait on `clock`. Cancelling leaves no timer behind."""
    done = asyncio.Event()
    timer = clock.call_later(seconds, done.set)
    try:
        await done.wait()
    finally:
        timer.cancel()
