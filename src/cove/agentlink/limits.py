"""Time limits of calls that stand still while their connection is suspended. No I/O of its own.

A sandbox that is stopped for a snapshot has its own limits stopped too (agent/PROTOCOL.md, *Sessions*), so those of its
callers must not run out over it. A call that is made meanwhile waits within its own limit.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

SUSPENDED_LIMIT_S: Final = 300.0
"""How long limits stand still at most: whoever suspends a session takes it up or drops it long before."""


class Limits:
    """The running time limits of one connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: set[Limit] = set()
        self._stopped_at: float | None = None

    def of(self, timeout_s: float | None) -> Limit:
        """Like `asyncio.timeout`."""
        return Limit(self._running, timeout_s)

    def stop(self) -> None:
        """Let those that run stand still."""
        self._stopped_at = self._loop.time()
        for limit in self._running:
            limit.stands_still = True
            limit.move(SUSPENDED_LIMIT_S)

    def go_on(self) -> None:
        """Let them run again, later by the time that they stood still. Nothing if they do not."""
        if self._stopped_at is None:
            return
        stopped_at, now = self._stopped_at, self._loop.time()
        self._stopped_at = None
        for limit in self._running:
            if limit.stands_still:
                limit.stands_still = False
                limit.move(now - stopped_at - SUSPENDED_LIMIT_S)
            else:
                limit.move(now - limit.since)


class Limit:
    """`asyncio.timeout` that can be moved by its connection. Made by `Limits.of`."""

    def __init__(self, running: set[Limit], timeout_s: float | None) -> None:
        self._running = running
        self._timeout = asyncio.timeout(timeout_s)
        self.since = 0.0
        self.stands_still = False

    @property
    def is_set(self) -> bool:
        """Whether it runs out at all."""
        return self._timeout.when() is not None

    def set(self, timeout_s: float) -> None:
        """Run out so long from now."""
        self.since, self.stands_still = asyncio.get_running_loop().time(), False
        self._timeout.reschedule(self.since + timeout_s)
        self._running.add(self)

    def move(self, by_s: float) -> None:
        """Run out so much later. One that has run out already stays so."""
        when = self._timeout.when()
        if when is not None and not self._timeout.expired():
            self._timeout.reschedule(when + by_s)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        if self.is_set:
            self.since = asyncio.get_running_loop().time()
            self._running.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.discard(self)
        await self._timeout.__aexit__(kind, error, traceback)
