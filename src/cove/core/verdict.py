"""Why a command ended, from what the agent saw and what the kernel counted. Pure."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cove.model.execs import ExecExit, Why

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
