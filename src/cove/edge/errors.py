"""Failures as HTTP answers: one table `kind -> (status, code)` and one renderer per dialect.

Also the failures that only HTTP has. They are `CoveError`s, so that a dialect's one table covers them too; a dialect
without a row for a kind gets its parent's (`Malformed` is a bad request everywhere, if nothing else is said).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from cove.model.errors import (
    BadRequest,
    CoveError,
    EngineFailure,
    FileError,
    NotFound,
    SandboxError,
    TooLarge,
    Unauthorized,
    Unsupported,
)

_ENCODE: Final = msgspec.json.Encoder().encode


class Where(StrEnum):
    """Which part of a request is at fault."""

    BODY = "body"
    QUERY = "query"
    PATH = "path"
    HEADER = "header"


class Malformed(BadRequest):
    """The request does not have the form that the operation's types ask for. `where` and `field` name the place."""

    kind = "malformed"

    def __init__(self, public: str, *, where: Where, field: str | None = None) -> None:
        super().__init__(public, field=field)
        self.where = where


class KeyMissing(Unauthorized):
    """The request has no key at all. Some protocols tell this from a wrong one."""

    kind = "key-missing"


class BodyTooLarge(TooLarge):
    """The body is longer than this operation takes. The connection is closed: the rest of it is still coming."""

    kind = "body-too-large"


class BodyStalled(BadRequest):
    """The body did not go on for too long. The connection is closed."""

    kind = "request-timeout"


class MethodNotAllowed(BadRequest):
    """The path exists, the method on it does not. `allowed` says which do."""

    kind = "method-not-allowed"

    def __init__(self, public: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(public)
        self.allowed = allowed


class RangeUnsatisfiable(BadRequest):
    """The asked range lies outside of the file of `size` bytes."""

    kind = "range-not-satisfiable"

    def __init__(self, public: str, *, size: int) -> None:
        super().__init__(public, field="Range")
        self.size = size


class NoSuchRoute(NotFound):
    """No operation has this path."""

    kind = "no-such-route"


class UpgradeRequired(BadRequest):
    """The operation is a WebSocket, and the request does not ask for one, or for another version."""

    kind = "upgrade-required"


class ServerStopping(Unsupported):
    """The server is going down; the sandbox goes on. A retry works as soon as a server is back."""

    kind = "server-stopping"


class BadUpstream(SandboxError):
    """What should have answered a forwarded request: nothing listens there, or it spoke no proper HTTP."""

    kind = "bad-upstream"


class UpstreamTimeout(SandboxError):
    """What took a forwarded request did not begin its answer in time."""

    kind = "upstream-timeout"


class ClientGone(CoveError):
    """The client closed the connection before its answer. Nobody sees this; 499 in logs and metrics."""

    kind = "client-gone"


class Row(NamedTuple):
    """How a dialect says one kind of failure."""

    status: int
    code: str


class Failure(Struct, frozen=True, kw_only=True):
    """What a dialect's renderer gets."""

    error: CoveError
    status: int
    code: str
    request_id: str


def error_frame(failure: Failure) -> bytes:
    """A failure as a text message of a WebSocket, where a dialect has no form of its own."""
    error = failure.error
    said: dict[str, Any] = {
        "type": "error",
        "code": failure.code,
        "detail": error.public,
        "request_id": failure.request_id,
    }
    if error.field is not None:
        said["field"] = error.field
    return _ENCODE(said)


CLOSING: Final = (BodyTooLarge, BodyStalled)
"""After these the rest of the request is unread, so the connection cannot be used again."""


class ErrorTable(Struct, frozen=True, kw_only=True):
    """A dialect's way to report failures.

    `rows` is keyed by kind, by `kind:field` where the field at fault decides, or by `kind/reason` where the reason of a
    FileError does. It must have a row for `engine-failure`. `render` makes the body, `media_type` says what it is;
    `texts` are the codes whose body is plain text. `frame` makes the last text message of a WebSocket that fails.
    """

    rows: Mapping[str, Row]
    render: Callable[[Failure], bytes]
    media_type: bytes = b"application/json"
    texts: frozenset[str] = frozenset()
    frame: Callable[[Failure], bytes] = error_frame

    def media_type_of(self, error: CoveError) -> bytes:
        """What `render` makes of `error`."""
        return b"text/plain; charset=UTF-8" if self.row(error).code in self.texts else self.media_type

    def row(self, error: CoveError) -> Row:
        """The row for `error`: its reason's or field's, its kind's, else its nearest ancestor's."""
        if isinstance(error, FileError) and (found := self.rows.get(f"{error.kind}/{error.reason}")):
            return found
        if error.field is not None and (found := self.rows.get(f"{error.kind}:{error.field}")):
            return found
        for ancestor in type(error).__mro__:
            if issubclass(ancestor, CoveError) and (found := self.rows.get(ancestor.kind)):
                return found
        return self.rows[EngineFailure.kind]

    def failure(self, error: CoveError, request_id: str) -> Failure:
        """`error` with this dialect's status and code."""
        status, code = self.row(error)
        return Failure(error=error, status=status, code=code, request_id=request_id)


def failure_headers(error: CoveError) -> list[tuple[bytes, bytes]]:
    """Headers that HTTP itself wants for a failure, in every dialect."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, error.retry_after_s)))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, RangeUnsatisfiable):
        headers.append((b"content-range", b"bytes */%d" % error.size))
    if isinstance(error, UpgradeRequired):
        headers += [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]
    if isinstance(error, CLOSING):
        headers.append((b"connection", b"close"))
    return headers
