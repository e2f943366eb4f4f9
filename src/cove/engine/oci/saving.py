"""What a driver and a box share while a checkpoint is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct, field

CopyLayer = Callable[[], Awaitable[None]]
"""Copies the box's writable layer into the checkpoint. To be awaited once, while nothing runs in the box."""


async def surely(action: Awaitable[None]) -> None:
    """Await `action` to its end, also when cancelled; only then be cancelled. It must have a time limit of its own."""
    ended = asyncio.Event()

    async def act() -> None:
        try:
            await action
        finally:
            ended.set()

    try:
        await asyncio.shield(act())
    except asyncio.CancelledError:
        await ended.wait()
        raise


class Saved(Struct, frozen=True, kw_only=True):
    """What a driver tells of a box that it has saved; the fields as in `CheckpointFacts`."""

    processes: int
    stopped_ms: float
    memory_bytes: int = 0
    engine: dict[str, str] = field(default_factory=dict[str, str])


class StopClock:
    """How long a box stands still. Runs from the moment it is made until `stop`."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.stopped_ms = 0.0

    def stop(self) -> None:
        """It goes on, or what was to be taken is taken."""
        self.stopped_ms = (time.monotonic() - self._started) * 1000
