"""What one sandbox may take of a listener that all share, so that none starves the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

_KNOWN: Final = 4096
"""Sandboxes that are remembered; past that, those that use nothing are forgotten."""


class Shares:
    """Per sandbox: so many at a time, and so many new ones per second after a burst."""

    def __init__(
        self, *, at_a_time: int, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._at_a_time = at_a_time
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._shares: dict[str, _Share] = {}

    def take(self, box: str) -> bool:
        """Take one into use; False: there is none for it now. Who took one gives it back."""
        share = self._of(box)
        if share.in_use >= self._at_a_time or not share.take(self._clock(), self._per_s, self._burst):
            return False
        share.in_use += 1
        return True

    def give(self, box: str) -> None:
        """One is no longer in use."""
        self._of(box).in_use -= 1

    @contextmanager
    def one(self, box: str) -> Generator[bool]:
        """Within, one more is in use; False: there is none for it now, and nothing was taken."""
        has_one = self.take(box)
        try:
            yield has_one
        finally:
            if has_one:
                self.give(box)

    def _of(self, box: str) -> _Share:
        share = self._shares.get(box)
        if share is None:
            if len(self._shares) >= _KNOWN:
                self._shares = {name: share for name, share in self._shares.items() if share.in_use}
            share = self._shares[box] = _Share(self._burst, self._clock())
        return share


class _Share:
    def __init__(self, tokens: float, at: float) -> None:
        self.in_use = 0
        self._tokens = tokens
        self._at = at

    def take(self, now: float, per_s: float, burst: float) -> bool:
        self._tokens = min(burst, self._tokens + (now - self._at) * per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
