"""Terminals in sandboxes. The agent runs them; here are scopes, limits, waking and the reason of their end.

Whoever is attached, or waits for output, holds the sandbox awake; a terminal that nobody looks at does not. It outlives
its callers and the server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

from cove.agentlink.client import TerminalStream
from cove.core.access import require
from cove.core.audit import command_text
from cove.core.commandnotes import CommandNotes
from cove.core.directory import Directory
from cove.core.execs import LONG_POLL_S, STDIN_STALL_S
from cove.core.sessions import SIGNALS
from cove.core.validation import (
    KEEP_BYTES,
    check_count,
    check_terminal,
    check_terminal_id,
    check_terminal_size,
    check_timeout,
)
from cove.core.verdict import judged_command, judged_events
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, CoveError
from cove.model.execs import KEPT_OUTPUT_BYTES, ExecEvent, ExecSpec
from cove.model.ids import new_core_id
from cove.model.sandbox import Sandbox
from cove.model.terminals import Terminal, TerminalSize

__all__ = ["TerminalSession", "TerminalStream", "Terminals"]

_CURSOR: Final = (0, 2**63 - 1)


class TerminalSession(NamedTuple):
    """A terminal of one caller who stays."""

    id: str
    stream: TerminalStream


class Terminals:
    """Every operation on terminals. All raise Forbidden, NotFound, Gone and SandboxError beside what they name."""

    def __init__(self, directory: Directory, notes: CommandNotes) -> None:
        self._directory = directory
        self._notes = notes

    async def open(
        self, who: Principal, ref: str, spec: ExecSpec, *, size: TerminalSize, keep_bytes: int = KEPT_OUTPUT_BYTES
    ) -> Terminal:
        """Start a command on a terminal; with neither `argv` nor `shell`, the user's own shell.

        Its last `keep_bytes` of output are kept. Raises: BadRequest; Conflict (no room for another); Unsupported (the
        sandbox's agent is too old).
        """
        require(who, Scope.EXEC)
        check_terminal(spec, size)
        check_count(keep_bytes, KEEP_BYTES, "keep_bytes")
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            terminal_id = f"t{new_core_id()[:12]}"
            opened = self._note("terminal.opened", who, supervisor.sandbox, terminal_id, spec)
            await box.agent.start_terminal(terminal_id, spec, size=size, keep_bytes=keep_bytes)
            await self._notes.audit.kept(opened)
            return judged_command(await box.agent.terminal(terminal_id), box)

    async def list(self, who: Principal, ref: str) -> list[Terminal]:
        """The terminals that the sandbox still knows, oldest first."""
        require(who, Scope.READ)
        async with self._directory.readable(who, ref).lease() as box:
            return [judged_command(one, box) for one in await box.agent.terminals()]

    async def get(self, who: Principal, ref: str, terminal_id: str) -> Terminal:
        """One terminal."""
        require(who, Scope.READ)
        check_terminal_id(terminal_id)
        async with self._directory.readable(who, ref).lease() as box:
            return judged_command(await box.agent.terminal(terminal_id), box)

    async def remove(self, who: Principal, ref: str, terminal_id: str) -> None:
        """Hang up if it runs (SIGHUP, a second later SIGKILL to its whole session), and forget its output."""
        require(who, Scope.EXEC)
        check_terminal_id(terminal_id)
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            await box.agent.forget(terminal_id)
            await self._notes.audit.kept(self._note("terminal.closed", who, supervisor.sandbox, terminal_id))

    async def resize(self, who: Principal, ref: str, terminal_id: str, size: TerminalSize) -> None:
        """Change its window. Raises: BadRequest, Conflict (it has ended)."""
        require(who, Scope.EXEC)
        check_terminal_id(terminal_id)
        check_terminal_size(size)
        async with self._directory.live(who, ref).lease() as box:
            await box.agent.resize(terminal_id, size)

    async def signal(self, who: Principal, ref: str, terminal_id: str, signal: int) -> None:
        """Signal the group in the foreground, as Ctrl-C does. Raises: BadRequest, Conflict (it has ended)."""
        require(who, Scope.EXEC)
        check_terminal_id(terminal_id)
        if not SIGNALS[0] <= signal <= SIGNALS[1]:
            raise BadRequest("signal must be 1 to 64, or a name", field="signal")
        async with self._directory.live(who, ref).lease() as box:
            await box.agent.signal(terminal_id, signal)

    async def input(self, who: Principal, ref: str, terminal_id: str, chunks: AsyncIterable[bytes]) -> int:
        """Type; returns the bytes it took. It waits while its programs do not read; cancelling leaves a prefix typed.

        Raises: AgentTimeout (more than 1 MiB waited and for 600 s they read nothing).
        """
        require(who, Scope.EXEC)
        check_terminal_id(terminal_id)
        async with self._directory.live(who, ref).lease() as box:
            return await box.agent.stdin(terminal_id, chunks, close=False, stall_s=STDIN_STALL_S)

    @asynccontextmanager
    async def output(  # noqa: PLR0913 - what to read, all by name
        self,
        who: Principal,
        ref: str,
        terminal_id: str,
        *,
        cursor: int = 0,
        follow: bool = False,
        limit_bytes: int = 0,
        wait_s: float = 0.0,
    ) -> AsyncGenerator[AsyncIterator[ExecEvent]]:
        """Kept output from `cursor` on, as of a command. `wait_s`: without `follow`, how long to wait for the first.

        Raises: BadRequest.
        """
        require(who, Scope.READ)
        check_terminal_id(terminal_id)
        check_count(cursor, _CURSOR, "cursor")
        check_count(limit_bytes, (0, 2**31 - 1), "limit")
        check_timeout(wait_s, "wait_s", LONG_POLL_S)
        async with (
            self._directory.readable(who, ref).lease() as box,
            box.agent.output(
                terminal_id, cursor=cursor, follow=follow, limit_bytes=limit_bytes, wait_s=wait_s
            ) as events,
        ):
            yield judged_events(events, box, 0)

    @asynccontextmanager
    async def attach(
        self, who: Principal, ref: str, terminal_id: str, *, cursor: int | None = None
    ) -> AsyncGenerator[TerminalStream]:
        """Look at it from `cursor` on (None: all that is kept) and type. Leaving leaves it as it is.

        The last event is Ended. Raises: BadRequest, Unsupported.
        """
        require(who, Scope.EXEC)
        check_terminal_id(terminal_id)
        if cursor is not None:
            check_count(cursor, _CURSOR, "cursor")
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box, box.agent.attach(terminal_id, cursor=cursor) as stream:
            await self._notes.audit.kept(self._note("terminal.attached", who, supervisor.sandbox, terminal_id))
            try:
                yield stream.judged(judged_events(stream, box, 0))
            finally:
                self._note("terminal.detached", who, supervisor.sandbox, terminal_id)

    @asynccontextmanager
    async def session(
        self, who: Principal, ref: str, spec: ExecSpec, *, size: TerminalSize
    ) -> AsyncGenerator[TerminalSession]:
        """A terminal of the caller's own, attached; it is hung up and forgotten when the caller leaves.

        Raises: as `open`.
        """
        require(who, Scope.EXEC)
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            terminal_id = (await self.open(who, ref, spec, size=size)).id
            try:
                async with self.attach(who, ref, terminal_id) as stream:
                    yield TerminalSession(terminal_id, stream)
            finally:
                # By this box: a sandbox that went to rest meanwhile is not woken for it.
                with suppress(CoveError):
                    await box.agent.forget(terminal_id)
                    await self._notes.audit.kept(self._note("terminal.closed", who, supervisor.sandbox, terminal_id))

    def _note(
        self, event: str, who: Principal, sandbox: Sandbox, terminal_id: str, spec: ExecSpec | None = None
    ) -> int:
        data = {"terminal": terminal_id}
        if spec is not None:
            data["command"] = command_text(spec.argv, spec.shell)
        return self._notes.audit.note(event, project=sandbox.project, sandbox=sandbox.id, data=data, who=who)
