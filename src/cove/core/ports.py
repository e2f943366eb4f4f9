"""Ports inside sandboxes: TCP connections to them, made by the agent. HTTP, exposure and host ports stand on this."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, NamedTuple

from cove.agentlink.client import DialStream
from cove.core.access import require
from cove.core.audit import Audit
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

IDLE_CONNECTIONS: Final = 32
"""How many of them rest in one sandbox. One more closes the oldest."""


class PortLink:
    """A connection to a port that may have carried a request before. Whoever leaves it clean sets `keep`."""

    __slots__ = ("keep", "stream", "was_used")

    def __init__(self, stream: DialStream, *, was_used: bool) -> None:
        self.stream = stream
        self.was_used = was_used
        self.keep = False


class Ports:
    """Every operation on ports. All raise Forbidden, NotFound (sandbox), Gone, SandboxError beside what they name."""

    def __init__(self, directory: Directory, audit: Audit) -> None:
        self._directory = directory
        self._audit = audit
        self._open: Counter[str] = Counter()
        self._idle: dict[str, _Idle] = {}

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
                sandbox = supervisor.sandbox
                self._audit.note(
                    "port.dialed", project=sandbox.project, sandbox=sandbox.id, data={"port": port}, who=who
                )
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
        sandbox_id = supervisor.sandbox.id
        with self._counted(sandbox_id):
            async with supervisor.lease() as box:
                idle = self._idle.get(sandbox_id)
                stream = None if fresh or idle is None else idle.take(port, who.key_id, box)
                if stream is None and idle is not None:
                    idle.close(port)
                link = PortLink(stream or await box.agent.dial_stream(port), was_used=stream is not None)
                try:
                    yield link
                finally:
                    if link.keep and link.stream.is_quiet:
                        self._rest(sandbox_id, _Resting(port, who.key_id, box, link.stream, _now()))
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

    def _rest(self, sandbox_id: str, one: _Resting) -> None:
        idle = self._idle.get(sandbox_id)
        if idle is None:
            idle = self._idle[sandbox_id] = _Idle()
            asyncio.get_running_loop().call_later(IDLE_S / 2, self._expire, sandbox_id, idle)
        idle.give(one)

    def _expire(self, sandbox_id: str, idle: _Idle) -> None:
        """One timer per sandbox, not one per request."""
        idle.expire()
        if idle.resting:
            asyncio.get_running_loop().call_later(IDLE_S / 2, self._expire, sandbox_id, idle)
        else:
            del self._idle[sandbox_id]


class _Resting(NamedTuple):
    """A connection at rest: where to, who used it, since when."""

    port: int
    key_id: str
    box: Box
    stream: DialStream
    since: float


class _Idle:
    """The resting connections of one sandbox, the last used at the end."""

    __slots__ = ("resting",)

    def __init__(self) -> None:
        self.resting: list[_Resting] = []

    def take(self, port: int, key_id: str, box: Box) -> DialStream | None:
        """One that this caller used before. Never another's: what a server ties to a connection stays apart."""
        for place in range(len(self.resting) - 1, -1, -1):
            one = self.resting[place]
            if (one.port, one.key_id) == (port, key_id):
                del self.resting[place]
                if one.box is box and one.stream.is_quiet:
                    return one.stream
                one.stream.close()
        return None

    def give(self, one: _Resting) -> None:
        self.resting.append(one)
        if len(self.resting) > IDLE_CONNECTIONS:
            self.resting.pop(0).stream.close()

    def expire(self) -> None:
        """Close what has rested for so long, or what the other side has closed."""
        oldest = _now() - IDLE_S
        self._keep([one.since > oldest and one.stream.is_quiet for one in self.resting])

    def close(self, port: int) -> None:
        """Close those to one port."""
        self._keep([one.port != port for one in self.resting])

    def _keep(self, marks: list[bool]) -> None:
        for one, is_kept in zip(self.resting, marks, strict=True):
            if not is_kept:
                one.stream.close()
        self.resting = [one for one, is_kept in zip(self.resting, marks, strict=True) if is_kept]


def _now() -> float:
    return asyncio.get_running_loop().time()
