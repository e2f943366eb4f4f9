"""A command that somebody talks to while it runs: the agent's session with the core's last word on its end."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cove.agentlink.session import ExecSession
from cove.model.errors import BadRequest
from cove.model.execs import ExecEvent

SIGNALS = (1, 64)


class Session:
    """A running command. Iterate over it for its events, of which the last is Ended; write to its stdin meanwhile.

    One reader and one writer at a time. A slow reader slows the command down, a command that does not read its stdin
    holds up the writer only.
    """

    def __init__(self, command: ExecSession, events: AsyncIterator[ExecEvent]) -> None:
        self._command = command
        self._events = events

    def __aiter__(self) -> AsyncIterator[ExecEvent]:
        return self

    async def __anext__(self) -> ExecEvent:
        """The next event. Raises: SandboxError."""
        return await anext(self._events)

    async def write(self, data: bytes) -> bool:
        """Write to its stdin, waiting while it does not read. False: it has ended and wants no more."""
        return await self._command.write(data)

    def write_eof(self) -> None:
        """Close its stdin. Idempotent."""
        self._command.write_eof()

    async def signal(self, signal: int) -> None:
        """Signal its process group. Raises: BadRequest, Conflict (it has ended), SandboxError."""
        if not SIGNALS[0] <= signal <= SIGNALS[1]:
            raise BadRequest("signal must be 1 to 64, or a name", field="signal")
        await self._command.signal(signal)
