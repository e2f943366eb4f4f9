"""Operations on terminals, as methods of the client: kept commands on a pseudo-terminal (feature `pty`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

from msgspec import Struct

from cove.agentlink.channel import Channel, Refusal
from cove.agentlink.commands import CALL_TIMEOUT_S, CommandCalls, output_events
from cove.agentlink.frames import Kind
from cove.agentlink.refusals import command_error, start_error
from cove.agentlink.wire import (
    AgentHello,
    CommandReply,
    CommandsReply,
    Empty,
    Natural,
    SizeReply,
    StartedReply,
    exec_fields,
)
from cove.model.errors import NotFound, SandboxGone, Unsupported
from cove.model.execs import ExecEvent, ExecSpec, Started
from cove.model.terminals import Terminal, TerminalSize

FEATURE: Final = "pty"


class AttachedReply(Struct, frozen=True):
    """EVENT `attached`: the first of an attach."""

    event: Literal["attached"]
    cursor: Natural
    pty: SizeReply


class TerminalStream:
    """A terminal that is looked at: iterate over its events, of which the last is Ended; `write` types meanwhile.

    One reader, any number of writers. `cursor` and `size` are as they were at the beginning.
    """

    def __init__(self, channel: Channel, events: AsyncIterator[ExecEvent], cursor: int, size: TerminalSize) -> None:
        self._channel = channel
        self._events = events
        self.cursor = cursor
        self.size = size

    def __aiter__(self) -> AsyncIterator[ExecEvent]:
        return self

    async def __anext__(self) -> ExecEvent:
        """The next event: Chunk, Gap, and last Ended. Asking for it says that the one before was passed on.

        Raises: SandboxGone, AgentViolation, NotFound.
        """
        return await anext(self._events)

    async def write(self, data: bytes) -> bool:
        """Type; waits while the programs do not read, without limit. False: the terminal has ended.

        Cancelling may leave a prefix typed.
        """
        try:
            return await self._channel.send(data, timeout_s=None)
        except SandboxGone:
            return False  # the reader learns of it

    def judged(self, events: AsyncIterator[ExecEvent]) -> TerminalStream:
        """The same terminal with these events, which the caller made of its own."""
        return TerminalStream(self._channel, events, self.cursor, self.size)


class TerminalCalls(CommandCalls):
    """The part of the client that deals with terminals. All raise Unsupported where the agent is too old."""

    hello: AgentHello

    async def start_terminal(
        self,
        id: str,  # noqa: A002 - the protocol's word
        spec: ExecSpec,
        *,
        size: TerminalSize,
        keep_bytes: int,
    ) -> Started:
        """Start `spec` on a terminal; with neither `argv` nor `shell`, the user's own shell. Raises: as `start`."""
        self._check_terminals()
        pty = {"cols": size.cols, "rows": size.rows}
        call = {"op": "start", "id": id, "keep_bytes": keep_bytes, "pty": pty, **exec_fields(spec)}
        try:
            reply = await self._connection.open(call).reply(StartedReply, CALL_TIMEOUT_S)
        except Refusal as refusal:
            raise start_error(refusal) from refusal
        return Started(id=id, pid=reply.pid)

    async def terminals(self) -> list[Terminal]:
        """All terminals, oldest first. Long argument lists are cut."""
        reply = await self._command_call({"op": "commands"}, CommandsReply)
        models = (one.to_model() for one in reply.commands)
        return [one for one in models if isinstance(one, Terminal)]

    async def terminal(self, id: str) -> Terminal:  # noqa: A002
        """One terminal. Raises: NotFound, SandboxGone, AgentTimeout, AgentViolation."""
        found = (await self._command_call({"op": "command", "id": id}, CommandReply)).to_model()
        if not isinstance(found, Terminal):
            raise NotFound("no such terminal")
        return found

    async def resize(self, id: str, size: TerminalSize) -> None:  # noqa: A002
        """Change the window's size; the foreground gets SIGWINCH. Raises: Conflict (it has ended), NotFound."""
        await self._command_call({"op": "resize", "id": id, "cols": size.cols, "rows": size.rows}, Empty)

    @asynccontextmanager
    async def attach(self, id: str, *, cursor: int | None) -> AsyncGenerator[TerminalStream, None]:  # noqa: A002
        """Look at a terminal from `cursor` on (None: the oldest byte kept) and type. Leaving leaves it as it is.

        Raises, also while iterating: NotFound, BadRequest (no terminal, or a cursor beyond the end), SandboxGone,
        AgentTimeout, AgentViolation.
        """
        self._check_terminals()
        channel = self._connection.open({"op": "attach", "id": id, "cursor": cursor}, takes_output=True)
        try:
            first = await _attached(channel)
            events = output_events(channel, None, prompt=True)
            yield TerminalStream(channel, events, first.cursor, first.pty.to_model())
        finally:
            channel.cancel()

    def _check_terminals(self) -> None:
        if FEATURE not in self.hello.features:
            raise Unsupported("this sandbox is older than terminals; a new one has them", field="terminal")


async def _attached(channel: Channel) -> AttachedReply:
    try:
        item = await channel.next_item(CALL_TIMEOUT_S)
    except Refusal as refusal:
        raise command_error(refusal) from refusal
    if item is None or item[0] is not Kind.EVENT:
        raise channel.breach("an attach that does not begin with `attached`")
    return channel.decode(item[1], AttachedReply)
