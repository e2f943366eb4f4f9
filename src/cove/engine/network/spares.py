"""Sockets of the outside namespace, made ahead: whoever needs one does not wait for the thread that lives there.

A socket has no address and no port before it is connected, so one made ahead is as good as a new one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from cove.engine.network.netns import NetNs
from cove.model.errors import EngineFailure

log = logging.getLogger(__name__)

KEPT: Final = 16
"""Of each kind."""

_KINDS: Final = ((socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM))
_RETRY_S: Final = 1.0


class Spares:
    """A namespace that makes sockets (`upstream_dns.Sockets`), with some at hand. Made by `open_spares`."""

    def __init__(self, space: NetNs) -> None:
        self._space = space
        self._kept: dict[tuple[int, int], list[socket.socket]] = {kind: [] for kind in _KINDS}
        self._low = asyncio.Event()
        self._is_over = False

    async def socket(self, family: int, kind: int, protocol: int = 0, /) -> socket.socket:
        """A non-blocking socket of that namespace. Raises: OSError, EngineFailure."""
        kept = self._kept.get((family, kind)) if protocol == 0 else None
        if kept is None:
            return await self._space.socket(family, kind, protocol)
        if len(kept) <= KEPT // 2:
            self._low.set()
        return kept.pop() if kept else await self._space.socket(family, kind)

    async def fill(self) -> None:
        """Make what is missing, again and again, until `stop`."""
        while not self._is_over:
            for (family, kind), kept in self._kept.items():
                try:
                    kept.extend(await self._space.run(partial(_made, family, kind, KEPT - len(kept))))
                except (OSError, EngineFailure) as error:
                    log.warning("no sockets can be made ahead: %s", error)
                    await asyncio.sleep(_RETRY_S)
            await self._low.wait()
            self._low.clear()

    def stop(self) -> None:
        """Let `fill` end. It is not cancelled: sockets that are being made would be nobody's."""
        self._is_over = True
        self._low.set()

    def close(self) -> None:
        """Close what is kept."""
        for kept in self._kept.values():
            while kept:
                kept.pop().close()


@asynccontextmanager
async def open_spares(space: NetNs) -> AsyncGenerator[Spares]:
    """Keep sockets ready until the block ends."""
    spares = Spares(space)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(spares.fill())
        try:
            yield spares
        finally:
            spares.stop()
    spares.close()


def _made(family: int, kind: int, count: int) -> list[socket.socket]:
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    made: list[socket.socket] = []
    try:
        made.extend(socket.socket(family, kind | flags) for _ in range(count))
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made
