"""Failures in the native API: one table and one renderer (RFC 9457)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import UNSET

from cove.dialects.native import wire
from cove.edge.errors import ErrorTable, Failure, Row
from cove.model.errors import FileError, QuotaExceeded
from cove.model.hints import HINTS, Hint
from cove.model.sandbox import MIB

ROWS: Final = MappingProxyType(
    {
        "bad-request": Row(400, "bad-request"),
        "too-large": Row(413, "too-large"),
        "unauthorized": Row(401, "unauthorized"),
        "forbidden": Row(403, "forbidden"),
        "not-found": Row(404, "not-found"),
        "conflict": Row(409, "conflict"),
        "idempotency-conflict": Row(409, "idempotency-conflict"),
        "gone": Row(410, "gone"),
        "capacity": Row(503, "capacity"),
        "quota-exceeded": Row(429, "quota-exceeded"),
        "quota-too-small": Row(403, "quota-too-small"),
        "budget-exceeded": Row(402, "budget-exceeded"),
        "rate-limited": Row(429, "rate-limited"),
        "unsupported": Row(501, "unsupported"),
        "sandbox-error": Row(502, "sandbox-error"),
        "sandbox-gone": Row(502, "sandbox-gone"),
        "agent-violation": Row(502, "agent-violation"),
        "agent-timeout": Row(504, "agent-timeout"),
        "registry-error": Row(502, "registry-error"),
        "registry-unreachable": Row(502, "registry-unreachable"),
        "file-error": Row(400, "file-error"),
        "file-error/not_found": Row(404, "file-error"),
        "file-error/exists": Row(409, "file-error"),
        "file-error/is_directory": Row(409, "file-error"),
        "file-error/not_directory": Row(409, "file-error"),
        "file-error/not_empty": Row(409, "file-error"),
        "file-error/busy": Row(409, "file-error"),
        "file-error/permission": Row(403, "file-error"),
        "file-error/too_large": Row(413, "file-error"),
        "file-error/no_space": Row(507, "file-error"),
        "engine-failure": Row(500, "engine-failure"),
        # Those that only HTTP has.
        "request-timeout": Row(408, "bad-request"),
        "method-not-allowed": Row(405, "method-not-allowed"),
        "range-not-satisfiable": Row(416, "range-not-satisfiable"),
        "upgrade-required": Row(426, "upgrade-required"),
        "server-stopping": Row(503, "server-stopping"),
        "bad-upstream": Row(502, "bad-upstream"),
        "upstream-timeout": Row(504, "upstream-timeout"),
    },
)

FIELDS: Final = MappingProxyType(
    {
        "memory_bytes": "memory_mib",
        "disk_bytes": "disk_mib",
        "io_read_bps": "io_read_mbps",
        "io_write_bps": "io_write_mbps",
        "idempotency_key": "Idempotency-Key",
    },
)
"""The core's name of a field -> ours, where they differ."""

_HTTP: Final = MappingProxyType(
    {
        "server-stopping": Hint("The server is stopping", "try again as soon as it is back; the sandbox goes on", True),
        "bad-upstream": Hint(
            "The program behind this port does not answer", "see what listens in the sandbox: cove port BOX", True
        ),
        "upstream-timeout": Hint(
            "The program behind this port is too slow", "see what it does: cove exec BOX top -bn1"
        ),
        "no-such-route": Hint("No such operation", "the operations are listed at /docs"),
        "method-not-allowed": Hint("No such method on this path", "the operations are listed at /docs"),
        "range-not-satisfiable": Hint("The range lies outside of the file"),
        "upgrade-required": Hint("This operation is a WebSocket", "connect with a WebSocket client: ws:// or wss://"),
        "request-timeout": Hint("The request came too slowly", retryable=True),
        "body-too-large": Hint("The body is too large", "large content goes through files or a command's stdin"),
    },
)
"""What only HTTP has, by kind."""

_ENCODE: Final = msgspec.json.Encoder().encode


def problem(failure: Failure) -> wire.Problem:
    """A failure as RFC 9457 has it."""
    error = failure.error
    hint = (
        _HTTP.get(error.kind)
        or HINTS.get(f"{error.kind}:{error.field}")
        or HINTS.get(error.kind)
        or HINTS.get(failure.code)
        or Hint(failure.code)
    )
    return wire.Problem(
        type=f"/docs/errors#{failure.code}",
        title=hint.title,
        status=failure.status,
        code=failure.code,
        detail=error.public,
        request_id=failure.request_id,
        retryable=hint.retryable or error.retry_after_s is not None,
        field=UNSET if error.field is None else FIELDS.get(error.field, error.field),
        hint=hint.hint or UNSET,
        reason=error.reason if isinstance(error, FileError) else UNSET,
        limit=_amount(error, error.limit) if isinstance(error, QuotaExceeded) else UNSET,
        used=_amount(error, error.used) if isinstance(error, QuotaExceeded) else UNSET,
    )


def _amount(error: QuotaExceeded, amount: float) -> float:
    """In the unit of the field as we call it."""
    return int(amount) // MIB if FIELDS.get(error.field or "", "").endswith("_mib") else amount


def render(failure: Failure) -> bytes:
    """The body of a failed answer."""
    return _ENCODE(problem(failure))


TABLE: Final = ErrorTable(rows=ROWS, render=render, media_type=b"application/problem+json")
