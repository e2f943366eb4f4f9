# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import os

import pytest


def test_run_prints_the_answer_alone_and_removes_the_sandbox(cove, stub) -> None:
    stub.stream = stub.events(stub.output("stdout", b"42\n"), stub.ended())
    ran = cove("run", "--", "python3", "-c", "print(6*7)")
    assert (ran.code, ran.out) == (0, "42\n")
    assert ran.err == "Removed new-box. Keep one: cove run --keep · API page: cove open · All checks: cove doctor\n"
    assert [box["name"] for box in stub.boxes] == ["brave-otter", "calm-heron"]


def test_run_passes_the_exit_code_and_removes_all_the_same(cove, stub) -> None:
    stub.stream = stub.events(stub.ended(7))
    assert cove("run", "--quiet", "false").code == 7
    assert len(stub.boxes) == 2


def test_run_removes_the_sandbox_when_the_stream_fails(cove, stub) -> None:
    stub.stream = stub.events(("error", {"code": "agent-timeout", "detail": "no answer"}))
    assert cove("run", "false").code == 124
    assert len(stub.boxes) == 2


def test_run_keep_leaves_it_and_says_how_to_go_on(cove, stub) -> None:
    ran = cove("run", "--keep", "--name", "mine", "true")
    assert "cove exec mine" in ran.err
    assert stub.boxes[0]["name"] == "mine"
    assert cove("exec", "-", "true").code == 0


def test_run_quiet_and_json_have_no_talk(cove) -> None:
    assert cove("run", "--quiet", "true").err == ""
    ran = cove("run", "--json", "true")
    assert ran.err == ""
    assert [one["event"] for one in ran.objects] == ["sandbox", "exit"]


def test_run_needs_a_command(cove, stub) -> None:
    assert cove("run").code == 2
    assert cove("run", "--keep").code == 2
    assert stub.seen == []


def test_run_where_only_root_may_start_a_server_says_so(cove, stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.is_down = True
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ran = cove("run", "true")
    assert (ran.code, ran.out) == (123, "")
    assert ran.err.splitlines()[0] == "error: no server on this machine, and only root can start one (unreachable)"
    assert ran.err.splitlines()[1].startswith("hint: sudo cove serve")


def test_run_starts_no_server_for_another_machines_address(cove, stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.is_down = True
    monkeypatch.setenv("COVE_URL", "http://elsewhere:8080")
    monkeypatch.setattr("cove.cli.launch.start_server", lambda _session: pytest.fail("started"))
    assert cove("run", "true").code == 123


def test_run_starts_a_server_when_there_is_none(cove, stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.is_down = True
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("cove.cli.launch.start_server", lambda _session: setattr(stub, "is_down", False))
    ran = cove("run", "true")
    assert ran.code == 0
    assert "Sandbox new-box ready in 2ms." in ran.err


def test_exec_detach_prints_the_id(cove, stub) -> None:
    stub.extra["POST", "/sandboxes/brave-otter/commands"] = {
        "id": "c1", "pid": 4, "command": ["x"], "running": True, "cursor": 0, "oldest_cursor": 0,
    }  # fmt: skip
    ran = cove("exec", "-d", "brave-otter", "x")
    assert (ran.code, ran.out) == (0, "c1\n")
    assert "cove logs -f brave-otter c1" in ran.err


def test_a_malformed_variable_is_wrong_usage(cove) -> None:
    assert cove("exec", "-e", "A", "brave-otter", "x").code == 2


def test_exec_in_a_shell_runs_a_line_of_its_language(cove, stub) -> None:
    shells = "/sandboxes/brave-otter/shells"
    stub.extra["POST", shells] = {"id": "s1", "program": "bash", "queued": 0}
    stub.extra["GET", shells] = {"shells": [{"id": "s1"}, {"id": "s2", "exit": {"exit_code": 0, "why": "exited"}}]}
    stub.extra["POST", f"{shells}/s1/commands"] = {"id": "c9", "command": ["x"], "running": True}
    opened = cove("exec", "--in", "new", "-d", "-w", "/srv", "brave-otter", "pwd; x=1")
    assert (opened.code, opened.out) == (0, "c9\n")
    assert "cove exec --in s1 " in opened.err
    assert cove("exec", "--in", "-", "-d", "brave-otter", "printf", "%s", "a b").out == "c9\n"
    lines = [body["command"] for _, path, body in stub.seen if path.endswith("/s1/commands")]
    assert lines == ["pwd; x=1", "printf %s 'a b'"]
    assert cove("exec", "--in", "s1", "-w", "/srv", "brave-otter", "pwd").code == 2
    stub.extra["GET", shells] = {"shells": []}
    assert cove("exec", "--in", "-", "brave-otter", "pwd").code == 120
