"""Failures in the words of isorun: one table and one renderer."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

import msgspec

from cove.dialects.isorun import wire
from cove.edge.errors import ErrorTable, Failure, Row
from cove.model.errors import BadRequest, CoveError, NotFound

ROWS: Final = MappingProxyType(
    {
        "bad-request": Row(400, "bad-request"),
        "too-large": Row(413, "too-large"),
        "unauthorized": Row(401, "unauthorized"),
        "forbidden": Row(403, "forbidden"),
        "not-found": Row(404, "not-found"),
        # What a body names and is not there: the body is wrong, not the path.
        "not-found:image": Row(400, "bad-request"),
        "not-found:service": Row(400, "bad-request"),
        "conflict": Row(409, "conflict"),
        "idempotency-conflict": Row(409, "conflict"),
        "gone": Row(404, "not-found"),
        "capacity": Row(429, "capacity"),
        "quota-exceeded": Row(429, "capacity"),
        "quota-too-small": Row(403, "forbidden"),
        "budget-exceeded": Row(402, "budget"),
        "rate-limited": Row(429, "capacity"),
        "unsupported": Row(501, "unsupported"),
        "sandbox-error": Row(502, "sandbox"),
        "sandbox-gone": Row(404, "not-found"),
        "agent-violation": Row(502, "sandbox"),
        "agent-timeout": Row(502, "sandbox"),
        "registry-error": Row(400, "registry"),
        "registry-unreachable": Row(502, "registry"),
        "file-error": Row(400, "file"),
        "file-error/not_found": Row(404, "file"),
        "file-error/exists": Row(409, "file"),
        "file-error/busy": Row(409, "file"),
        "file-error/permission": Row(403, "file"),
        "file-error/too_large": Row(413, "file"),
        "file-error/no_space": Row(507, "file"),
        "engine-failure": Row(500, "server"),
        # Those that only HTTP has.
        "request-timeout": Row(408, "bad-request"),
        "method-not-allowed": Row(405, "method-not-allowed"),
        "range-not-satisfiable": Row(416, "bad-request"),
        "upgrade-required": Row(426, "bad-request"),
        "server-stopping": Row(503, "stopping"),
        "bad-upstream": Row(502, "port"),
        "upstream-timeout": Row(502, "port"),
    },
)

_WORDS: Final = MappingProxyType(
    {
        "cpus": "vcpus",
        "memory_bytes": "mem_mib",
        "disk_bytes": "disk_mib",
        "timeout_s": "timeout",
        "idle_timeout_s": "timeout",
        "service": "credentials",
    },
)
"""The core's name of a field -> the protocol's, where they differ."""

_SERVICE: Final = "service"
"""A noun in sentences, too."""

_AT_REST: Final = re.compile(r"the (sandbox is \w+)")
_ENCODE: Final = msgspec.json.Encoder().encode


def sentence(error: CoveError) -> str:
    """`error` as isorun says it: one text, which names the field."""
    text, field = error.public, error.field
    if field == "state" and (at_rest := _AT_REST.match(text)):
        return at_rest[1]
    if field is None or not isinstance(error, BadRequest | NotFound):
        return text
    word = _WORDS.get(field, field)
    text = text if field == _SERVICE else text.replace(field, word)
    return text if word in text else f"{word}: {text}"


def render(failure: Failure) -> bytes:
    """The body of an answer that reports `failure`."""
    return _ENCODE(wire.Failed(sentence(failure.error)))


def frame(failure: Failure) -> bytes:
    """The same as the last text message of a WebSocket."""
    return _ENCODE({"type": "error", "error": sentence(failure.error)})


TABLE: Final = ErrorTable(rows=ROWS, render=render, frame=frame)
