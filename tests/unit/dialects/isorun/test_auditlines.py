"""The lines of a trail as isorun has them, and their chain."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest

from cove.dialects.isorun.auditlines import EVENTS, Teller
from cove.model.audit import AuditActor, AuditEntry, AuditValue
from cove.model.eventchain import looks_like, verify

BOX = "0123456789abcdef"
SECRET = "team secret é"


def sign(text: str) -> str:
    return hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()


def one(event: str, sandbox: str | None = BOX, **data: AuditValue) -> AuditEntry:
    actor = AuditActor(key="k", name="n")
    return AuditEntry(seq=7, at=1e9, project="p", sandbox=sandbox, event=event, actor=actor, data=data, hmac="x")


LIFE = (
    one("sandbox.created", image="python", image_asked="python:3.12-slim", vcpus=1.0, mem_mib=512, disk_mib=1024),
    one("exec.start", exec="e1", command="echo é"),
    one("port.exposed", port=80),
    one("exec.exit", exec="e1", exit_code=0, duration_ms=1.5, why="exited"),
    one("sandbox.destroyed", cpu_ms=1, mem_peak_bytes=2, uptime_ms=3, reason="requested"),
)


def told(*entries: AuditEntry) -> list[bytes]:
    teller = Teller(sign)
    return [line for line in map(teller.tell, entries) if line]


def read(*entries: AuditEntry) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told(*entries)]


def test_lines_have_the_words_numbers_and_hmacs_of_that_api() -> None:
    lines = read(*LIFE)
    assert [line["event"] for line in lines] == ["sandbox.created", "exec.start", "exec.exit", "sandbox.destroyed"]
    assert [line["seq"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["data"] == {"image": "python:3.12-slim", "vcpus": 1, "mem_mib": 512, "disk_mib": 1024}
    assert lines[2]["data"] == {"command": "echo é", "exit_code": 0, "duration_ms": 2}
    assert (lines[0]["sandbox_id"], lines[0]["ts"]) == ("run" + BOX, "2001-09-09T01:46:40.000Z")
    last = ""
    for line in lines:
        data = json.dumps(line["data"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        last = "sha256:" + sign(f"{last}{line['seq']}{line['event']}{data}")
        assert line["hmac"] == last


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        (one("sandbox.forked", parent=BOX, image="a", image_asked="b"), {"parent": "run" + BOX, "image": "b"}),
        (one("sandbox.hibernated", memory=True, size_bytes=9), {"snapshot_size_bytes": 9}),
        (one("sandbox.resumed", was="hibernated", took_ms=3.2), {"restore_ms": 4}),
        (one("sandbox.resumed"), {}),
        (
            one("network.blocked", layer="dns", host="a.example", ip=None, port=0, rule="default deny", count=3),
            {"host": "a.example", "ip": None, "port": 0, "rule": "default deny"},
        ),
        (one("file.uploaded", path="/a", size_bytes=5), {"path": "/a", "size_bytes": 5}),
        (
            one("credential.proxied", service="openai", method="GET", path="/v1", status=200),
            {"service": "openai", "method": "GET", "path": "/v1", "status": 200},
        ),
        (one("sandbox.snapshotted", snapshot=BOX, size_bytes=5), {"snapshot_id": "snap" + BOX, "size_bytes": 5}),
        (one("sandbox.restored", snapshot=BOX, parent=BOX), {"snapshot_id": "snap" + BOX}),
    ],
)
def test_each_event_tells_what_the_protocol_says(entry: AuditEntry, data: dict[str, AuditValue]) -> None:
    assert [line["data"] for line in read(entry)] == [data]
    assert set(data) <= set(EVENTS[entry.event])


def test_what_that_api_does_not_know_is_left_out() -> None:
    assert told(one("sandbox.changed"), one("sandbox.created", sandbox=None), one("webhook.created")) == []


def test_a_whole_trail_is_good() -> None:
    lines = told(*LIFE)
    assert looks_like(lines[0])
    verdict = verify([b"\n", *lines], SECRET)
    assert (verdict.is_good, verdict.count, verdict.sandbox) == (True, 4, "run" + BOX)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b'"exit_code":0', b'"exit_code":1'), lines[3]], 3),
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[0].replace(b'"seq":0', b'"seq":false'), *lines[1:]], 1),
        (lambda lines: [lines[0].replace(b'{"seq"', b'{"more":1,"seq"'), *lines[1:]], 1),
        (lambda lines: [*lines[:3], lines[3].replace(b"run0", b"run1")], 4),
        (lambda lines: [*lines[:1], b"nonsense\n", *lines[1:]], 2),
        (lambda lines: [*lines[:1], b"[" * 70_000, *lines[1:]], 2),
        (lambda _: [], 1),
    ],
)
def test_a_tampered_copy_is_bad_and_its_line_named(change: Callable[[list[bytes]], list[bytes]], line: int) -> None:
    verdict = verify(change(told(*LIFE)), SECRET)
    assert (verdict.is_good, verdict.line) == (False, line)


def test_another_teams_secret_does_not_fit() -> None:
    assert verify(told(*LIFE), "another").line == 1
