# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

from base64 import b64encode

HERE = "/sandboxes/sb_0000000000000001/commands"


def command(id_: str, *, running: bool = False) -> dict[str, object]:
    exit_ = None if running else {"exit_code": 3, "why": "exited", "duration_ms": 1.0}
    return {"id": id_, "pid": 2, "command": ["make", "a b"], "running": running, "exit": exit_, "cursor": 2}


def page(*chunks: tuple[str, bytes], cursor: int, **facts: object) -> dict[str, object]:
    wire = [{"stream": stream, "data": b64encode(data).decode()} for stream, data in chunks]
    return {"chunks": wire, "cursor": cursor, "encoding": "base64", "ended": False, "exit": None, **facts}


def test_the_latest_command_is_meant(cove, stub) -> None:
    stub.extra["GET", HERE] = {"commands": [command("c1"), command("c2")]}
    stub.extra["GET", f"{HERE}/c2/output"] = stub.events(
        stub.output("stdout", b"out\n"), stub.output("stderr", b"err\n"), stub.ended(3)
    )
    ran = cove("logs", "-f", "brave")
    assert (ran.code, ran.out) == (0, "out\n")
    assert "err\n" in ran.err
    assert "cove logs --list brave-otter" in ran.err
    assert ran.err.endswith("It ended with exit code 3.\n")


def test_follow_json_is_events(cove, stub) -> None:
    stub.extra["GET", f"{HERE}/c2"] = command("c2")
    stub.extra["GET", f"{HERE}/c2/output"] = stub.events(stub.output("stdout", b"x"), stub.ended(3))
    ran = cove("logs", "--json", "event,data,exit", "-f", "brave", "c2")
    assert ran.objects == [{"event": "stdout", "data": "x"}, {"event": "exit", "exit": 3}]
    assert ran.err == ""


def test_without_a_background_command_it_says_how_to_start_one(cove, stub) -> None:
    stub.extra["GET", HERE] = {"commands": []}
    ran = cove("logs", "brave")
    assert ran.code == 120
    assert "hint: cove exec --detach brave-otter -- COMMAND" in ran.err


def test_list_shows_each_command_as_one_would_type_it(cove, stub) -> None:
    stub.extra["GET", HERE] = {"commands": [command("c1"), command("c2", running=True)]}
    lines = cove("logs", "--list", "brave").out.splitlines()
    assert lines[1].split() == ["c1", "exit", "3", "2B", "make", "'a", "b'"]
    assert lines[2].split()[:2] == ["c2", "running"]
    assert [one["id"] for one in cove("logs", "--list", "brave", "--json").objects] == ["c1", "c2"]
