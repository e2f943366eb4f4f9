"""Long-lived shells in sandboxes: directory, variables, functions and jobs last from one command to the next.

The agent runs the shell and the queue of its commands; here are scopes, limits, waking and the reason of an end. Each
command is a background command too, so `Execs` reads its output, waits for it, signals and removes it by its id. A
shell whose caller waits for nothing does not keep its sandbox awake.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from msgspec.structs import replace

from cove.agentlink.room import Share
from cove.core.access import require
from cove.core.commandnotes import CommandNotes
from cove.core.directory import Directory
from cove.core.sessions import SIGNALS
from cove.core.shellsessions import ShellSession
from cove.core.validation import (
    CONTEXT_PREFIX,
    KEEP_BYTES,
    check_count,
    check_shell_command,
    check_shell_id,
    check_shell_spec,
)
from cove.core.verdict import GONE, judged_command, judged_events, judged_exit
from cove.engine.driver import Box
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Conflict, CoveError, SandboxGone, Unsupported
from cove.model.execs import KEPT_OUTPUT_BYTES, Command, ExecEvent, ExecResult
from cove.model.ids import new_core_id
from cove.model.sandbox import Sandbox
from cove.model.shells import Shell, ShellCommand, ShellSpec


class Shells:
    """Every operation on shells. All raise Forbidden, NotFound, Gone and SandboxError beside what they name."""

    def __init__(self, directory: Directory, output_share: Callable[[], Share], notes: CommandNotes) -> None:
        self._directory = directory
        self._notes = notes
        self._output_share = output_share

    async def open(self, who: Principal, ref: str, spec: ShellSpec) -> Shell:
        """Open a shell. It outlives its caller and the server.

        Raises: BadRequest (also when it cannot be started), Conflict (64 shells are open), Unsupported (the sandbox's
        agent is of an older Cove).
        """
        require(who, Scope.EXEC)
        check_shell_spec(spec)
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            _require_shells(box)
            shell = _judged_shell(await box.agent.open_shell(f"s{new_core_id()[:12]}", spec), box)
            await self._note("shell.opened", who, supervisor.sandbox, shell.id)
            return shell

    async def list(self, who: Principal, ref: str) -> list[Shell]:
        """The shells that the sandbox still knows, oldest first; an ended one is known until it is closed."""
        require(who, Scope.READ)
        async with self._directory.readable(who, ref).lease() as box:
            if not _has_shells(box):
                return []
            found = [one for one in await box.agent.shells() if not one.id.startswith(CONTEXT_PREFIX)]
            return [_judged_shell(shell, box) for shell in found]

    async def get(self, who: Principal, ref: str, shell_id: str) -> Shell:
        """One shell. Raises: NotFound."""
        require(who, Scope.READ)
        check_shell_id(shell_id)
        async with self._directory.readable(who, ref).lease() as box:
            return _judged_shell(await box.agent.shell(shell_id), box)

    async def close(self, who: Principal, ref: str, shell_id: str) -> None:
        """End a shell and what it started, and forget it. Its commands are known until removed. Raises: NotFound."""
        require(who, Scope.EXEC)
        check_shell_id(shell_id)
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            await box.agent.close_shell(shell_id)
            await self._note("shell.closed", who, supervisor.sandbox, shell_id)

    async def run(
        self, who: Principal, ref: str, shell_id: str, command: ShellCommand, *, share: Share | None = None
    ) -> ExecResult:
        """Run a command to its end, after those that came before. `share`, and what is a result: as of `Execs.run`.

        Cancelling ends the command and spares the shell if that is possible. Raises: BadRequest, TooLarge, NotFound,
        Conflict (the shell has ended, or 64 commands wait).
        """
        require(who, Scope.EXEC)
        check_shell_id(shell_id)
        check_shell_command(command)
        self._notes.audit.check()
        own = self._output_share()
        supervisor, command_id = self._directory.live(who, ref), _new_command_id()
        async with supervisor.lease() as box:
            before = box.oom_kills()
            with self._notes.command(who, supervisor.sandbox, command.text, exec_id=command_id, shell=shell_id) as note:
                try:
                    result = await box.agent.shell_exec(shell_id, command_id, command, share or own)
                    result = replace(result, exit=judged_exit(result.exit, box, before))
                except SandboxGone:
                    result = ExecResult(exit=GONE, stdout=b"", stderr=b"")
                finally:
                    own.release()
                note.ended(result.exit)
                await note.kept()
                return result

    @asynccontextmanager
    async def stream(
        self, who: Principal, ref: str, shell_id: str, command: ShellCommand
    ) -> AsyncGenerator[AsyncIterator[ExecEvent]]:
        """Run a command and iterate over its events, from its turn on; the last is Ended. Leaving ends the command.

        Raises, also while iterating: as `run`.
        """
        require(who, Scope.EXEC)
        check_shell_id(shell_id)
        check_shell_command(command)
        self._notes.audit.check()
        supervisor, command_id = self._directory.live(who, ref), _new_command_id()
        async with supervisor.lease() as box:
            before = box.oom_kills()
            with self._notes.command(who, supervisor.sandbox, command.text, exec_id=command_id, shell=shell_id) as note:
                async with box.agent.shell_stream(shell_id, command_id, command) as events:
                    yield note.told(judged_events(events, box, before))

    async def start(
        self,
        who: Principal,
        ref: str,
        shell_id: str,
        command: ShellCommand,
        *,
        keep_bytes: int = KEPT_OUTPUT_BYTES,
    ) -> Command:
        """Queue a command and return. It is a background command from now on. Raises: as `run`."""
        require(who, Scope.EXEC)
        check_shell_id(shell_id)
        check_shell_command(command)
        check_count(keep_bytes, KEEP_BYTES, "keep_bytes")
        self._notes.audit.check()
        supervisor, command_id = self._directory.live(who, ref), _new_command_id()
        async with supervisor.lease() as box:
            note = self._notes.begin(
                who, supervisor.sandbox, command.text, exec_id=command_id, shell=shell_id, background=True
            )
            try:
                await box.agent.shell_start(shell_id, command_id, command, keep_bytes=keep_bytes)
            except BaseException:
                note.left()
                raise
            self._notes.watch(note, lambda: box.agent.wait(command_id, None))
            await note.kept()
            return judged_command(await box.agent.command(command_id), box)

    @asynccontextmanager
    async def session(self, who: Principal, ref: str, spec: ShellSpec) -> AsyncGenerator[ShellSession]:
        """A shell of the caller's own, which is closed when the caller leaves; the sandbox is awake as long.

        Raises: as `open`.
        """
        require(who, Scope.EXEC)
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            shell_id = (await self.open(who, ref, spec)).id
            try:
                yield ShellSession(
                    shell_id,
                    box,
                    run=lambda command: self.stream(who, ref, shell_id, command),
                    signal=lambda number: self.signal(who, ref, shell_id, number),
                )
            finally:
                # By this box: a sandbox that went to rest meanwhile is not woken for it.
                with suppress(CoveError):
                    await box.agent.close_shell(shell_id)
                    await self._note("shell.closed", who, supervisor.sandbox, shell_id)

    async def signal(self, who: Principal, ref: str, shell_id: str, signal: int) -> None:
        """Signal what runs, as from a terminal: SIGINT (2) is Ctrl-C. Raises: NotFound, Conflict (nothing runs)."""
        require(who, Scope.EXEC)
        check_shell_id(shell_id)
        if not SIGNALS[0] <= signal <= SIGNALS[1]:
            raise BadRequest("signal must be 1 to 64, or a name", field="signal")
        async with self._directory.live(who, ref).lease() as box:
            running = (await box.agent.shell(shell_id)).running
            if running is None:
                raise Conflict("nothing runs in this shell")
            await box.agent.signal(running, signal)

    async def _note(self, event: str, who: Principal, sandbox: Sandbox, shell_id: str) -> None:
        audit = self._notes.audit
        data = {"shell": shell_id}
        await audit.kept(audit.note(event, project=sandbox.project, sandbox=sandbox.id, data=data, who=who))


def _new_command_id() -> str:
    return f"c{new_core_id()[:12]}"


def _has_shells(box: Box) -> bool:
    return "shell" in box.agent.hello.features


def _require_shells(box: Box) -> None:
    if not _has_shells(box):
        raise Unsupported("this sandbox was made by an older Cove, which had no shells: make it anew")


def _judged_shell(shell: Shell, box: Box) -> Shell:
    return shell if shell.exit is None else replace(shell, exit=judged_exit(shell.exit, box, 0))
