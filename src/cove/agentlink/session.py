"""An attached command with both directions open: what it says as events, what it hears as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from cove.model.errors import SandboxGone
from cove.model.execs import ExecEvent, Started


class ExecSession:
    """A running command: iterate over its events, write to its stdin, signal it. Made by `exec_session`.

    One reader and one writer at a time. Neither waits for the other: each direction has its own credit.
    """

    def __init__(
        self,
        events: AsyncIterator[ExecEvent],
        *,
        send: Callable[[bytes], Awaitable[bool]],
        send_eof: Callable[[], None],
        send_signal: Callable[[str, int], Awaitable[None]],
    ) -> None:
        self._events = events
        self._send = send
        self._send_eof = send_eof
        self._send_signal = send_signal
        self._has_eof = False
        self._first: ExecEvent | None = None
        self._id = ""

    async def begin(self) -> None:
        """Wait until it runs or could not be started. Called by whoever makes it, before anybody else sees it."""
        self._first = await anext(self._events)
        if isinstance(self._first, Started):
            self._id = self._first.id

    def __aiter__(self) -> AsyncIterator[ExecEvent]:
        return self

    async def __anext__(self) -> ExecEvent:
        """The next event; the last is Ended. A slow reader slows the command down. Raises: as `exec_stream`."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._events)

    async def write(self, data: bytes) -> bool:
        """Write to its stdin, waiting while it does not read; no time limit. False: it has ended and wants no more.

        Cancelling may leave a prefix written.
        """
        if self._has_eof:
            return False
        try:
            return await self._send(data)
        except SandboxGone:
            return False  # the reader learns of it

    def write_eof(self) -> None:
        """Close its stdin. Idempotent."""
        if not self._has_eof:
            self._has_eof = True
            self._send_eof()

    async def signal(self, signal: int) -> None:
        """Signal its process group. Raises: Conflict (it has ended, or never began), SandboxGone, AgentTimeout."""
        await self._send_signal(self._id, signal)
