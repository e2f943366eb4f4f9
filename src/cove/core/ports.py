"""Ports inside sandboxes: TCP connections to them, made by the agent. HTTP, exposure and host ports stand on this."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from cove.agentlink.client import DialStream
from cove.core.access import require
from cove.core.directory import Directory
from cove.core.validation import check_count
from cove.engine.driver import Box
from cove.model.access import Principal, Scope
from cove.model.errors import CapacityExceeded

__all__ = ["DialStream", "Ports"]

PORTS: Final = (1, 65535)

CONNECTIONS: Final = 512
"""Connections into one sandbox at a time, of all kinds; its agent takes 1024 calls in all, and others have some too."""

IDLE_S: Final = 10.0
"""How long a connection rests between two requests before it is closed."""

IDLE_CONNECTIONS: Final = 8
"""How many of them rest per port. More are closed at once."""


class PortLink:
    """A connection to a port that may have carried a request before. Whoever leaves it clean sets `keep`."""

    __slots__ = ("keep", "stream", "was_used")

    def __init__(self, stream: DialStream, *, was_used: bool) -> None:
        self.stream = stream
        self.was_used = was_used
        self.keep = False


class Ports:
    """Every operation on ports. All raise Forbidden, NotFound (sandbox), Gone, SandboxError beside what they name."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._open: Counter[str] = Counter()
        self._idle: dict[tuple[str, int], _Idle] = {}

    @asynccontextmanager
    async def dial(self, who: Principal, ref: str, port: int) -> AsyncGenerator[DialStream]:
        """A TCP connection to `port` of the sandbox's loopback, IPv4 or else IPv6. Awake as long as it is open.

        Leaving the context closes both directions.
        Raises: BadRequest, Conflict (nothing listens there), CapacityExceeded (512 are open).
        """
        require(who, Scope.EXEC)
        check_count(port, PORTS, "port")
        supervisor = self._directory.live(who, ref)
        with self._counted(supervisor.sandbox.id):
            async with supervisor.lease() as box, box.agent.dial(port) as stream:
                yield stream

    @asynccontextmanager
    async def link(self, who: Principal, ref: str, port: int, *, fresh: bool) -> AsyncGenerator[PortLink]:
        """As `dial`, for one request after another: takes a resting connection of the same caller, else makes one.

        Leaving it with `keep` set lets it rest for the caller's next request; it keeps no sandbox awake then. `fresh`:
        a new one in any case, and no other is left resting: a server that serves one connection at a time gets to it.
        """
        require(who, Scope.EXEC)
        check_count(port, PORTS, "port")
        supervisor = self._directory.live(who, ref)
        key = (supervisor.sandbox.id, port)
        with self._counted(supervisor.sandbox.id):
            async with supervisor.lease() as box:
                stream = None if fresh else self._rested(key, who, box)
                link = PortLink(stream or await self._dialled(key, box), was_used=stream is not None)
                try:
                    yield link
                finally:
                    if link.keep and link.stream.is_quiet:
                        self._rest(key, who, box, link.stream)
                    else:
                        link.stream.close()

    @contextmanager
    def _counted(self, sandbox_id: str) -> Generator[None]:
        if self._open[sandbox_id] >= CONNECTIONS:
            raise CapacityExceeded(f"{CONNECTIONS} connections to this sandbox are open", retry_after_s=1)
        self._open[sandbox_id] += 1
        try:
            yield
        finally:
            self._open[sandbox_id] -= 1
            if not self._open[sandbox_id]:
                del self._open[sandbox_id]

    async def _dialled(self, key: tuple[str, int], box: Box) -> DialStream:
        idle = self._idle.pop(key, None)
        if idle is not None:
            idle.close()
        return await box.agent.dial_stream(key[1])

    def _rested(self, key: tuple[str, int], who: Principal, box: Box) -> DialStream | None:
        idle = self._idle.get(key)
        return None if idle is None else idle.take(who.key_id, box)

    def _rest(self, key: tuple[str, int], who: Principal, box: Box, stream: DialStream) -> None:
        idle = self._idle.get(key)
        if idle is None:
            idle = self._idle[key] = _Idle()
            asyncio.get_running_loop().call_later(IDLE_S / 2, self._expire, key, idle)
        idle.give(who.key_id, box, stream)

    def _expire(self, key: tuple[str, int], idle: _Idle) -> None:
        """One timer per port, not one per request."""
        idle.expire()
        if idle.resting:
            asyncio.get_running_loop().call_later(IDLE_S / 2, self._expire, key, idle)
        elif self._idle.get(key) is idle:
            del self._idle[key]


class _Idle:
    """The resting connections of one port, the last used at the end."""

    __slots__ = ("resting",)

    def __init__(self) -> None:
        self.resting: list[tuple[str, Box, DialStream, float]] = []

    def take(self, key_id: str, box: Box) -> DialStream | None:
        """One that this caller used before. Never another's: what a server ties to a connection stays apart."""
        for place in range(len(self.resting) - 1, -1, -1):
            owner, of_box, stream, _ = self.resting[place]
            if owner == key_id:
                del self.resting[place]
                if of_box is box and stream.is_quiet:
                    return stream
                stream.close()
        return None

    def give(self, key_id: str, box: Box, stream: DialStream) -> None:
        self.resting.append((key_id, box, stream, asyncio.get_running_loop().time()))
        if len(self.resting) > IDLE_CONNECTIONS:
            self.resting.pop(0)[2].close()

    def expire(self) -> None:
        """Close what has rested for so long, or what the other side has closed."""
        oldest = asyncio.get_running_loop().time() - IDLE_S
        kept = [one for one in self.resting if one[3] > oldest and one[2].is_quiet]
        for one in self.resting:
            if one not in kept:
                one[2].close()
        self.resting = kept

    def close(self) -> None:
        for _, _, stream, _ in self.resting:
            stream.close()
        self.resting.clear()
