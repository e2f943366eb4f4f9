"""The chain over the audit trail of one sandbox in the form of the isorun API, and its check. Pure; knows no server.

A line's HMAC covers the one before, the number, the event and the data: not the time and not the sandbox, as that API
has it. There is no signed end, so lines that were cut off behind are not missed: the trail of a sandbox that was
destroyed ends with that line. Used by the server that makes lines, and offline by `cove audit verify`. What Cove itself
keeps, and exports, is `auditchain.py`, which covers more.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from cove.model.auditchain import LINE_BYTES, AuditVerdict

MARK: Final = "sha256:"
FIELDS: Final[frozenset[str]] = frozenset(("seq", "ts", "sandbox_id", "event", "data", "hmac"))
_ENCODE: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def chained(sign: Callable[[str], str], last: str, seq: int, event: str, data: object) -> str:
    """The `hmac` of a line behind one that has `last` (empty: the first). `sign`: HMAC-SHA256 of a text, in hex."""
    return f"{MARK}{sign(f'{last}{seq}{event}{_ENCODE(data)}')}"


def looks_like(line: bytes) -> bool:
    """Whether a line is of this form, good or bad."""
    fields = _fields(line)
    return fields is not None and "sandbox_id" in fields


def verify(lines: Iterable[bytes], secret: str) -> AuditVerdict:
    """Check a trail with the team's secret: nothing was altered, removed (but behind), inserted or reordered."""

    def sign(text: str) -> str:
        return hmac.new(secret.encode(), text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    count, last, box, at = 0, "", None, ""
    for number_, line in enumerate(lines, 1):
        if not line.strip():
            continue  # the heartbeat of the stream that it was
        fields = _fields(line)
        wrong = "is no line of such a trail" if fields is None else _wrong(fields, sign, last, count, box)
        if fields is None or wrong:
            return AuditVerdict(count=count, sandbox=box, at=at, last=last, line=number_, wrong=wrong)
        count, last, box, at = count + 1, fields["hmac"], fields["sandbox_id"], str(fields["ts"])
    if not count:
        return AuditVerdict(count=0, line=1, wrong="is missing: there is none")
    return AuditVerdict(count=count, sandbox=box, at=at, last=last)


def _wrong(fields: dict[str, Any], sign: Callable[[str], str], last: str, seq: int, box: str | None) -> str:
    if frozenset(fields) != FIELDS or box not in {None, fields["sandbox_id"]}:
        return "was altered: it lacks what such a line has, has more, or is of another sandbox"
    if fields["seq"] != seq or isinstance(fields["seq"], bool):
        return f"has number {fields['seq']!r} where {seq} is due: lines were removed, inserted or reordered"
    event, said = fields["event"], fields["hmac"]
    if not isinstance(event, str) or not isinstance(said, str) or not said.isascii():
        return "was altered: it lacks what such a line has"
    if not hmac.compare_digest(said, chained(sign, last, seq, event, fields["data"])):
        return f"was altered or inserted (number {seq}): its HMAC does not cover what it says after the line before it"
    return ""


def _fields(line: bytes) -> dict[str, Any] | None:
    if len(line) > LINE_BYTES:
        return None
    try:
        found: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None
