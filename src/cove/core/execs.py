"""Running commands in sandboxes. The agent runs them; here are scopes, limits, waking and the reason of their end.

A command that runs, a stream, a wait or a follow holds the sandbox awake; a background command that nobody follows
does not, so an idle timer may pause it in mid-work (it goes on at the next use).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from msgspec.structs import replace

from cove.agentlink.room import OutputRoom, Share
from cove.core.access import require
from cove.core.audit import command_text
from cove.core.commandnotes import CommandNotes
from cove.core.directory import Directory
from cove.core.feeds import Feeds
from cove.core.sessions import SIGNALS, Session
from cove.core.validation import (
    CONTEXT_PREFIX,
    KEEP_BYTES,
    TIMEOUT_S,
    check_command_id,
    check_count,
    check_exec,
    check_timeout,
)
from cove.core.verdict import GONE, judged_command, judged_events, judged_exit
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, SandboxGone, Unsupported
from cove.model.execs import KEPT_OUTPUT_BYTES, Command, ExecEvent, ExecResult, ExecSpec
from cove.model.ids import new_core_id
from cove.model.spans import span

STDIN_STALL_S: Final = 600.0
"""How long a caller may wait for a command that reads none of what it was sent. As long as a reader may stall."""

LONG_POLL_S: Final = (0.0, 600.0)

OUTPUT_ROOM_BYTES: Final = 256 * 1024 * 1024
"""Output of buffered commands that the server holds at once. Past it results are cut to 64 KiB a stream, and say so."""


class Execs:
    """Every operation on commands. All raise Forbidden, NotFound, Gone and SandboxError beside what they name."""

    def __init__(self, directory: Directory, tasks: asyncio.TaskGroup, notes: CommandNotes) -> None:
        self._directory = directory
        self._notes = notes
        self._feeds = Feeds(tasks)
        self._room = OutputRoom(OUTPUT_ROOM_BYTES)

    def output_share(self) -> Share:
        """Room for the output of one `run`, for a caller who holds it longer than the call; who asks, releases."""
        return self._room.share()

    async def run(self, who: Principal, ref: str, spec: ExecSpec, *, share: Share | None = None) -> ExecResult:
        """Run a command to its end. `share`: what its output counts against, released by the caller.

        A non-zero exit, a time-out, a command that cannot be started and a sandbox that dies under it are results, not
        errors. Cancelling kills the command. Raises: BadRequest.
        """
        require(who, Scope.EXEC)
        check_exec(spec)
        self._notes.audit.check()
        own = self._room.share()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            before = box.oom_kills()
            with self._notes.command(who, supervisor.sandbox, _text(spec)) as note:
                try:
                    with span("agent.exec"):
                        result = await box.agent.exec(spec, share or own)
                    result = replace(result, exit=judged_exit(result.exit, box, before))
                except SandboxGone:
                    result = ExecResult(exit=GONE, stdout=b"", stderr=b"")
                finally:
                    own.release()
                note.ended(result.exit)
                await note.kept()
                return result

    @asynccontextmanager
    async def stream(self, who: Principal, ref: str, spec: ExecSpec) -> AsyncGenerator[AsyncIterator[ExecEvent]]:
        """Run a command and iterate over its events; the last is Ended. Leaving the context kills a running command.

        Raises: BadRequest.
        """
        require(who, Scope.EXEC)
        check_exec(spec)
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            before = box.oom_kills()
            with self._notes.command(who, supervisor.sandbox, _text(spec)) as note:
                async with box.agent.exec_stream(spec) as events:
                    yield note.told(judged_events(events, box, before))

    @asynccontextmanager
    async def session(self, who: Principal, ref: str, spec: ExecSpec) -> AsyncGenerator[Session]:
        """Run a command whose stdin the caller writes while it runs. Leaving the context kills a running command.

        Raises: BadRequest, Unsupported (a tool that the sandbox's agent, of an older Cove, does not bring).
        """
        require(who, Scope.EXEC)
        check_exec(spec)
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            before = box.oom_kills()
            if spec.tool and "tools" not in box.agent.hello.features:
                raise Unsupported("this sandbox was made by an older Cove, which brought no such program: make it anew")
            with self._notes.command(who, supervisor.sandbox, _text(spec)) as note:
                async with box.agent.exec_session(spec) as command:
                    yield Session(command, note.told(judged_events(command, box, before)))

    async def start(
        self, who: Principal, ref: str, spec: ExecSpec, *, keep_bytes: int = KEPT_OUTPUT_BYTES, stdin_open: bool = False
    ) -> Command:
        """Start a background command. It outlives its caller and the server; its last `keep_bytes` of output are kept.

        Raises: BadRequest; NotFound or Conflict when it cannot be started; CapacityExceeded when too much input of
        other commands waits to be read.
        """
        require(who, Scope.EXEC)
        check_exec(spec)
        check_count(keep_bytes, KEEP_BYTES, "keep_bytes")
        self._feeds.check_room(spec.stdin)
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            has_stdin = stdin_open or spec.stdin is not None
            command_id = f"c{new_core_id()[:12]}"
            note = self._notes.begin(who, supervisor.sandbox, _text(spec), exec_id=command_id, background=True)
            try:
                started = await box.agent.start(command_id, spec, keep_bytes=keep_bytes, stdin_open=has_stdin)
            except BaseException:
                note.left()
                raise
            self._notes.watch(note, lambda: box.agent.wait(command_id, None))
            await note.kept()
            if spec.stdin is not None:
                # The command may read it late or never; the answer does not wait for that, nor does a lease.
                self._feeds.feed(box, started.id, spec.stdin, close=not stdin_open)
            return judged_command(await box.agent.command(started.id), box)

    async def list(self, who: Principal, ref: str) -> list[Command]:
        """The background commands that the sandbox still knows, oldest first."""
        require(who, Scope.READ)
        async with self._directory.readable(who, ref).lease() as box:
            found = [one for one in await box.agent.commands() if not one.id.startswith(CONTEXT_PREFIX)]
            return [judged_command(command, box) for command in found]

    async def get(self, who: Principal, ref: str, command_id: str) -> Command:
        """One background command. Raises: NotFound."""
        require(who, Scope.READ)
        check_command_id(command_id)
        async with self._directory.readable(who, ref).lease() as box:
            return judged_command(await box.agent.command(command_id), box)

    async def wait(self, who: Principal, ref: str, command_id: str, *, timeout_s: float | None = None) -> Command:
        """The command when it has ended, or as it is after `timeout_s`. Raises: NotFound."""
        require(who, Scope.READ)
        check_command_id(command_id)
        check_timeout(timeout_s, "timeout_s", (0.0, TIMEOUT_S[1]))
        async with self._directory.readable(who, ref).lease() as box:
            # The agent reads 0 as "no limit", so the shortest wait is a look.
            if timeout_s is not None and timeout_s < 0.001:  # noqa: PLR2004 - its unit is a millisecond
                return judged_command(await box.agent.command(command_id), box)
            return judged_command(await box.agent.wait(command_id, timeout_s), box)

    @asynccontextmanager
    async def output(  # noqa: PLR0913 - what to read, all by name
        self,
        who: Principal,
        ref: str,
        command_id: str,
        *,
        cursor: int = 0,
        follow: bool = False,
        limit_bytes: int = 0,
        wait_s: float = 0.0,
    ) -> AsyncGenerator[AsyncIterator[ExecEvent]]:
        """Kept output from `cursor` on; the last event is Ended (all was read) or Paused. Leaving stops no command.

        `wait_s`: how long a read that does not follow waits for the first byte.
        Raises: NotFound, BadRequest.
        """
        require(who, Scope.READ)
        check_command_id(command_id)
        check_count(cursor, (0, 2**63 - 1), "cursor")
        check_count(limit_bytes, (0, 2**31 - 1), "limit")
        check_timeout(wait_s, "wait_s", LONG_POLL_S)
        async with (
            self._directory.readable(who, ref).lease() as box,
            box.agent.output(
                command_id, cursor=cursor, follow=follow, limit_bytes=limit_bytes, wait_s=wait_s
            ) as events,
        ):
            yield judged_events(events, box, 0)

    async def stdin(
        self, who: Principal, ref: str, command_id: str, chunks: AsyncIterable[bytes], *, close: bool = False
    ) -> int:
        """Write to a command's stdin; returns the bytes it took. It waits while the command does not read.

        Raises: NotFound, BadRequest (none, or closed), AgentTimeout (more than 1 MiB waited and for 600 s it read
        nothing).
        """
        require(who, Scope.EXEC)
        check_command_id(command_id)
        async with self._directory.live(who, ref).lease() as box:
            return await box.agent.stdin(command_id, chunks, close=close, stall_s=STDIN_STALL_S)

    async def signal(self, who: Principal, ref: str, command_id: str, signal: int, *, group: bool = True) -> None:
        """Signal a command, by default its whole process group. Raises: NotFound, Conflict (it has ended)."""
        require(who, Scope.EXEC)
        check_command_id(command_id)
        if not SIGNALS[0] <= signal <= SIGNALS[1]:
            raise BadRequest("signal must be 1 to 64, or a name", field="signal")
        async with self._directory.live(who, ref).lease() as box:
            await box.agent.signal(command_id, signal, group=group)

    async def remove(self, who: Principal, ref: str, command_id: str) -> None:
        """Kill a command if it runs, and forget its output. Raises: NotFound."""
        require(who, Scope.EXEC)
        check_command_id(command_id)
        async with self._directory.live(who, ref).lease() as box:
            await box.agent.forget(command_id)


def _text(spec: ExecSpec) -> str:
    return command_text(spec.argv, spec.shell)
