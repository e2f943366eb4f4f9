"""Ports inside sandboxes: TCP connections to them, made by the agent. HTTP, exposure and host ports stand on this."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from cove.agentlink.client import DialStream
from cove.core.access import require
from cove.core.directory import Directory
from cove.core.validation import check_count
from cove.model.access import Principal, Scope

__all__ = ["DialStream", "Ports"]

PORTS: Final = (1, 65535)


class Ports:
    """Every operation on ports. All raise Forbidden, NotFound (sandbox), Gone, SandboxError beside what they name."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @asynccontextmanager
    async def dial(self, who: Principal, ref: str, port: int) -> AsyncGenerator[DialStream]:
        """A TCP connection to `port` of the sandbox's loopback, IPv4 or else IPv6. Awake as long as it is open.

        Leaving the context closes both directions. Raises: BadRequest, Conflict (nothing listens there).
        """
        require(who, Scope.EXEC)
        check_count(port, PORTS, "port")
        async with self._directory.live(who, ref).lease() as box:  # noqa: SIM117 - the lease outlives the connection
            async with box.agent.dial(port) as stream:
                yield stream
