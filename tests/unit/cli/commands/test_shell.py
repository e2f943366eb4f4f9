# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

from typing import Any

import pytest

from cove.cli import interactive
from cove.sdk.errors import Unreachable
from cove.sdk.results import Exit

HERE = "/sandboxes/sb_0000000000000001/terminals"
NEW = "/sandboxes/sb_0000000000000063/terminals"


def terminal(id_: str, *, running: bool = True, at: str = "2026-01-01T00:00:00.000Z") -> dict[str, Any]:
    exit_ = None if running else {"exit_code": 3, "why": "exited", "duration_ms": 1.0}
    return {
        "id": id_, "pid": 2, "command": ["bash", "-l"], "running": running, "exit": exit_, "cursor": 2048,
        "oldest_cursor": 1000, "cols": 80, "rows": 24, "started_at": at,
    }  # fmt: skip


class Sitting:
    """Stands where a person sits: notes at which terminal, and ends as the test says."""

    end: Any = Exit(7)
    is_mid_line = False
    sat: list[tuple[str, int, int]]

    def __init__(self, one: Any, *, replayed: int = 0) -> None:
        type(self).sat.append((one.id, one.cursor, replayed))
        self.terminal = one

    def run(self) -> Exit | None:
        if isinstance(self.end, BaseException):
            raise self.end
        self.terminal._reader.exit = self.end
        return self.end  # type: ignore[no-any-return]


@pytest.fixture
def sitting(monkeypatch: pytest.MonkeyPatch) -> type[Sitting]:
    made: type[Sitting] = type("ThisSitting", (Sitting,), {"sat": []})
    monkeypatch.setattr(interactive, "Interaction", made)
    monkeypatch.setattr(interactive, "is_terminal", lambda: True)
    monkeypatch.setattr(interactive, "window_size", lambda: (80, 24))
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.delenv("COLORTERM", raising=False)
    return made


@pytest.fixture
def opening(stub) -> Any:
    stub.extra["POST", HERE] = terminal("t1")
    stub.extra["DELETE", f"{HERE}/t1"] = b""
    return stub


def bodies(stub) -> list[Any]:
    return [body for method, path, body in stub.seen if (method, path) == ("POST", f"/api/v1{HERE}")]


def deleted(stub) -> list[str]:
    return [path.removeprefix("/api/v1/sandboxes/") for method, path, _ in stub.seen if method == "DELETE"]


def test_a_shell_has_our_size_and_kind_of_terminal_and_gives_its_exit_code(cove, opening, sitting) -> None:
    ran = cove("shell", "brave")
    assert (ran.code, ran.out, ran.err) == (7, "", "")
    assert bodies(opening) == [{"cols": 80, "rows": 24, "env": {"TERM": "xterm-kitty"}}]
    assert sitting.sat == [("t1", 0, 2048)]
    assert deleted(opening) == ["sb_0000000000000001/terminals/t1"]


@pytest.mark.parametrize("words", [["--", "vim", "-x"], ["vim", "-x"]])
def test_a_command_is_passed_as_it_is(cove, opening, sitting, words: list[str]) -> None:
    assert cove("shell", "-u", "me", "-w", "/srv", "-e", "TERM=dumb", "brave", *words).code == 7
    body = {"command": ["vim", "-x"], "env": {"TERM": "dumb"}, "cwd": "/srv", "user": "me", "cols": 80, "rows": 24}
    assert bodies(opening) == [body]
    assert len(sitting.sat) == 1


@pytest.mark.parametrize("is_mid_line", [True, False])
def test_a_note_stands_on_a_line_of_its_own(cove, opening, sitting, is_mid_line: bool) -> None:  # noqa: FBT001
    sitting.end, sitting.is_mid_line = Exit(130, why="killed", signal=2), is_mid_line
    ran = cove("shell", "brave")
    assert ran.code == 130
    assert ran.err == "\n" * is_mid_line + "note: it was ended by signal 2\n"


def test_detached_it_stays_and_one_is_told_how_to_come_back(cove, opening, sitting) -> None:
    sitting.end = None
    ran = cove("shell", "brave")
    assert ran.code == 0
    assert "cove shell brave-otter --attach t1" in ran.err
    assert deleted(opening) == []


def test_a_server_that_stays_away_leaves_the_way_back(cove, opening, sitting) -> None:
    sitting.end = Unreachable("no server answers")
    ran = cove("shell", "brave")
    assert ran.code == 123
    assert "hint: the terminal goes on; come back to it: cove shell brave-otter --attach t1" in ran.err


def test_one_comes_back_to_the_oldest_that_is_kept(cove, stub, sitting) -> None:
    stub.extra["GET", f"{HERE}/t2"] = terminal("t2")
    stub.extra["DELETE", f"{HERE}/t2"] = b""
    assert cove("shell", "brave", "--attach", "t2").code == 7
    assert sitting.sat == [("t2", 1000, 1048)]


def test_the_latest_is_meant_by_a_dash(cove, stub, sitting) -> None:
    stub.extra["GET", HERE] = {
        "terminals": [terminal("t2", at="2026-01-02T00:00:00.000Z"), terminal("t1", at="2026-01-01T00:00:00.000Z")]
    }
    stub.extra["GET", f"{HERE}/t2"] = terminal("t2")
    stub.extra["DELETE", f"{HERE}/t2"] = b""
    assert cove("shell", "-a", "-", "brave").code == 7
    stub.extra["GET", HERE] = {"terminals": []}
    ran = cove("shell", "-a", "-", "brave")
    assert (ran.code, sitting.sat) == (120, [("t2", 1000, 1048)])
    assert "no terminal in brave-otter" in ran.err


@pytest.mark.parametrize("words", [[], ["--", "vim"], ["--image", "python"]])
def test_without_a_sandbox_there_is_a_new_one_for_as_long(cove, stub, sitting, words: list[str]) -> None:
    stub.extra["POST", NEW] = terminal("t1")
    stub.extra["DELETE", f"{NEW}/t1"] = b""
    ran = cove("shell", *words)
    assert ran.code == 7
    assert "Removed new-box." in ran.err
    assert [one["name"] for one in stub.boxes] == ["brave-otter", "calm-heron"]
    (created,) = [body for method, path, body in stub.seen if (method, path) == ("POST", "/api/v1/sandboxes")]
    assert created["image"] == (words[1] if "--image" in words else "base")


def test_a_new_one_that_was_detached_from_stays(cove, stub, sitting) -> None:
    stub.extra["POST", NEW] = terminal("t1")
    sitting.end = None
    ran = cove("shell")
    assert ran.code == 0
    assert "Its sandbox new-box stays." in ran.err
    assert stub.boxes[0]["name"] == "new-box"


def test_the_sandbox_of_the_directory_is_meant(cove, opening, sitting, tmp_path) -> None:
    (tmp_path / ".cove.toml").write_text('box = "brave-otter"\n')
    assert cove("shell").code == 7
    assert cove("shell", "--", "vim").code == 7
    assert [body.get("command") for body in bodies(opening)] == [None, ["vim"]]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--json", "brave"], "--list only"),
        (["--attach", "t1", "brave", "vim"], "nothing to start"),
        (["--attach", "t1", "-w", "/", "brave"], "nothing to start"),
        (["--image", "base", "brave"], "for a new sandbox"),
        (["-e", "A", "brave"], "NAME=VALUE"),
        ([""], "names no sandbox"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(cove, stub, sitting, argv: list[str], told: str) -> None:
    ran = cove("shell", *argv)
    assert ran.code == 2
    assert told in ran.err
    assert [method for method, _, _ in stub.seen if method == "POST"] == []
    assert sitting.sat == []


def test_without_a_terminal_exec_is_named(cove, stub) -> None:
    ran = cove("shell", "brave", "--", "ls", "a b")
    assert ran.code == 2
    assert "hint: cove exec brave -- ls 'a b'" in ran.err
    assert "hint: cove run -- COMMAND" in cove("shell").err
    assert stub.seen == []


def test_list_shows_each_terminal(cove, stub) -> None:
    stub.extra["GET", HERE] = {"terminals": [terminal("t1"), terminal("t2", running=False)]}
    lines = cove("shell", "--list", "brave").out.splitlines()
    assert lines[1].split() == ["t1", "running", "80x24", "2.0K", "bash", "-l"]
    assert lines[2].split()[:3] == ["t2", "exit", "3"]
    assert [one["id"] for one in cove("shell", "-l", "brave", "--json", "id").objects] == ["t1", "t2"]
    stub.extra["GET", HERE] = {"terminals": []}
    assert cove("shell", "-l", "brave").err == "No terminals.\n"
