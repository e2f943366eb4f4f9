"""Failures in the words of isol8: one table and one renderer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from cove.dialects.isol8 import wire
from cove.edge.errors import ErrorTable, Failure, Row
from cove.model.errors import CoveError
from cove.model.execution import RemoteFault, RemoteRefused, WrongRuntime

NO_ROUTE: Final = "no-route"
TOO_LARGE: Final = "too-large"
FAULT: Final = "fault"
"""The original fails on files of sessions in an unforeseen way: its clients show the status alone."""

# What the original throws is 500, and its clients show the text; what it has no word for has HTTP's.
ROWS: Final = MappingProxyType(
    {
        "bad-request": Row(500, "refused"),
        "malformed": Row(400, "malformed"),
        "too-large": Row(500, "refused"),
        "key-missing": Row(401, "key-missing"),
        "unauthorized": Row(403, "key-unknown"),
        "forbidden": Row(403, "forbidden"),
        "not-found": Row(404, "not-found"),
        "conflict": Row(500, "refused"),
        "idempotency-conflict": Row(500, "refused"),
        "gone": Row(500, "refused"),
        "capacity": Row(429, "capacity"),
        "quota-exceeded": Row(429, "capacity"),
        "quota-too-small": Row(500, "refused"),
        "budget-exceeded": Row(429, "capacity"),
        "rate-limited": Row(429, "capacity"),
        "unsupported": Row(500, "refused"),
        "sandbox-error": Row(500, "refused"),
        "sandbox-gone": Row(500, "refused"),
        "agent-violation": Row(500, "refused"),
        "agent-timeout": Row(500, "refused"),
        "registry-error": Row(500, "refused"),
        "registry-unreachable": Row(500, "refused"),
        "file-error": Row(500, FAULT),
        "engine-failure": Row(500, "refused"),
        "body-too-large": Row(413, TOO_LARGE),
        "request-timeout": Row(408, "malformed"),
        "method-not-allowed": Row(404, NO_ROUTE),
        "no-such-route": Row(404, NO_ROUTE),
        "range-not-satisfiable": Row(416, "refused"),
        "upgrade-required": Row(404, NO_ROUTE),
        "server-stopping": Row(503, "refused"),
        "bad-upstream": Row(502, "refused"),
        "upstream-timeout": Row(504, "refused"),
    },
)

_SAID: Final = MappingProxyType(
    {"key-missing": "Missing Authorization header", "key-unknown": "Invalid API key"},
)
_REMOTE: Final[Mapping[RemoteFault, str]] = MappingProxyType(
    {
        RemoteFault.DISABLED: "Remote code fetching is disabled. Set remoteCode.enabled=true to allow it.",
        RemoteFault.INVALID: "Invalid URL",
        RemoteFault.INSECURE: "Insecure code URL blocked. Use allowInsecureCodeUrl=true to allow HTTP.",
        RemoteFault.SCHEME: "URL scheme not allowed: {}",
        RemoteFault.HOST: "Blocked code URL host: {}",
        RemoteFault.UNRESOLVED: "Failed to resolve code URL host: {}",
        RemoteFault.UNHASHED: "Hash verification required: provide codeHash for remote code execution.",
        RemoteFault.TIMEOUT: "Remote code fetch timed out after {}ms",
        RemoteFault.STATUS: "Failed to fetch remote code: HTTP {}",
        RemoteFault.FAILED: "Failed to fetch remote code: {}",
        RemoteFault.TOO_LARGE: "Remote code exceeds maxCodeSize ({} bytes)",
        RemoteFault.MISMATCH: "Remote code hash mismatch",
        RemoteFault.BINARY: "Fetched code appears to be binary content",
    },
)
_ENCODE: Final = msgspec.json.Encoder().encode


def sentence(error: CoveError) -> str:
    """`error` as the original says it."""
    if isinstance(error, WrongRuntime):
        return (
            f'Cannot switch runtime from "{error.had}" to "{error.asked}". Each persistent container supports a single '
            "runtime. Create a new Isol8 instance for a different runtime."
        )
    if isinstance(error, RemoteRefused):
        return _REMOTE[error.fault].format(error.detail)
    return error.public


def render(failure: Failure) -> bytes:
    """The body of an answer that reports `failure`."""
    if failure.code == NO_ROUTE:
        return b"404 Not Found"
    if failure.code == TOO_LARGE:
        return b""
    if failure.code == FAULT:
        return b"Internal Server Error"
    return _ENCODE(wire.Told(_SAID.get(failure.code) or sentence(failure.error)))


TABLE: Final = ErrorTable(rows=ROWS, render=render, texts=frozenset({NO_ROUTE, TOO_LARGE, FAULT}))
