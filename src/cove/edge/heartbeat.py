"""The heartbeat of a stream: a client, and what stands between, can tell a quiet one from a dead one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cove.edge.errors import ClientGone
from cove.edge.exchange import Exchange


class Heartbeat:
    """Writes to the exchange, and a ping whenever nothing was written for a while.

    The head goes out with the first write: at once when the source has an event, else with a ping after `first_s`, so
    that a client learns that its stream is open.
    """

    def __init__(
        self, exchange: Exchange, headers: Sequence[tuple[bytes, bytes]], ping: bytes, *, first_s: float = 0.05
    ) -> None:
        self._exchange = exchange
        self._headers = headers
        self._ping_bytes = ping
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._is_writing = False
        self._task: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(first_s, self._tick)

    async def send(self, data: bytes) -> None:
        """Write `data`, with the head before it if it is the first."""
        while self._is_writing:  # a ping is on its way: rare, and over as soon as the client reads
            await asyncio.sleep(0.001)
        await self._write(data)

    def stop(self) -> None:
        """Send no more pings."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _write(self, data: bytes) -> None:
        self._is_writing = True
        try:
            if not self._exchange.has_started:
                await self._exchange.start(200, list(self._headers))
            await self._exchange.write(data)
        finally:
            self._is_writing = False
            self._last = self._loop.time()

    def _tick(self) -> None:
        silent = self._loop.time() - self._last
        due = self._exchange.limits.ping_s if self._exchange.has_started else 0.0
        if silent >= due and not self._is_writing:
            self._is_writing = True
            self._task = self._loop.create_task(self._ping())
            silent = 0.0
        self._timer = self._loop.call_later(max(self._exchange.limits.ping_s - silent, 0.01), self._tick)

    async def _ping(self) -> None:
        try:
            await self._write(self._ping_bytes)
        except ClientGone:
            return  # the stream's own watcher sees it too, and ends the stream
