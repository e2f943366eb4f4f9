"""The lines of one command in the audit trail: `exec.start` before it runs, `exec.exit` when its end is known.

No output, no input, no environment: its text (cut at 4 KiB) is all that is told of it. A caller who puts a secret into
the text has put it into the trail; docs/guides/audit.md says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final

from cove.core.audit import Audit
from cove.model.access import Principal
from cove.model.audit import AuditValue
from cove.model.code import RunEnded, RunEvent, RunStatus
from cove.model.errors import CoveError, NotFound
from cove.model.execs import Command, Ended, ExecEvent, ExecExit
from cove.model.ids import new_core_id
from cove.model.sandbox import Sandbox

log = logging.getLogger(__name__)

MAX_WATCHED: Final = 8192
"""Background commands whose end is waited for, of all sandboxes; the ends of more are not told."""

_RUN_CODES: Final = {
    RunStatus.OK: 0,
    RunStatus.ERROR: 1,
    RunStatus.INTERRUPTED: 130,
    RunStatus.TIMEOUT: 124,
    RunStatus.KERNEL_DIED: 137,
    RunStatus.SANDBOX_GONE: 137,
}
"""What a shell would say of a command that ended so."""


class CommandNote:
    """One command. Its exit is noted once."""

    def __init__(self, audit: Audit, who: Principal, sandbox: Sandbox, data: dict[str, AuditValue]) -> None:
        self._audit = audit
        self._who = who
        self._sandbox = sandbox
        self._data = data
        self._is_over = False
        self._ticket = self._note("exec.start", data)

    async def kept(self) -> None:
        """Until the first line is committed: what is answered has been recorded."""
        await self._audit.kept(self._ticket)

    def ended(self, exit_: ExecExit) -> None:
        """Its end is known."""
        facts: dict[str, AuditValue] = {
            "exit_code": exit_.code,
            "why": exit_.why.value,
            "duration_ms": round(exit_.duration_ms, 1),
        }
        self._exit(facts)

    def left(self) -> None:
        """Whoever ran it is gone, or it could not be run: it was killed if it lived."""
        self._exit({"why": "left"})

    async def told_run(self, events: AsyncIterator[RunEvent]) -> AsyncIterator[RunEvent]:
        """As `told`, for a run of code."""
        await self.kept()
        async for event in events:
            if isinstance(event, RunEnded):
                self.run_ended(event)
            yield event

    def run_ended(self, end: RunEnded) -> None:
        """The end of a run of code is known."""
        code, duration_ms = _RUN_CODES[end.status], round(end.duration_ms, 1)
        self._exit({"exit_code": code, "why": end.status.value, "duration_ms": duration_ms})

    async def told(self, events: AsyncIterator[ExecEvent]) -> AsyncIterator[ExecEvent]:
        """The events; none before the first line is committed, and the end is noted."""
        await self.kept()
        async for event in events:
            if isinstance(event, Ended):
                self.ended(event.exit)
            yield event

    def _exit(self, facts: dict[str, AuditValue]) -> None:
        if not self._is_over:
            self._is_over = True
            self._note("exec.exit", {"exec": self._data["exec"], **facts})

    def _note(self, event: str, data: dict[str, AuditValue]) -> int:
        return self._audit.note(
            event, project=self._sandbox.project, sandbox=self._sandbox.id, data=data, who=self._who
        )


class CommandNotes:
    """What those who run commands use."""

    def __init__(self, audit: Audit, tasks: asyncio.TaskGroup) -> None:
        self.audit = audit
        self._tasks = tasks
        self._watched = 0

    @contextmanager
    def command(  # noqa: PLR0913 - as `begin`
        self,
        who: Principal,
        sandbox: Sandbox,
        text: str,
        *,
        exec_id: str | None = None,
        shell: str | None = None,
        context: str | None = None,
    ) -> Generator[CommandNote]:
        """A command that ends with the body at the latest."""
        note = self.begin(who, sandbox, text, exec_id=exec_id, shell=shell, context=context)
        try:
            yield note
        finally:
            note.left()

    def begin(  # noqa: PLR0913 - what a line says, the optional parts by name
        self,
        who: Principal,
        sandbox: Sandbox,
        text: str,
        *,
        exec_id: str | None = None,
        shell: str | None = None,
        context: str | None = None,
        background: bool = False,
    ) -> CommandNote:
        """A command that may outlive its caller. `context`: code, and where it runs."""
        data: dict[str, AuditValue] = {"exec": exec_id or new_core_id()[:12], "command": text}
        if shell is not None:
            data["shell"] = shell
        if context is not None:
            data["context"] = context
        if background:
            data["background"] = True
        return CommandNote(self.audit, who, sandbox, data)

    def watch(self, note: CommandNote, wait: Callable[[], Awaitable[Command]]) -> None:
        """Note the end of a background command when it comes, as the work of whoever started it."""
        if self._watched < MAX_WATCHED:
            self._watched += 1
            self._tasks.create_task(self._watch(note, wait), name="audit of a background command")

    async def _watch(self, note: CommandNote, wait: Callable[[], Awaitable[Command]]) -> None:
        """A task of its own. Whatever fails here, the command is not the server's to end."""
        try:
            command = await wait()
            if command.exit is not None:
                note.ended(command.exit)
        except NotFound:
            note.left()  # it was removed, which kills it
        except CoveError as error:
            log.debug("the end of a background command is not known: %s", error)
        except Exception:  # the task's outermost frame
            log.exception("the end of a background command could not be noted")
        finally:
            self._watched -= 1
