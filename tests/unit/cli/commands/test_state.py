"""`cove pause` to `cove rollback`, and `cove snapshot`: what is sent, and what is said of memory that was not kept."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

LOST = "the driver fake cannot keep memory"


def snapshot(name: str, number: int = 7, **facts: object) -> dict[str, object]:
    return {
        "id": f"sn_{number:016x}",
        "name": name,
        "state": "ready",
        "memory": True,
        "reason": None,
        "tags": {"run": "7"},
        "sandbox": "sb_0000000000000001",
        "sandbox_name": "brave-otter",
        "driver": "runc",
        "image": "python",
        "processes": 3,
        "memory_bytes": 30 << 20,
        "disk_bytes": 2 << 20,
        "stopped_ms": 92.0,
        "created_at": "2026-01-01T00:00:00.000Z",
        **facts,
    }


def nothing(what: str, field: str = "snapshot") -> dict[str, object]:
    return {"status": 404, "code": "not-found", "detail": f"no {what}", "field": field}


@pytest.fixture
def held(stub: Any) -> Any:
    """Two snapshots, found by id and name."""
    rows = [snapshot("before"), snapshot("bedrock", 8, memory=False, reason=LOST, processes=0)]
    stub.extra["GET", "/snapshots"] = {"snapshots": rows, "cursor": None}
    for one in rows:
        for ref in (one["id"], one["name"]):
            stub.extra["GET", f"/snapshots/{ref}"] = one
            stub.extra["PATCH", f"/snapshots/{ref}"] = one | {"name": "other"}
            stub.extra["DELETE", f"/snapshots/{ref}"] = b""
            stub.extra["POST", f"/snapshots/{ref}/restore"] = stub.box("new-one", 3, came_from=came())
    for ref in ("be", "bef", "bed", "nope"):
        stub.extra["GET", f"/snapshots/{ref}"] = nothing("snapshot")
        stub.extra["POST", f"/snapshots/{ref}/restore"] = nothing("snapshot")
    return stub


def came(reason: str | None = None) -> dict[str, object]:
    return {"snapshot": None, "sandbox": "sb_0000000000000001", "memory": reason is None, "reason": reason}


def test_hibernate_says_what_is_kept(cove, stub) -> None:
    path = ("POST", "/sandboxes/brave-otter/hibernate")
    stub.extra[path] = stub.box("brave-otter", kept={"memory": True, "reason": None}, state="hibernated")
    ran = cove("hibernate", "brave-otter")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "Hibernated brave-otter, memory and files. Go on: cove resume brave-otter\n"
    assert stub.seen[-1][2] == {"memory": None}
    stub.extra[path] = stub.box("brave-otter", kept={"memory": False, "reason": LOST}, state="hibernated")
    assert f"note: processes and memory were not kept: {LOST}\n" in cove("hibernate", "brave-otter").err
    assert "note" not in cove("hibernate", "--files-only", "brave-otter").err
    assert stub.seen[-1][2] == {"memory": False}
    assert cove("hibernate", "--json", "kept", "brave-otter").objects == [{"kept": {"memory": False, "reason": LOST}}]
    cove("hibernate", "--need-memory", "brave-otter")
    assert stub.seen[-1][2] == {"memory": True}
    assert cove("hibernate", "--need-memory", "--files-only", "brave-otter").code == 2


def test_resume_says_what_a_hibernation_lost(cove, stub) -> None:
    stub.boxes[0]["kept"] = {"memory": False, "reason": LOST}
    assert cove("resume", "brave").err.splitlines() == [
        "brave-otter runs.",
        f"note: its processes were not kept when it was hibernated: {LOST}",
    ]


def test_a_snapshot_is_taken_and_its_name_printed(cove, stub) -> None:
    stub.extra["POST", "/sandboxes/brave-otter/snapshots"] = snapshot("before")
    ran = cove("snapshot", "brave-otter", "before", "--tag", "run=7")
    assert (ran.code, ran.out) == (0, "before\n")
    assert "3 processes and files, 32M; it stood still for 92ms" in ran.err
    assert "cove restore before" in ran.err
    assert stub.seen[-1][2] == {"name": "before", "tags": {"run": "7"}, "memory": None}
    stub.extra["POST", "/sandboxes/brave-otter/snapshots"] = snapshot("before", memory=False, reason=LOST)
    assert f"note: processes and memory were not kept: {LOST}" in cove("snapshot", "brave-otter").err
    assert cove("snapshot", "--json", "name,memory", "brave-otter").objects == [{"name": "before", "memory": False}]


def test_what_is_called_as_a_verb_stands_behind_dashes(cove, stub) -> None:
    stub.extra["GET", "/snapshots"] = {"snapshots": [], "cursor": None}
    stub.boxes.append(stub.box("ls", 3))
    stub.extra["POST", "/sandboxes/ls/snapshots"] = snapshot("of-ls")
    assert cove("snapshot", "ls").err == "No snapshots. Take one: cove snapshot BOX\n"
    assert cove("snapshot", "--", "ls").out == "of-ls\n"
    assert cove("snapshot", "-q", "--", "ls", "name").out == "of-ls\n"
    ran = cove("snapshot", "-q", "ls")
    assert ran.code == 2
    assert "cove snapshot -- ls" in ran.err
    assert cove("snapshot", "sb_0000000000000009").code == 120
    assert "BOX [NAME]" in cove("snapshot", "--help").out
    assert "--files-only" in cove("snapshot", "--help").out
    assert cove("snapshot", "brave-otter", "a", "b").code == 2


def test_snapshots_are_listed_shown_changed_and_deleted(cove, held) -> None:
    lines = cove("snapshot", "ls").out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "OF", "HOLDS", "SIZE", "DRIVER", "IMAGE", "AGE", "TAGS"]
    assert lines[1].split()[:8] == ["before", "ready", "brave-otter", "3", "processes", "and", "files", "32M"]
    assert "files only" in lines[2]
    assert [one["name"] for one in cove("snapshot", "ls", "--json", "name").objects] == ["before", "bedrock"]
    shown = dict(line.split(None, 1) for line in cove("snapshot", "show", "bed").out.splitlines())
    assert (shown["memory"], shown["reason"], shown["tags.run"]) == ("false", LOST, "7")
    assert shown["disk_bytes"] == f"{2 << 20} (2.0M)"
    cove("snapshot", "set", "before", "--name", "other", "--tag", "a=b", "--untag", "run")
    assert held.seen[-1][2] == {"name": "other", "tags": {"a": "b", "run": None}}
    assert cove("snapshot", "set", "before").code == 2
    ran = cove("snapshot", "rm", "bef", "bedrock")
    assert (ran.code, ran.err) == (0, "Deleted before.\nDeleted bedrock.\n")


def test_a_snapshot_that_is_not_there_is_told_with_what_comes_near(cove, held) -> None:
    ran = cove("snapshot", "show", "be")
    assert (ran.code, ran.err.splitlines()[0]) == (2, 'error: "be" may be any of before, bedrock (usage)')
    held.extra["GET", "/snapshots/befor3"] = nothing("snapshot")
    ran = cove("snapshot", "show", "befor3")
    assert ran.code == 120
    assert ran.err.splitlines() == [
        'error: no snapshot "befor3" (not-found)',
        "hint: did you mean before?  cove snapshot ls",
    ]
    assert cove("restore", "nope").code == 120
    assert cove("restore", "").code == 2


def test_restore_prints_the_name_and_takes_what_a_create_takes(cove, held) -> None:
    ran = cove(
        "restore", "bef", "second", "-e", "A=1", "--memory", "1g", "--life", "2h", "--idle", "never",
        "--idle-action", "hibernate", "--network", "none", "--need-memory",
    )  # fmt: skip
    assert (ran.code, ran.out) == (0, "new-one\n")
    assert "memory and files" in ran.err
    assert held.seen[-1][1].endswith("/snapshots/sn_0000000000000007/restore")
    assert held.seen[-1][2] == {
        "name": "second", "memory": True, "env": {"A": "1"}, "network": {"mode": "none"}, "memory_mib": 1024,
        "timeout_s": 7200.0, "idle_timeout_s": None, "idle_action": "hibernate",
    }  # fmt: skip
    cove("pause", "-")  # it is the last one used
    assert ("POST", "/api/v1/sandboxes/sb_0000000000000003/pause", None) in held.seen


def test_an_image_that_is_gone_is_not_taken_for_the_snapshot(cove, held) -> None:
    held.extra["POST", "/snapshots/before/restore"] = nothing("image python", "image")
    ran = cove("restore", "before")
    assert (ran.code, ran.err.splitlines()[0]) == (120, "error: no image python (not-found)")


def test_fork_prints_a_name_a_line(cove, stub) -> None:
    children = [stub.box(f"brave-otter-{n}", 10 + n, came_from=came()) for n in range(1, 5)]
    stub.extra["POST", "/sandboxes/brave-otter/fork"] = {"sandboxes": children, "memory": True, "reason": None}
    ran = cove("fork", "brave-otter", "4", "--name", "kid")
    assert ran.out.split() == [f"brave-otter-{n}" for n in range(1, 5)]
    assert ran.err.startswith("brave-otter-1, brave-otter-2, brave-otter-3, …: ready in ")
    assert stub.seen[-1][2] == {"name": "kid", "count": 4}
    for one in children:
        one["came_from"] = came(LOST)
    ran = cove("fork", "brave-otter", "4")
    assert f"note: processes and memory were not kept: {LOST}\n" in ran.err
    assert "files only" in ran.err
    assert "note" not in cove("fork", "--files-only", "brave-otter").err
    assert cove("fork", "brave-otter", "--json", "name").objects == [{"name": one["name"]} for one in children]
    for wrong in ("0", "101", "many"):
        assert cove("fork", "brave-otter", wrong).code == 2


def test_rollback_tells_a_missing_snapshot_from_a_missing_sandbox(cove, held) -> None:
    held.extra["POST", "/sandboxes/brave-otter/rollback"] = held.boxes[0]
    ran = cove("rollback", "brave-otter", "before")
    assert (ran.code, ran.out) == (0, "")
    assert "brave-otter is as it was" in ran.err
    assert held.seen[-1][2] == {"snapshot": "before", "memory": None}
    held.extra["POST", "/sandboxes/brave-otter/rollback"] = nothing("snapshot")
    assert 'no snapshot "nope"' in cove("rollback", "brave-otter", "nope").err
    assert 'no sandbox "nobody"' in cove("rollback", "nobody", "before").err


def test_export_and_import_stream_a_file(cove, held, tmp_path: Path, monkeypatch) -> None:
    held.extra["GET", "/snapshots/sn_0000000000000007/export"] = b"packed"
    ran = cove("snapshot", "export", "before")
    assert (ran.code, ran.out) == (0, "before.cove\n")
    assert (tmp_path / "before.cove").read_bytes() == b"packed"
    assert cove("snapshot", "export", "before", "x", "--json").objects == [{"name": "before", "bytes": 6}]
    held.extra["POST", "/snapshots/import"] = snapshot("taken", imported=True)
    ran = cove("snapshot", "import", "before.cove", "--name", "taken")
    assert (ran.code, ran.out) == (0, "taken\n")
    assert "cove restore taken" in ran.err
    assert cove("snapshot", "import", "nowhere.cove").code == 120

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    assert cove("snapshot", "import", "-").code == 2


def test_show_has_all_that_is_known(cove, stub) -> None:
    stub.boxes[0]["came_from"] = came(LOST)
    shown = dict(line.split(None, 1) for line in cove("show", "brave").out.splitlines())
    assert (shown["name"], shown["came_from.reason"], shown["usage.cpu_ms"]) == ("brave-otter", LOST, "1500")
    assert cove("show", "--json", "state", "brave").objects == [{"state": "running"}]


def test_completion_offers_verbs_and_sandboxes(cove, held, monkeypatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "cove snapshot ")
    monkeypatch.setenv("COMP_CWORD", "2")
    from click.shell_completion import BashComplete

    from cove.cli.main import commands

    def offered(line: str, incomplete: str) -> set[str]:
        done = BashComplete(commands(), {}, "cove", "_COVE_COMPLETE")
        return {item.value for item in done.get_completions(line.split()[1:], incomplete)}

    assert {"ls", "rm", "brave-otter"} <= offered("cove snapshot", "")
    assert offered("cove snapshot", "bra") == {"brave-otter"}
    assert offered("cove snapshot show", "be") == {"before", "bedrock"}
    assert offered("cove restore", "bef") == {"before"}
    assert offered("cove rollback brave-otter", "bef") == {"before"}
