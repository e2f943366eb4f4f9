"""A shell for one caller who stays: its commands wait here for their turn, and its end is told.

No scopes and no starting of shells (`shells.py`). One task reads `events`, any may `submit` and `signal`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from cove.core.validation import check_shell_command
from cove.core.verdict import GONE, judged_exit
from cove.engine.driver import Box
from cove.model.errors import Conflict, SandboxGone
from cove.model.execs import Ended, ExecEvent, ExecExit, Started
from cove.model.shells import ShellCommand

WAITING: Final = 64
"""Commands that wait, beside the one that runs."""

LOOK_S: Final = 0.5
"""How often an idle shell is looked at: a job of its own may end it."""

SIGNAL_WAIT_S: Final = 10.0
"""How long a signal waits for a command that is about to begin."""

Events = Callable[[ShellCommand], AbstractAsyncContextManager[AsyncIterator[ExecEvent]]]
"""Runs a command in the shell; made by `Shells`."""


class ShellSession:
    """The shell of one caller. Made by `Shells.session` alone; `exit` is how the shell ended, once `events` has."""

    def __init__(self, shell_id: str, box: Box, run: Events, signal: Callable[[int], Awaitable[None]]) -> None:
        self.id = shell_id
        self.exit: ExecExit | None = None
        self._box = box
        self._run = run
        self._signal = signal
        self._waiting: deque[tuple[object, ShellCommand]] = deque()
        self._submitted = asyncio.Event()
        self._runs = asyncio.Event()
        self._is_busy = False

    def submit(self, tag: object, command: ShellCommand) -> None:
        """Run `command` after those that came before; its events carry `tag`.

        Raises: BadRequest, TooLarge, Conflict (64 wait).
        """
        check_shell_command(command)
        if len(self._waiting) >= WAITING:
            raise Conflict(f"{WAITING} commands wait in this shell; wait for one of them", field="command")
        self._waiting.append((tag, command))
        self._submitted.set()

    async def signal(self, number: int) -> None:
        """Signal what runs, or the command that is about to. Raises: BadRequest, Conflict (nothing runs)."""
        if self._is_busy or self._waiting:
            try:
                async with asyncio.timeout(SIGNAL_WAIT_S):
                    await self._runs.wait()
            except TimeoutError:
                raise Conflict("nothing runs in this shell") from None
        await self._signal(number)

    async def events(self) -> AsyncGenerator[tuple[object, ExecEvent]]:
        """What the commands do, in their order, until the shell ends; for each the last event is Ended.

        Leaving it ends the command that runs. Raises, beside what `Shells.stream` does: Conflict (the sandbox went to
        rest).
        """
        while await self._wait_turn():
            tag, command = self._waiting.popleft()
            self._is_busy = True
            try:
                async with self._run(command) as events:
                    async for event in events:
                        if isinstance(event, Started):
                            self._runs.set()
                        elif isinstance(event, Ended):
                            self._runs.clear()
                        yield tag, event
            except Conflict:
                if not await self._has_ended():
                    raise
            finally:
                self._runs.clear()
                self._is_busy = False

    async def _wait_turn(self) -> bool:
        """Wait for a command. False: the shell has ended."""
        while not await self._has_ended():
            if self._waiting:
                return True
            self._submitted.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._submitted.wait()
            except TimeoutError:
                continue
        return False

    async def _has_ended(self) -> bool:
        try:
            found = (await self._box.agent.shell(self.id)).exit
        except SandboxGone:
            found = GONE
        self.exit = None if found is None else judged_exit(found, self._box, 0)
        return found is not None
