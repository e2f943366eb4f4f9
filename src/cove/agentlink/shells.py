"""Operations on shells, as methods of the client."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final

from msgspec import Meta, Struct

from cove.agentlink.channel import Channel, Refusal
from cove.agentlink.commands import CALL_TIMEOUT_S, CommandCalls, Tail, event_of
from cove.agentlink.limits import Limit
from cove.agentlink.refusals import command_error, start_error
from cove.agentlink.room import Share
from cove.agentlink.wire import Empty, ExitReply, Id, Natural, Pid, seconds
from cove.model.errors import AgentTimeout
from cove.model.execs import Chunk, Ended, ExecEvent, ExecResult, Gap, Started, Stream
from cove.model.shells import Shell, ShellCommand, ShellSpec

STOP_S: Final = 8.0
"""How long after a command's own limit the agent has to stop it: it may have to kill the shell, after 5 s."""


class ShellReply(Struct, frozen=True):
    """*shell*."""

    id: Id
    pid: Pid
    program: Annotated[str, Meta(max_length=64)]
    cwd: Annotated[str, Meta(max_length=12288)]
    started_at: float
    running: Id
    queued: Natural
    job_control: bool
    exit: ExitReply | None = None

    def to_model(self) -> Shell:
        """The shell as the core knows it."""
        return Shell(
            id=self.id,
            pid=self.pid,
            program=self.program,
            cwd=self.cwd,
            started_at=seconds(self.started_at),
            running=self.running or None,
            queued=self.queued,
            job_control=self.job_control,
            exit=None if self.exit is None else self.exit.to_model(),
        )


class ShellsReply(Struct, frozen=True):
    """RESULT of `shells`."""

    shells: Annotated[tuple[ShellReply, ...], Meta(max_length=64)]


class QueuedReply(Struct, frozen=True):
    """RESULT of `shell_run`, unattached: how many commands come before."""

    id: Id
    queued: Natural


class ShellCalls(CommandCalls):
    """The part of the client that deals with shells."""

    async def open_shell(self, id: str, spec: ShellSpec) -> Shell:  # noqa: A002
        """Start a shell under `id` ([a-z0-9_-]{1,32}); it takes commands when this returns.

        Raises: BadRequest (no such program, directory or user), Conflict (id in use, 64 shells), SandboxGone,
        AgentTimeout, AgentViolation, Unsupported (an older agent).
        """
        call = {
            "op": "shell_open",
            "id": id,
            "program": spec.program,
            "env": spec.env,
            "cwd": spec.cwd,
            "user": spec.user,
        }
        try:
            reply = await self._connection.open(call).reply(ShellReply, CALL_TIMEOUT_S)
        except Refusal as refusal:
            raise start_error(refusal) from refusal
        return reply.to_model()

    async def shells(self) -> list[Shell]:
        """All shells, oldest first; at most 64."""
        reply = await self._command_call({"op": "shells"}, ShellsReply)
        return [one.to_model() for one in reply.shells]

    async def shell(self, id: str) -> Shell:  # noqa: A002
        """One shell. Raises: NotFound, SandboxGone, AgentTimeout, AgentViolation."""
        return (await self._command_call({"op": "shell_info", "id": id}, ShellReply)).to_model()

    async def close_shell(self, id: str) -> None:  # noqa: A002
        """End a shell and all that it started. Raises: as `shell`."""
        await self._command_call({"op": "shell_close", "id": id}, Empty)

    async def shell_start(self, shell: str, id: str, command: ShellCommand, *, keep_bytes: int) -> None:  # noqa: A002
        """Queue a command as the kept command `id`. Raises: Conflict (id in use, no room, shell ended), as `shell`."""
        await self._command_call(_run_call(shell, id, command) | {"keep_bytes": keep_bytes}, QueuedReply)

    async def shell_exec(
        self,
        shell: str,
        id: str,  # noqa: A002
        command: ShellCommand,
        share: Share | None = None,
    ) -> ExecResult:
        """Run a command to its end, as `exec` does. Cancelling ends it, and spares the shell if that is possible."""
        try:
            async with self._connection.limits.of(None) as limit, self.shell_stream(shell, id, command) as events:
                return await _collected(events, command, share, limit)
        except TimeoutError as error:
            raise AgentTimeout("the sandbox did not answer in time") from error

    @asynccontextmanager
    async def shell_stream(
        self,
        shell: str,
        id: str,  # noqa: A002
        command: ShellCommand,
    ) -> AsyncGenerator[AsyncIterator[ExecEvent], None]:
        """Run a command; the iterator gives its events, Started when its turn has come, last Ended.

        A slow reader slows the command down. Leaving the context while it runs ends it.
        Raises, also while iterating: as `shell_start`.
        """
        channel = self._connection.open(_run_call(shell, id, command) | {"attach": True}, takes_output=True)
        try:
            yield _events(channel, command.timeout_s)
        finally:
            channel.cancel()


async def _collected(
    events: AsyncIterator[ExecEvent], command: ShellCommand, share: Share | None, limit: Limit
) -> ExecResult:
    """The result of a command that has its limit from its turn on, however little the agent says at a time."""
    out, err = Tail(command.output_limit_bytes, share), Tail(command.output_limit_bytes, share)
    async for event in events:
        match event:
            case Started() if command.timeout_s is not None and not limit.is_set:
                limit.set(command.timeout_s + STOP_S)
            case Chunk(stream, data):
                (out if stream is Stream.STDOUT else err).add(data)
            case Gap(lost_bytes):
                out.lose(lost_bytes)
                err.lose(0)
            case Ended(exit):
                return ExecResult(
                    exit=exit,
                    stdout=bytes(out.data),
                    stderr=bytes(err.data),
                    stdout_dropped_bytes=out.dropped,
                    stderr_dropped_bytes=err.dropped,
                )
            case _:
                pass
    raise AssertionError("a stream ends in Ended or raises")  # pragma: no cover


def _run_call(shell: str, id: str, command: ShellCommand) -> dict[str, object]:  # noqa: A002
    timeout_ms = 0 if command.timeout_s is None else max(1, math.ceil(command.timeout_s * 1000))
    return {"op": "shell_run", "shell": shell, "id": id, "text": command.text, "timeout_ms": timeout_ms}


async def _events(channel: Channel, timeout_s: float | None) -> AsyncIterator[ExecEvent]:
    limit = None  # earlier commands of the shell may take as long as they like
    try:
        while (item := await channel.next_item(limit)) is not None:
            event = event_of(channel, *item)
            if isinstance(event, Started) and timeout_s is not None:
                limit = timeout_s + STOP_S
            yield event
        yield Ended(exit=channel.final(ExitReply).to_model())
    except Refusal as refusal:
        raise command_error(refusal) from refusal
