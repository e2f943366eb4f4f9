"""The audit's chains as bytes: what a line looks like, what its HMAC covers, and how an export is checked. Pure.

A line is a JSON object with its keys sorted, without spaces, non-ASCII unescaped. Its content is the same object
without `hmac` and `sandbox_hmac`. With the project's key K, `m` the HMAC-SHA256 in lower-case hex, and `previous` the
value of the line before (empty for the first)::

    sandbox_hmac = m(K, "sandbox" LF previous sandbox_hmac LF content)
    hmac         = m(K, "line" LF previous hmac LF sandbox_hmac LF content)

The export of a project has both; that of a sandbox has no `hmac`, whose predecessor lies outside of it. So in either
every field of every line is covered. An export may begin with an anchor (older lines were removed) and ends with a
head, both signed: m(K, "anchor" | "head" LF the object without `hmac`).

The verifier is used offline by the CLI, so this module knows nothing of the server. Why so: docs/decisions/0015.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

from msgspec import Struct

from cove.model.audit import AuditDraft, AuditEntry, AuditLink

PREFIX: Final = "sb_"
"""How the trail spells a sandbox's id: as the native API does."""

KEY_BYTES: Final = 32
LINE_BYTES: Final = 64 * 1024
"""Longest line that a verifier looks at; ours are below 10 KiB."""

_FIELDS: Final[frozenset[str]] = frozenset(
    ("seq", "at", "project", "sandbox", "sandbox_seq", "event", "actor", "data", "sandbox_hmac", "hmac")
)
_INFO: Final = b"cove audit 1\0"
_HASH: Final = "sha256"
_ENCODE: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def project_key(master: bytes, project: str) -> bytes:
    """The key of a project's chains: HKDF-SHA256 (RFC 5869) without salt, one block."""
    extracted = hmac.digest(bytes(KEY_BYTES), master, _HASH)
    return hmac.digest(extracted, _INFO + project.encode() + b"\x01", _HASH)


def key_fingerprint(master: bytes) -> str:
    """What a database remembers of the master key, to see that it is the same one."""
    return hashlib.sha256(b"cove audit key\0" + master).hexdigest()[:32]


def moment(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def content_of(entry: AuditEntry | AuditDraft, seq: int, sandbox_seq: int | None) -> dict[str, object]:
    """Every field of a line but its HMACs."""
    actor = entry.actor
    return {
        "seq": seq,
        "at": moment(entry.at),
        "project": entry.project,
        "sandbox": None if entry.sandbox is None else PREFIX + entry.sandbox,
        "sandbox_seq": sandbox_seq,
        "event": entry.event,
        "actor": {
            "key": actor.key,
            "name": actor.name,
            "address": actor.address,
            "via": actor.via,
            "dialect": actor.dialect,
            "request_id": actor.request_id,
        },
        "data": dict(entry.data),
    }


def seal(key: bytes, draft: AuditDraft, link: AuditLink, sandbox_link: AuditLink | None) -> AuditEntry:
    """The draft as the next line of its project's chain and of its sandbox's."""
    sandbox_seq = None if sandbox_link is None else sandbox_link.seq
    content = _ENCODE(content_of(draft, link.seq, sandbox_seq))
    sandbox_hmac = None if sandbox_link is None else _signed(key, "sandbox", sandbox_link.last, content)
    return AuditEntry(
        seq=link.seq,
        at=draft.at,
        project=draft.project,
        sandbox=draft.sandbox,
        event=draft.event,
        actor=draft.actor,
        data=draft.data,
        hmac=_signed(key, "line", link.last, sandbox_hmac or "", content),
        sandbox_seq=sandbox_seq,
        sandbox_hmac=sandbox_hmac,
    )


def is_as_sealed(key: bytes, entry: AuditEntry, before: str) -> bool:
    """Whether a line of a sandbox's chain is as it was written, after the one with the HMAC `before`."""
    content = _ENCODE(content_of(entry, entry.seq, entry.sandbox_seq))
    return _equal(entry.sandbox_hmac, _signed(key, "sandbox", before, content))


def line_of(entry: AuditEntry, *, of_sandbox: bool = False) -> dict[str, object]:
    """A line as an object. `of_sandbox`: of the sandbox's own chain."""
    fields = content_of(entry, entry.seq, entry.sandbox_seq)
    fields["sandbox_hmac"] = entry.sandbox_hmac
    if not of_sandbox:
        fields["hmac"] = entry.hmac
    return fields


def rendered(fields: Mapping[str, object]) -> bytes:
    """An object as a line of an export, without its line break."""
    return _ENCODE(fields).encode()


def anchor_line(  # noqa: PLR0913 - what an anchor says, all by name
    key: bytes, *, project: str, sandbox: str | None, link: AuditLink, reason: str, at: float
) -> bytes:
    """The first line of an export that goes on at `link`: all is there (`start`), or not, by `retention` or `key`."""
    return _end_line(key, "anchor", project, sandbox, link, at, {"reason": reason})


def head_line(  # noqa: PLR0913 - what a head says, all by name
    key: bytes, *, project: str, sandbox: str | None, link: AuditLink, count: int, at: float
) -> bytes:
    """The last line of an export: how many lines it has, and where its chain ends."""
    return _end_line(key, "head", project, sandbox, link, at, {"count": count})


def _end_line(  # noqa: PLR0913, PLR0917 - as above
    key: bytes, kind: str, project: str, sandbox: str | None, link: AuditLink, at: float, more: Mapping[str, object]
) -> bytes:
    fields: dict[str, object] = {
        "kind": kind,
        "project": project,
        "sandbox": None if sandbox is None else PREFIX + sandbox,
        "next_seq": link.seq,
        "last": link.last,
        "at": moment(at),
        **more,
    }
    fields["hmac"] = _signed(key, kind, _ENCODE(fields))
    return rendered(fields)


def _signed(key: bytes, *parts: str) -> str:
    return hmac.digest(key, "\n".join(parts).encode(), _HASH).hex()


class AuditVerdict(Struct, frozen=True, kw_only=True):
    """What a check of an export found. `line` (from 1) is the first bad one, `wrong` what is wrong with it.

    `count` lines are good; `first_seq` is the first one's number: so many older ones are not in the file, for `reason`.
    `continues` is the number of lines of the earlier export that were found again.
    """

    count: int
    project: str = ""
    sandbox: str | None = None
    first_seq: int = 0
    reason: str = ""
    at: str = ""
    last: str = ""
    line: int | None = None
    wrong: str = ""

    @property
    def is_good(self) -> bool:
        """Whether every line is what Cove wrote, in order, without a gap, up to a signed end."""
        return not self.wrong


class _Bad(Exception):
    """A line is not as it was written."""


class _Checker:
    """Goes through an export line by line."""

    def __init__(self, key: bytes, earlier: AuditLink | None) -> None:
        self._key = key
        self._earlier = earlier
        self.count = 0
        self.first_seq = 0
        self.reason = ""
        self.head: dict[str, Any] | None = None
        self.whose: tuple[str, str | None] | None = None
        self._is_sandbox = False
        self._link = AuditLink()

    def take(self, raw: bytes, number: int) -> None:
        """One line. Raises: _Bad."""
        if self.head is not None:
            raise _Bad("stands after the signed end")
        fields = _parsed(raw)
        kind = fields.get("kind")
        if kind is None:
            self._line(fields)
        elif kind == "anchor" and number == 1:
            self._anchor(fields)
        elif kind == "head":
            self._head(fields)
        else:
            raise _Bad("is of no kind that may stand here")

    def finish(self) -> None:
        """All lines were read. Raises: _Bad."""
        if self.head is None:
            raise _Bad("is missing: the file was cut off before its signed end")
        if self._earlier is not None and self._earlier.seq > self._link.seq:
            raise _Bad(f"is of an older state: the earlier export already had {self._earlier.seq} lines")

    def _anchor(self, fields: dict[str, Any]) -> None:
        self._signature(fields, "anchor")
        self.whose = (fields["project"], fields["sandbox"])
        self._is_sandbox = fields["sandbox"] is not None
        self.reason = fields["reason"]
        self.first_seq = fields["next_seq"]
        self._link = AuditLink(seq=fields["next_seq"], last=fields["last"])

    def _head(self, fields: dict[str, Any]) -> None:
        self._signature(fields, "head")
        if self.whose is not None and self.whose != (fields["project"], fields["sandbox"]):
            raise _Bad("is the end of another export")
        if fields["count"] != self.count or fields["next_seq"] != self._link.seq or fields["last"] != self._link.last:
            missing = fields["next_seq"] - self._link.seq
            raise _Bad(
                f"says that {missing} more lines were there: they were removed"
                if missing > 0
                else "does not belong to the lines before it"
            )
        self._same_as_earlier()
        self.whose = (fields["project"], fields["sandbox"])
        self.head = fields

    def _signature(self, fields: dict[str, Any], kind: str) -> None:
        rest = {name: value for name, value in fields.items() if name != "hmac"}
        if not _equal(fields.get("hmac"), _signed(self._key, kind, _ENCODE(rest))):
            raise _Bad("has a signature that this key did not make: altered, or of another project")

    def _line(self, fields: dict[str, Any]) -> None:
        is_sandbox = "hmac" not in fields
        if is_sandbox is not self._is_sandbox:
            raise _Bad("is of another kind of export: altered, or the first line of a sandbox's was removed")
        if self.whose is None:
            self.whose = (fields.get("project", ""), None)
        own = fields.get("sandbox_hmac")
        if frozenset((*fields, "hmac")) != _FIELDS or (own is None) != (fields["sandbox"] is None) or own == "":
            raise _Bad("was altered: it lacks what such a line has, or has more")
        content = {name: value for name, value in fields.items() if name not in {"hmac", "sandbox_hmac"}}
        text = _ENCODE(content)
        seq = fields.get("sandbox_seq") if is_sandbox else fields.get("seq")
        if is_sandbox:
            wanted = _signed(self._key, "sandbox", self._link.last, text)
            found = own
        else:
            wanted = _signed(self._key, "line", self._link.last, own or "", text)
            found = fields.get("hmac")
        if not _equal(found, wanted):
            raise _Bad(self._why(seq))
        self._same_as_earlier()
        self._link = AuditLink(seq=self._link.seq + 1, last=wanted)
        self.count += 1

    def _why(self, seq: object) -> str:
        expected = self._link.seq
        if not isinstance(seq, int) or isinstance(seq, bool):
            return "was altered: it has no number"
        if seq > expected:
            return f"has number {seq} where {expected} is due: lines before it were removed or reordered"
        if seq < expected:
            return f"has number {seq} where {expected} is due: it was inserted, repeated or reordered"
        return f"was altered or inserted (number {seq}): its HMAC does not cover what it says after the line before it"

    def _same_as_earlier(self) -> None:
        earlier = self._earlier
        if earlier is not None and earlier.seq == self._link.seq and earlier.last != self._link.last:
            raise _Bad("follows another history than the earlier export")


def verify(lines: Iterable[bytes], key: bytes, *, earlier: AuditVerdict | None = None) -> AuditVerdict:
    """Check an export with its project's key. `earlier`: the good verdict on an older one that it must continue."""
    link = None if earlier is None else AuditLink(seq=earlier.first_seq + earlier.count, last=earlier.last)
    checker = _Checker(key, link)
    number = 0
    wrong = ""
    try:
        for raw in lines:
            number += 1
            checker.take(raw.removesuffix(b"\n"), number)
        number += 1
        checker.finish()
    except _Bad as bad:
        wrong = str(bad)
    except (KeyError, TypeError):
        wrong = "was altered: it lacks what such a line has"
    project, sandbox = checker.whose or ("", None)
    head = checker.head or {}
    if not wrong and earlier is not None and (earlier.project, earlier.sandbox) != (project, sandbox):
        wrong = "is the export of another project or sandbox than the earlier one"
    return AuditVerdict(
        count=checker.count,
        project=project,
        sandbox=sandbox,
        first_seq=checker.first_seq,
        reason=checker.reason,
        at=head.get("at", ""),
        last=head.get("last", ""),
        line=number if wrong else None,
        wrong=wrong,
    )


def _parsed(raw: bytes) -> dict[str, Any]:
    """An object that is written as Cove writes it, to the byte: one text must not mean two things. Raises: _Bad."""
    if len(raw) > LINE_BYTES:
        raise _Bad("is longer than any line that Cove writes")
    try:
        fields: object = json.loads(raw)
        same = isinstance(fields, dict) and rendered(cast("dict[str, object]", fields)) == raw
    except (ValueError, RecursionError):
        same, fields = False, None
    if not same:
        raise _Bad("is not as Cove writes lines: altered, cut, or re-formatted by another program")
    return cast("dict[str, Any]", fields)


def _equal(found: object, wanted: str) -> bool:
    return isinstance(found, str) and found.isascii() and hmac.compare_digest(found, wanted)
