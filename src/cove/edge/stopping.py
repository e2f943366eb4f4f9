"""Which requests wait for something that a stopping server must not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Stopping:
    """Which tasks wait for something that a stopping server must not wait for."""

    def __init__(self) -> None:
        self.is_set = False
        self._waiting: set[asyncio.Future[None]] = set()

    def stop(self) -> None:
        """End all long requests, now and from now on."""
        self.is_set = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    @asynccontextmanager
    async def signal(self) -> AsyncGenerator[asyncio.Future[None]]:
        """A future that is done when the server stops."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        if self.is_set:
            future.set_result(None)
        try:
            yield future
        finally:
            self._waiting.discard(future)
