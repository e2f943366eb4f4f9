"""FAIL answers as errors of Cove's tree. Pure. The table of words is agent/PROTOCOL.md section 5.

The text is the sandbox's own and is shown to its owner as text. It goes into `public`, never into `internal`: the log
holds nothing that a sandbox can choose.
"""

from __future__ import annotations

from typing import Final

from cove.agentlink.channel import Refusal
from cove.model.errors import (
    BadRequest,
    Conflict,
    CoveError,
    FileError,
    NotFound,
    SandboxError,
    TooLarge,
    Unsupported,
)

FILE_REASONS: Final = frozenset(
    {
        *("not_found", "exists", "is_directory", "not_directory", "not_empty", "permission", "no_space"),
        *("invalid", "too_large", "busy", "unsupported", "io"),
    },
)

COMMAND_NOT_FOUND: Final = 127
COMMAND_NOT_STARTED: Final = 126
"""What a POSIX shell exits with (XCU 2.8.2) when a command is not found, or is found and cannot be run."""


def file_error(refusal: Refusal) -> FileError:
    """A refused file operation."""
    return FileError(refusal.text, reason=refusal.kind if refusal.kind in FILE_REASONS else "io")


def command_error(refusal: Refusal) -> CoveError:
    """A refused operation on a command that exists or should."""
    match refusal.kind:
        case "not_found":
            return NotFound(refusal.text)
        case "exists" | "busy" | "gone" | "limit":
            return Conflict(refusal.text)
        case "invalid":
            return BadRequest(refusal.text)
        case "too_large":
            return TooLarge(refusal.text)
        case "unsupported":
            return Unsupported(refusal.text)
        case _:
            return SandboxError(refusal.text)


def start_error(refusal: Refusal) -> CoveError:
    """A refused `start`: here a missing program is the caller's mistake, not a missing object of ours."""
    if refusal.kind in {"not_found", "permission"}:
        return BadRequest(refusal.text, field="argv")
    return command_error(refusal)


def shell_code(refusal: Refusal) -> int | None:
    """The exit code a shell gives where a program could not be started; None: the call itself was refused."""
    match refusal.kind:
        case "not_found":
            return COMMAND_NOT_FOUND
        case "permission" | "too_large":
            return COMMAND_NOT_STARTED
        case _:
            return None


def dial_error(refusal: Refusal, port: int) -> CoveError:
    """A refused `dial`."""
    match refusal.kind:
        case "refused":
            return Conflict(f"nothing listens on port {port} in the sandbox")
        case "timeout":
            return Conflict(f"port {port} in the sandbox does not accept connections")
        case _:
            return command_error(refusal)
