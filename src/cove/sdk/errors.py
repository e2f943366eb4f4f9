"""Every failure the SDK raises, as one tree. Pure.

The tree (a test compares it with the classes)::

    Error                     what the SDK raises on purpose
    ├── BadRequest            the call must change; `field` names the argument
    │   └── TooLarge
    ├── Unauthorized          no key, or a key nobody knows
    ├── Forbidden             the key may not do this
    ├── NotFound              nothing of that name in this project
    ├── Conflict              the object's state forbids it now
    │   └── IdempotencyConflict
    ├── Gone                  the sandbox existed and has ended
    ├── CapacityExceeded      the machine has no room now
    ├── QuotaExceeded         the project or key holds all that its quota allows
    │   ├── QuotaTooSmall     more is asked for than the whole quota
    │   └── BudgetExceeded    the money is used up
    ├── RateLimited           too many requests, or failed logins, in too short a time
    ├── Unsupported           this machine or driver cannot do it
    ├── SandboxError          the sandbox failed, not Cove and not the command
    │   ├── SandboxGone
    │   ├── AgentTimeout
    │   └── AgentViolation
    ├── RegistryError         a registry of images failed or refused
    │   └── RegistryUnreachable
    ├── FileError             also an OSError, with its errno
    │   ├── FileMissing       also a FileNotFoundError and a KeyError
    │   ├── FilePresent       also a FileExistsError
    │   └── FileRefused       also a PermissionError
    ├── EngineFailure         Cove or the machine failed
    ├── Unreachable           no server answered, or the connection was lost
    ├── BadAnswer             what answered is no Cove server, or damaged
    ├── CommandFailed         check=True and the command did not succeed; carries `result`
    └── CodeFailed            check=True and the code did not run to its end; carries `execution`

An error that arrives over the wire is chosen by its `code` from the table here, never by a class name in the answer.
To add a class: the class, the drawing, a row in `_BY_CODE`, a heading in `docs/reference/sdk.md`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cove.sdk.executions import Execution
    from cove.sdk.results import Result


class Error(Exception):
    """Root of everything the SDK raises on purpose.

    Attributes:
        code: the stable word, such as `not-found`.
        message: one sentence.
        hint: what to do, or an empty string.
        docs: where to read on, or an empty string.
        request_id: what to quote to the operator, or an empty string.
        retryable: whether the same call may succeed later.
        field: the argument at fault, where one is.
        status: the HTTP status, 0 when no answer came.
        retry_after_s: seconds after which a retry makes sense, where the server says so.
    """

    code: str = "error"
    default_retryable: ClassVar[bool] = False

    def __init__(  # noqa: PLR0913 - one keyword for each documented attribute
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str = "",
        docs: str = "",
        request_id: str = "",
        retryable: bool | None = None,
        field: str | None = None,
        status: int = 0,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.hint = hint
        self.docs = docs
        self.request_id = request_id
        self.retryable = self.default_retryable if retryable is None else retryable
        self.field = field
        self.status = status
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        """Allow it to travel between processes, with all it knows."""
        return _made_again, (type(self), self.__dict__.copy())

    def __str__(self) -> str:
        """Return the sentence, the code and, where there is one, the hint: enough for a traceback's last line."""
        text = f"{self.message} ({self.code})"
        return f"{text}\nhint: {self.hint}" if self.hint else text


class BadRequest(Error):
    """The call is malformed or asks for a value out of range."""

    code = "bad-request"


class TooLarge(BadRequest):
    """A body, file, name or list is larger than a limit."""

    code = "too-large"


class Unauthorized(Error):
    """No key was presented, or nobody knows it."""

    code = "unauthorized"


class Forbidden(Error):
    """The key is known and lacks the scope."""

    code = "forbidden"


class NotFound(Error):
    """No such object in this project."""

    code = "not-found"


class Conflict(Error):
    """The object's present state forbids the operation."""

    code = "conflict"


class IdempotencyConflict(Conflict):
    """An idempotency key was used again with another request."""

    code = "idempotency-conflict"


class Gone(Error):
    """The sandbox existed and has ended; the message says when and why."""

    code = "gone"


class CapacityExceeded(Error):
    """The machine has no room now; `retry_after_s` says when to ask again."""

    code = "capacity"
    default_retryable = True


class QuotaExceeded(Error):
    """The project or key holds all that its quota allows: `limit` of `field`, and `used` of it is in use."""

    code = "quota-exceeded"
    limit: float | None = None
    used: float | None = None


class QuotaTooSmall(QuotaExceeded):
    """More is asked for than the whole quota."""

    code = "quota-too-small"


class BudgetExceeded(QuotaExceeded):
    """The budget is used up; `retry_after_s` says when another period begins, if one does."""

    code = "budget-exceeded"


class RateLimited(Error):
    """Too many requests of the key, or failed logins; `retry_after_s` says when to ask again."""

    code = "rate-limited"
    default_retryable = True


class Unsupported(Error):
    """This machine, image or driver cannot do it."""

    code = "unsupported"


class SandboxError(Error):
    """The sandbox failed: not the command in it, and not Cove."""

    code = "sandbox-error"


class SandboxGone(SandboxError):
    """It died while we worked in it."""

    code = "sandbox-gone"


class AgentTimeout(SandboxError):
    """Its agent did not answer in time."""

    code = "agent-timeout"


class AgentViolation(SandboxError):
    """Its agent broke the protocol."""

    code = "agent-violation"


class RegistryError(Error):
    """A registry of images failed or refused; not Cove."""

    code = "registry-error"


class RegistryUnreachable(RegistryError):
    """It could not be connected to at all."""

    code = "registry-unreachable"


class FileError(Error, OSError):
    """A file operation was refused inside the sandbox. `reason` is the word, `errno` the usual number."""

    code = "file-error"

    def __init__(self, message: str, *, reason: str = "io", **facts: Any) -> None:
        super().__init__(message, **facts)
        self.reason = reason
        _number(self)


class FileMissing(FileError, FileNotFoundError, KeyError):
    """No such file."""


class FilePresent(FileError, FileExistsError):
    """It exists already."""


class FileRefused(FileError, PermissionError):
    """The sandbox's own permissions forbid it."""


class EngineFailure(Error):
    """Cove or the machine failed; quote `request_id` to the operator."""

    code = "engine-failure"


class Unreachable(Error):
    """No server answered, or the connection was lost. `hint` lists what was tried, in order."""

    code = "unreachable"
    default_retryable = True


class BadAnswer(Error):
    """What answered is not a Cove server of a version that this client understands."""

    code = "bad-answer"


class CommandFailed(Error):
    """`check=True` was asked and the command did not succeed. `result` is what `run` would have returned."""

    code = "command-failed"

    def __init__(self, message: str, *, result: Result) -> None:
        super().__init__(message)
        self.result = result


class CodeFailed(Error):
    """`check=True` was asked and the code did not run to its end. `execution` is what would have been returned."""

    code = "code-failed"

    def __init__(self, message: str, *, execution: Execution) -> None:
        super().__init__(message)
        self.execution = execution


_ERRNO: Final = {
    "not_found": errno.ENOENT,
    "exists": errno.EEXIST,
    "is_directory": errno.EISDIR,
    "not_directory": errno.ENOTDIR,
    "not_empty": errno.ENOTEMPTY,
    "permission": errno.EACCES,
    "no_space": errno.ENOSPC,
    "invalid": errno.EINVAL,
    "too_large": errno.EFBIG,
    "busy": errno.EBUSY,
    "unsupported": errno.ENOTSUP,
}
_FILE: Final[dict[str, type[FileError]]] = {
    "not_found": FileMissing,
    "exists": FilePresent,
    "permission": FileRefused,
}
_BY_CODE: Final[dict[str, type[Error]]] = {
    cls.code: cls
    for cls in (
        BadRequest,
        TooLarge,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        IdempotencyConflict,
        Gone,
        CapacityExceeded,
        QuotaExceeded,
        QuotaTooSmall,
        BudgetExceeded,
        RateLimited,
        Unsupported,
        SandboxError,
        SandboxGone,
        AgentTimeout,
        AgentViolation,
        RegistryError,
        RegistryUnreachable,
        EngineFailure,
    )
}


def _made_again(kind: type[Error], facts: dict[str, Any]) -> Error:
    error = kind.__new__(kind, facts["message"])
    error.args = (facts["message"],)
    error.__dict__.update(facts)
    if isinstance(error, FileError):
        _number(error)
    return error


def _number(error: FileError) -> None:
    """Set what an OSError has."""
    error.errno = _ERRNO.get(error.reason, errno.EIO)
    error.strerror = error.message


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def from_problem(
    problem: Mapping[str, Any], *, status: int = 0, headers: Mapping[str, str] | None = None, origin: str = ""
) -> Error:
    """Make the error that an RFC 9457 problem describes.

    An unknown code gives plain `Error` with that code, so that a newer server is still understood. `origin` (such as
    `https://cove.example`) is put before a docs address that is a path.
    """
    headers = headers or {}
    code = _text(problem.get("code")) or f"http-{status}"
    docs = _text(problem.get("type"))
    after = headers.get("retry-after", "")
    facts: dict[str, Any] = {
        "code": code,
        "hint": _text(problem.get("hint")),
        "docs": origin + docs if docs.startswith("/") else docs,
        "request_id": _text(problem.get("request_id")) or headers.get("x-request-id", ""),
        "field": _text(problem.get("field")) or None,
        "status": status,
        "retry_after_s": float(after) if after.isdigit() else None,
    }
    if isinstance(problem.get("retryable"), bool):
        facts["retryable"] = problem["retryable"]
    message = _text(problem.get("detail")) or _text(problem.get("title")) or f"the server answered {status}"
    if code == FileError.code:
        reason = _text(problem.get("reason"))
        return _FILE.get(reason, FileError)(message, reason=reason, **facts)
    error = _BY_CODE.get(code, Error)(message, **facts)
    if isinstance(error, QuotaExceeded):
        error.limit, error.used = _amount(problem.get("limit")), _amount(problem.get("used"))
    return error


def _amount(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def from_answer(status: int, headers: Mapping[str, str], body: bytes, origin: str = "") -> Error:
    """Make the error for an answer of 400 and above. Anything but a problem document becomes `BadAnswer`."""
    import json

    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return from_problem(problem, status=status, headers=headers, origin=origin)  # pyright: ignore[reportUnknownArgumentType]
    return BadAnswer(
        f"something answered with status {status} that is not Cove's API",
        hint="check that the address is a Cove server: curl ADDRESS/health",
        status=status,
        request_id=headers.get("x-request-id", ""),
    )
