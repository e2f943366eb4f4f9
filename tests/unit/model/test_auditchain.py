"""The chain: every alteration of an export is found and named, offline, with the key alone."""

from __future__ import annotations

import hashlib
import hmac
import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.model.audit import AuditActor, AuditDraft, AuditEntry, AuditLink
from cove.model.auditchain import (
    anchor_line,
    head_line,
    line_of,
    project_key,
    rendered,
    seal,
    verify,
)

MASTER = bytes(range(32))
KEY = project_key(MASTER, "p")
BOX, OTHER = "a" * 16, "b" * 16
ACTOR = AuditActor(key="k1", name="Zoë", address="192.0.2.1", via="http", dialect="native", request_id="req_1")


def entries(count: int = 12) -> list[AuditEntry]:
    """A project's chain: two sandboxes and lines about the project itself."""
    link, links = AuditLink(), {BOX: AuditLink(), OTHER: AuditLink()}
    found: list[AuditEntry] = []
    for number in range(count):
        sandbox = (BOX, OTHER, BOX, None)[number % 4]
        data = {"n": number, "text": "grüß\n\u202e", "ratio": 0.5, "flag": True, "none": None}
        draft = AuditDraft(
            ticket=0, at=1e9 + number / 8, project="p", sandbox=sandbox, event="exec.start", actor=ACTOR, data=data
        )
        own = None if sandbox is None else links[sandbox]
        entry = seal(KEY, draft, link, own)
        link = AuditLink(seq=entry.seq + 1, last=entry.hmac)
        if sandbox is not None and entry.sandbox_seq is not None:
            links[sandbox] = AuditLink(seq=entry.sandbox_seq + 1, last=entry.sandbox_hmac or "")
        found.append(entry)
    return found


@cache
def project_export(count: int = 12) -> tuple[bytes, ...]:
    found = entries(count)
    link = AuditLink(seq=count, last=found[-1].hmac)
    head = head_line(KEY, project="p", sandbox=None, link=link, count=count, at=2e9)
    return (*(rendered(line_of(one)) for one in found), head)


@cache
def sandbox_export() -> tuple[bytes, ...]:
    found = [one for one in entries() if one.sandbox == BOX]
    link = AuditLink(seq=len(found), last=found[-1].sandbox_hmac or "")
    head = head_line(KEY, project="p", sandbox=BOX, link=link, count=len(found), at=2e9)
    anchor = anchor_line(KEY, project="p", sandbox=BOX, link=AuditLink(), reason="start", at=2e9)
    return (anchor, *(rendered(line_of(one, of_sandbox=True)) for one in found), head)


EXPORTS = {"project": project_export, "sandbox": sandbox_export}
KINDS = pytest.mark.parametrize("kind", EXPORTS)


@KINDS
def test_what_was_not_touched_verifies(kind: str) -> None:
    lines = EXPORTS[kind]()
    verdict = verify(lines, KEY)
    assert verdict.is_good
    assert verdict.count == len(lines) - (1 if kind == "project" else 2)
    assert verdict.line is None


def test_the_bytes_are_those_of_the_guide() -> None:
    """As docs/guides/audit.md tells a stranger to compute them, with none of our code."""
    extracted = hmac.new(bytes(32), MASTER, hashlib.sha256).digest()
    key = hmac.new(extracted, b"cove audit 1\0p\x01", hashlib.sha256).digest()
    assert key == KEY
    previous, own = "", {}
    for raw in project_export()[:-1]:
        line = json.loads(raw)
        found = line.pop("hmac"), line.pop("sandbox_hmac")
        content = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        box = None
        if line["sandbox"] is not None:
            text = f"sandbox\n{own.get(line['sandbox'], '')}\n{content}"
            box = own[line["sandbox"]] = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        previous = hmac.new(key, f"line\n{previous}\n{box or ''}\n{content}".encode(), hashlib.sha256).hexdigest()
        assert found == (previous, box)


@KINDS
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_every_change_of_one_byte_is_found_in_its_line(kind: str, data: st.DataObject) -> None:
    lines = list(EXPORTS[kind]())
    number = data.draw(st.integers(0, len(lines) - 1))
    line = bytearray(lines[number])
    position = data.draw(st.integers(0, len(line) - 1))
    what = data.draw(st.sampled_from(["replace", "remove", "insert"]))
    byte = data.draw(st.integers(0, 255).filter(lambda one: one not in {line[position], 10}))
    if what == "replace":
        line[position] = byte
    elif what == "remove":
        del line[position]
    else:
        line.insert(position, byte)
    lines[number] = bytes(line)
    verdict = verify(lines, KEY)
    assert verdict.line == number + 1, verdict
    assert verdict.wrong


def _paths(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [path]
    return [path, *(each for name, item in value.items() for each in _paths(item, (*path, name)))]


@KINDS
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_change_of_a_field_is_found_even_when_written_as_cove_writes(kind: str, data: st.DataObject) -> None:
    lines = list(EXPORTS[kind]())
    number = data.draw(st.integers(0, len(lines) - 1))
    fields = json.loads(lines[number])
    path = data.draw(st.sampled_from([one for one in _paths(fields) if one]))
    holder = fields
    for name in path[:-1]:
        holder = holder[name]
    new = data.draw(st.sampled_from([None, "", "x", 0, 1, True, "0" * 64, {}, BOX]))
    if data.draw(st.booleans()):
        del holder[path[-1]]
    elif rendered({"v": holder[path[-1]]}) == rendered({"v": new}):
        return
    else:
        holder[path[-1]] = new
    lines[number] = rendered(fields)
    assert verify(lines, KEY).line == number + 1


@KINDS
def test_removed_inserted_repeated_and_swapped_lines_are_named(kind: str) -> None:
    lines = EXPORTS[kind]()
    first, last = (0 if kind == "project" else 1), len(lines) - 1
    for number in range(last):
        removed = verify([*lines[:number], *lines[number + 1 :]], KEY)
        assert removed.line == number + 1
        assert "removed" in removed.wrong
        repeated = verify([*lines[: number + 1], *lines[number:]], KEY)
        assert repeated.line == number + 2
        assert number < first or "repeated" in repeated.wrong
        if number + 1 < last:
            swapped = [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]]
            assert verify(swapped, KEY).line == number + 1


@KINDS
def test_a_cut_end_is_found_by_the_head(kind: str) -> None:
    lines = EXPORTS[kind]()
    for kept in range(len(lines) - 1):
        headless = verify(lines[:kept], KEY)
        assert "cut off" in headless.wrong
        short = verify([*lines[:kept], lines[-1]], KEY)
        assert short.line == kept + 1 or (kind == "sandbox" and kept == 0)
        assert "removed" in short.wrong or kept == 0
        assert not short.is_good
    assert verify([*lines, lines[0]], KEY).line == len(lines) + 1
    assert verify([*lines, lines[-1]], KEY).line == len(lines) + 1


def test_a_head_of_another_project_or_time_or_sandbox_does_not_fit() -> None:
    lines, own = project_export(), sandbox_export()
    other = project_export(8)
    assert verify([*lines[:-1], other[-1]], KEY).line == len(lines)
    assert verify([*lines[:-1], own[-1]], KEY).line == len(lines)
    assert verify([*own[:-1], lines[-1]], KEY).line == len(own)
    assert verify(lines, project_key(MASTER, "q")).line == 1
    assert verify([*lines[:3], own[1], *lines[3:]], KEY).line == 4
    assert verify([*own[:3], lines[1], *own[3:]], KEY).line == 4
    assert verify(own[1:], KEY).line == 1


def test_an_old_head_verifies_alone_and_is_found_beside_a_later_export() -> None:
    """Whoever kept an earlier export can pass its lines and head off as today's: only a later one tells."""
    early, late = project_export(8), project_export(12)
    assert verify(early, KEY).is_good
    verdict = verify(late, KEY)
    assert verify(late, KEY, earlier=verify(early, KEY)).is_good
    assert "older" in verify(early, KEY, earlier=verdict).wrong


def test_another_history_than_that_of_an_earlier_export_is_found() -> None:
    early = verify(project_export(8), KEY)
    link, found = AuditLink(), []
    for one in entries():
        draft = AuditDraft(
            ticket=0, at=one.at, project="p", sandbox=None, event="rewritten", actor=ACTOR, data={"n": one.seq}
        )
        entry = seal(KEY, draft, link, None)
        link = AuditLink(seq=entry.seq + 1, last=entry.hmac)
        found.append(rendered(line_of(entry)))
    forged = [*found, head_line(KEY, project="p", sandbox=None, link=link, count=12, at=2e9)]
    assert verify(forged, KEY).is_good, "whoever has the key can write another history"
    verdict = verify(forged, KEY, earlier=early)
    assert verdict.line == 9
    assert "another history" in verdict.wrong


def test_an_anchor_stands_for_what_is_gone_and_only_where_it_was_signed() -> None:
    found = entries()
    link = AuditLink(seq=5, last=found[4].hmac)
    anchor = anchor_line(KEY, project="p", sandbox=None, link=link, reason="retention", at=2e9)
    rest = [rendered(line_of(one)) for one in found[5:]]
    head = head_line(KEY, project="p", sandbox=None, link=AuditLink(seq=12, last=found[-1].hmac), count=7, at=2e9)
    verdict = verify([anchor, *rest, head], KEY)
    assert verdict.is_good
    assert (verdict.first_seq, verdict.count, verdict.reason) == (5, 7, "retention")
    assert verify([*rest, head], KEY).line == 1
    assert verify([anchor, *rest[1:], head], KEY).line == 2
    assert verify([rest[0], anchor, *rest[1:], head], KEY).line == 1
    assert verify([anchor.replace(b'"next_seq":5', b'"next_seq":6'), *rest[1:], head], KEY).line == 1


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"seq":0}',
        b"[" * 100_000,
        b'{"a":1,"a":1}',
        b'{"seq":NaN}',
        b"x" * 70_000,
    ],
)
def test_junk_is_a_bad_line_and_never_a_crash(junk: bytes) -> None:
    lines = project_export()
    assert verify([*lines[:2], junk, *lines[2:]], KEY).line == 3
    assert verify([junk], KEY).line == 1
    assert not verify([], KEY).is_good
