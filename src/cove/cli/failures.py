"""How a failure is told: one `error:` line with its code, one `hint:` line, and the exit code.

With `--json` it is one JSON line on stderr instead, and stdout stays empty. Exit codes are a contract:
docs/reference/cli.md.
To add a code of the API: a row in `_EXITS`.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from cove.cli.terminal import as_json, clean, paint, say
from cove.sdk.errors import Error, FileError

USAGE: Final = 2
NOT_FOUND: Final = 120
REFUSED: Final = 121
UNAUTHORISED: Final = 122
UNREACHABLE: Final = 123
TIMED_OUT: Final = 124
FAILED: Final = 125
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""What a shell shows for a program that SIGPIPE ended."""

EXIT_CODES: Final = (
    ("0", "done"),
    (
        "the command's own",
        "`run`, `exec` and `shell` pass it on; 126 and 127 as the shell, 128 + signal, 124 after `--timeout`",
    ),
    ("2", "wrong usage, or a value that cannot be"),
    ("120", "not found, or ended"),
    ("121", "refused by policy, quota, capacity, a registry, or the state of the object"),
    ("122", "not authorised"),
    ("123", "no server answers"),
    ("124", "timed out"),
    ("125", "Cove failed"),
    ("130", "interrupted"),
)
_EXITS: Final = {
    "bad-request": USAGE,
    "too-large": USAGE,
    "bad-setting": USAGE,
    "unauthorized": UNAUTHORISED,
    "forbidden": UNAUTHORISED,
    "not-found": NOT_FOUND,
    "gone": NOT_FOUND,
    "conflict": REFUSED,
    "idempotency-conflict": REFUSED,
    "capacity": REFUSED,
    "quota-exceeded": REFUSED,
    "quota-too-small": REFUSED,
    "budget-exceeded": REFUSED,
    "rate-limited": REFUSED,
    "unsupported": REFUSED,
    "registry-error": REFUSED,
    "registry-unreachable": REFUSED,
    "agent-timeout": TIMED_OUT,
    "unreachable": UNREACHABLE,
    "server-stopping": UNREACHABLE,
}


class Failure(Exception):
    """A failure that the command line itself finds. `hint` is one runnable line."""

    def __init__(self, message: str, *, code: str, exit_code: int, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.exit_code = exit_code
        self.hint = hint


class Interrupted(Exception):
    """Ctrl-C, or "no" to a question."""


class PipeClosed(Exception):
    """Whoever read our stdout has gone. Ends the program without a word."""


def usage(message: str, hint: str = "") -> Failure:
    """Return a failure of usage."""
    return Failure(message, code="usage", exit_code=USAGE, hint=hint)


def exit_code_of(error: Error) -> int:
    """Return the exit code for an error of the SDK."""
    if isinstance(error, FileError):
        return NOT_FOUND if error.reason == "not_found" else REFUSED
    if isinstance(error.__cause__, PermissionError):  # the local socket, which is root's
        return UNAUTHORISED
    return _EXITS.get(error.code, FAILED)


def tell(error: BaseException, *, json: bool) -> int:
    """Write the failure to stderr and return the exit code."""
    facts, exit_code = _facts(error)
    if json:
        say(as_json(facts))
        return exit_code
    say(f"{paint('error:', 'red', sys.stderr)} {clean(facts['message'])} ({clean(facts['code'])})")
    if facts["hint"]:
        say(f"{paint('hint:', 'yellow', sys.stderr)} {clean(facts['hint'])}")
    if facts["request_id"] and exit_code == FAILED:
        say(f"      request {clean(facts['request_id'])}")
    return exit_code


def _facts(error: BaseException) -> tuple[dict[str, object], int]:
    facts: dict[str, object] = {
        "code": "internal",
        "message": "",
        "hint": "",
        "docs": "",
        "request_id": "",
        "retryable": False,
    }
    if isinstance(error, Error):
        facts |= {name: getattr(error, name) for name in facts}
        if error.field:
            facts["field"] = error.field
        return facts, exit_code_of(error)
    if isinstance(error, Failure):
        return facts | {"code": error.code, "message": error.message, "hint": error.hint}, error.exit_code
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return facts | {"code": "interrupted", "message": "interrupted"}, INTERRUPTED
    if isinstance(error, OSError):
        about = f"{error.filename}: " if error.filename else ""
        exit_code = NOT_FOUND if isinstance(error, FileNotFoundError) else REFUSED
        return facts | {"code": "local-file", "message": f"{about}{error.strerror or error}"}, exit_code
    return _of_server(error, facts)


def _of_server(error: BaseException, facts: dict[str, object]) -> tuple[dict[str, object], int]:
    """Read errors of `cove.model` and of setup by their attributes: importing those would cost every command."""
    public = getattr(error, "public", None)
    if isinstance(public, str):
        kind = str(getattr(error, "kind", "engine-failure"))
        hint = str(getattr(error, "cure", ""))
        return facts | {"code": kind, "message": public, "hint": hint}, _EXITS.get(kind, FAILED)
    if os.environ.get("COVE_DEBUG"):
        raise error
    message = f"an error in cove itself: {type(error).__name__}: {error}"
    return facts | {"message": message, "hint": "COVE_DEBUG=1 and the same command again show where"}, FAILED
