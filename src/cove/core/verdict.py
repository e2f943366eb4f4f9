"""Why a command ended, from what the agent saw and what the kernel counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, TypeVar

from msgspec.structs import replace

from cove.engine.driver import Box
from cove.model.errors import SandboxGone
from cove.model.execs import Command, Ended, ExecEvent, ExecExit, Why

KILLED_CODE: Final = 137
"""128 + SIGKILL, as a shell reports a child that the kernel killed."""

TIMEOUT_CODE: Final = 124
"""As timeout(1) has it."""

GONE: Final = ExecExit(code=KILLED_CODE, why=Why.SANDBOX_GONE, signal=9)


def judged(exit_: ExecExit, *, was_memory: bool, oom_codes: frozenset[int] = frozenset((KILLED_CODE,))) -> ExecExit:
    """The agent's report with our last word.

    A time-out has code 124, and a SIGKILL beside a rise of the box's out-of-memory count was the kernel's;
    `was_memory` says whether that count rose while the command ran, `oom_codes` are `Box.oom_codes`.
    """
    if exit_.why is Why.TIMEOUT:
        return replace(exit_, code=TIMEOUT_CODE)
    if was_memory and (exit_.signal == 9 or exit_.code in oom_codes):  # noqa: PLR2004 - SIGKILL, signal(7)
        return replace(exit_, why=Why.OUT_OF_MEMORY)
    return exit_


async def judged_events(events: AsyncIterator[ExecEvent], box: Box, oom_before: int) -> AsyncIterator[ExecEvent]:
    """The agent's events, with the last word on why the command ended; it is Ended even if the sandbox died."""
    try:
        async for event in events:
            if isinstance(event, Ended):
                yield Ended(exit=judged_exit(event.exit, box, oom_before), cursor=event.cursor)
            else:
                yield event
    except SandboxGone:
        yield Ended(exit=GONE)


def judged_exit(exit_: ExecExit, box: Box, oom_before: int) -> ExecExit:
    """The agent's report on a command that began when the box had counted `oom_before` kills for memory."""
    return judged(exit_, was_memory=box.oom_kills() > oom_before, oom_codes=box.oom_codes)


C = TypeVar("C", bound=Command)


def judged_command(command: C, box: Box) -> C:
    """The command with the last word on its end.

    It may have outlived servers, so what the count was at its start is not known: a SIGKILL in a box that ever ran
    out of memory is laid to that.
    """
    return command if command.exit is None else replace(command, exit=judged_exit(command.exit, box, 0))
