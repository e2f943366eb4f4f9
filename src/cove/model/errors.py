"""Every failure Cove can report, as one tree. No I/O, no HTTP status, no dialect word.

The tree (a test compares it with the classes)::

    CoveError
    ├── BadRequest            the caller must change the request
    │   └── TooLarge          a size limit of ours was passed
    ├── Unauthorized          no key, or a key nobody knows
    ├── Forbidden             the key is known but may not do this
    ├── NotFound              nothing of that name in this project
    ├── Conflict              the object's state forbids it now
    │   └── IdempotencyConflict
    ├── Gone                  the sandbox existed and has ended
    ├── CapacityExceeded      this machine has no room now (retry later)
    ├── QuotaExceeded         the project or key holds all that its quota allows
    │   ├── QuotaTooSmall     more is asked for than the whole quota
    │   └── BudgetExceeded    the money is used up
    ├── RateLimited           too many requests, or failed logins, in too short a time
    ├── Unsupported           this machine or driver cannot do it
    ├── SandboxError          the sandbox failed, not Cove and not the command
    │   ├── SandboxGone       it died while we worked in it
    │   ├── AgentTimeout      its agent did not answer in time
    │   └── AgentViolation    its agent broke the protocol (hostile or damaged)
    ├── RegistryError         a registry of images failed or refused
    │   └── RegistryUnreachable   it could not be connected to at all
    ├── FileError             a file operation was refused inside the sandbox
    └── EngineFailure         Cove or the machine failed

To add a class: add it here and to the drawing, give it a `kind`, then add one row to `HINTS` in
`model/hints.py` and one row to each dialect's `errors.py` table (a test names the missing ones).
"""

from __future__ import annotations

from typing import ClassVar


class CoveError(Exception):
    """Base of everything Cove raises on purpose.

    Args:
        public: one sentence for the caller. Never a host path, another tenant's id, a stack or a secret.
        internal: for the log only.
        field: the request field at fault, as the caller spelled it in the core's vocabulary.
        retry_after_s: seconds after which a retry makes sense, where one does.
    """

    kind: ClassVar[str] = "error"

    def __init__(
        self,
        public: str,
        *,
        internal: str = "",
        field: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(public)
        self.public = public
        self.internal = internal
        self.field = field
        self.retry_after_s = retry_after_s


class BadRequest(CoveError):
    """The request is malformed or asks for a value out of range; `field` names it where one is at fault."""

    kind = "bad-request"


class TooLarge(BadRequest):
    """A body, file, name or list is larger than a limit of ours."""

    kind = "too-large"


class Unauthorized(CoveError):
    """No key was presented, or nobody knows it."""

    kind = "unauthorized"


class Forbidden(CoveError):
    """The key is known and lacks the scope."""

    kind = "forbidden"


class NotFound(CoveError):
    """No such object in the caller's project. Another project's object is reported the same way."""

    kind = "not-found"


class Conflict(CoveError):
    """The object's present state forbids the operation."""

    kind = "conflict"


class IdempotencyConflict(Conflict):
    """An Idempotency-Key was used again with another body."""

    kind = "idempotency-conflict"


class Gone(CoveError):
    """The sandbox existed and has ended; `public` says when and why."""

    kind = "gone"


class CapacityExceeded(CoveError):
    """This machine has no room now. Always carries `retry_after_s`."""

    kind = "capacity"


class QuotaExceeded(CoveError):
    """The project or key holds all that its quota allows; ending something makes room.

    Args:
        limit: what is allowed, in the unit of `field`.
        used: what is in use now.
    """

    kind = "quota-exceeded"

    def __init__(
        self,
        public: str,
        *,
        field: str,
        limit: float,
        used: float,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(public, field=field, retry_after_s=retry_after_s)
        self.limit = limit
        self.used = used


class QuotaTooSmall(QuotaExceeded):
    """More is asked for than the whole quota: it would be refused even if nothing else were there."""

    kind = "quota-too-small"


class BudgetExceeded(QuotaExceeded):
    """The budget of the period is used up. Carries `retry_after_s` if another period comes."""

    kind = "budget-exceeded"


class RateLimited(CoveError):
    """Too many requests of a key, or failed logins of an address. Always carries `retry_after_s`."""

    kind = "rate-limited"


class Unsupported(CoveError):
    """This machine, image or driver cannot do it; `public` says what is missing."""

    kind = "unsupported"


class SandboxError(CoveError):
    """The sandbox failed: not the command in it, and not Cove."""

    kind = "sandbox-error"


class SandboxGone(SandboxError):
    """The sandbox died under the operation."""

    kind = "sandbox-gone"


class AgentTimeout(SandboxError):
    """The sandbox's agent did not answer within the limit."""

    kind = "agent-timeout"


class AgentViolation(SandboxError):
    """The sandbox's agent sent something the protocol forbids. The connection is closed for good."""

    kind = "agent-violation"


class RegistryError(CoveError):
    """A registry of images failed, refused, or sent what it should not. Not Cove, and not this machine."""

    kind = "registry-error"


class RegistryUnreachable(RegistryError):
    """No connection to the registry came about, so it has said nothing; an alias may stand in."""

    kind = "registry-unreachable"


class FileError(CoveError):
    """A file operation was refused inside the sandbox.

    Args:
        reason: one of the fixed words of agent/PROTOCOL.md section 5 (`not_found`, `exists`,
            `is_directory`, `not_directory`, `not_empty`, `permission`, `no_space`, `invalid`,
            `too_large`, `busy`, `unsupported`, `io`).
    """

    kind = "file-error"

    def __init__(self, public: str, *, reason: str, internal: str = "", field: str | None = "path") -> None:
        super().__init__(public, internal=internal, field=field)
        self.reason = reason


class EngineFailure(CoveError):
    """Cove or the machine failed. `internal` has the detail; the caller gets a request id to quote."""

    kind = "engine-failure"
