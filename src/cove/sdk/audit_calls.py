"""The requests about the audit trail, as data, and their answers. Pure; both surfaces use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from cove.sdk.errors import BadAnswer, from_problem
from cove.sdk.models import time_of
from cove.sdk.transport import Call, Lost, Retry
from cove.sdk.wire import API, checked, nothing

if TYPE_CHECKING:
    from cove.model.auditchain import AuditVerdict

PAGE: Final = 1000
NDJSON: Final = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One line of the trail: what happened, to which sandbox (None: to the project), by whom.

    `key` is a key's id, `local` for the unix socket, `cove` for the server itself; `via` is `http`, `unix`, `ssh` or
    `cove`. `raw` is the line as the server has it, HMACs included.
    """

    seq: int
    at: datetime | None
    project: str
    sandbox: str | None
    event: str
    key: str
    name: str
    address: str
    via: str
    request_id: str
    data: dict[str, Any]
    raw: dict[str, Any]


def line_of(wire: Any) -> AuditLine:
    """Read one line. Raises: BadAnswer."""
    fields = checked(wire)
    actor = checked(fields.get("actor") or {})
    return AuditLine(
        seq=int(fields.get("seq") or 0),
        at=time_of(fields.get("at")),
        project=str(fields.get("project") or ""),
        sandbox=fields.get("sandbox"),
        event=str(fields.get("event") or ""),
        key=str(actor.get("key") or ""),
        name=str(actor.get("name") or ""),
        address=str(actor.get("address") or ""),
        via=str(actor.get("via") or ""),
        request_id=str(actor.get("request_id") or ""),
        data=checked(fields.get("data") or {}),
        raw=fields,
    )


def page(  # noqa: PLR0913 - one keyword for each filter
    *,
    project: str | None,
    sandbox: str | None,
    event: str | None,
    since: datetime | None,
    newest: bool,
    limit: int,
    cursor: int | None,
) -> Call[tuple[list[AuditLine], int | None]]:
    """GET /audit, one page of it."""
    query: dict[str, str | list[str] | None] = {
        **_query(project, sandbox, event),
        "since": None if since is None else _moment(since),
        "newest": "true" if newest else None,
        "limit": str(limit),
        "cursor": None if cursor is None else str(cursor),
    }

    def parse(wire: Any) -> tuple[list[AuditLine], int | None]:
        fields = checked(wire)
        return [line_of(one) for one in fields.get("lines") or ()], fields.get("cursor")

    return Call("GET", f"{API}/audit", parse, query=query, retry=Retry.LOST)


def follow(*, project: str | None, sandbox: str | None, event: str | None, cursor: int | None) -> Call[None]:
    """GET /audit, as it happens."""
    query: dict[str, str | list[str] | None] = {
        **_query(project, sandbox, event),
        "follow": "true",
        "cursor": None if cursor is None else str(cursor),
    }
    return Call("GET", f"{API}/audit", nothing, query=query, accept=NDJSON)


def export(*, project: str | None, sandbox: str | None) -> Call[None]:
    """GET /audit/export."""
    return Call("GET", f"{API}/audit/export", nothing, query=_query(project, sandbox, None), accept=NDJSON)


def key(project: str | None) -> Call[str]:
    """GET /audit/key."""
    return Call(
        "GET", f"{API}/audit/key", lambda wire: str(checked(wire)["key"]), query={"project": project}, retry=Retry.LOST
    )


def _query(project: str | None, sandbox: str | None, event: str | None) -> dict[str, str | list[str] | None]:
    return {"project": project, "sandbox": sandbox, "event": event}


def _moment(when: datetime) -> str:
    return when.astimezone().isoformat()


class LineReader:
    """Feed it the bytes of an NDJSON stream; it yields whole lines, without heartbeats.

    Attributes:
        seen: the number of the last line of the trail, None before the first.
    """

    def __init__(self) -> None:
        self.seen: int | None = None
        self.has_head = False
        self._rest = b""

    def restart(self) -> None:
        """Forget a half-received line, before reading on over another connection."""
        self._rest = b""

    def raw(self, piece: bytes) -> Iterator[bytes]:
        """Take the next bytes and yield the lines in them, each with its line break. Raises: as `fields`."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in filter(None, lines):
            if line.startswith(b'{"error":'):
                problem = _fields(line).get("error")
                found = cast("dict[str, Any]", problem) if isinstance(problem, dict) else {}
                raise from_problem(found, status=int(found.get("status") or 0))
            self.has_head = b'"kind":"head"' in line and b'"event":' not in line
            yield line + b"\n"

    def feed(self, piece: bytes) -> Iterator[AuditLine]:
        """Take the next bytes and yield the lines of the trail in them.

        Raises: the Error that the stream ends in; BadAnswer.
        """
        for raw in self.raw(piece):
            line = line_of(_fields(raw))
            self.seen = line.seq
            yield line

    def finish(self) -> None:
        """An export was read to its end. Raises: Lost (its signed head did not come)."""
        if self._rest or not self.has_head:
            raise Lost("the export ended before its signed head")


def _fields(line: bytes) -> dict[str, Any]:
    try:
        return checked(json.loads(line))
    except ValueError as error:
        raise BadAnswer("the server sent a line that is no JSON") from error


def verify(lines: Iterable[bytes], key_text: str, *, earlier: AuditVerdict | None = None) -> AuditVerdict:
    """Check an export, offline; `key_text` as `client.audit.key()` gave it. Raises: ValueError (it is no key)."""
    from cove.model.auditchain import KEY_BYTES
    from cove.model.auditchain import verify as check

    key_bytes = bytes.fromhex(key_text.strip())
    if len(key_bytes) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES * 2} hex digits")
    return check((line for line in lines if line.strip()), key_bytes, earlier=earlier)
