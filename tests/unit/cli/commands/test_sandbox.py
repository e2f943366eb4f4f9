# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import io
from pathlib import Path

import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_new_prints_the_name_alone(cove, stub) -> None:
    ran = cove("new", "--name", "mine", "--memory", "1g", "--life", "2h", "--idle", "never", "--metadata", "a=b")
    assert (ran.code, ran.out) == (0, "mine\n")
    assert "cove exec mine" in ran.err
    body = stub.seen[-1][2]
    assert body == {
        "image": "base", "name": "mine", "memory_mib": 1024, "timeout_s": 7200.0, "idle_timeout_s": None,
        "metadata": {"a": "b"},
    }  # fmt: skip


def test_new_here_pins_the_directory(cove, tmp_path: Path) -> None:
    assert cove("new", "--here", "--name", "mine").code == 0
    assert (tmp_path / ".cove.toml").read_text() == 'box = "mine"\n'
    assert cove("pause", "--quiet").err == ""
    assert cove("new", "--here").code == 2


def test_quiet_says_nothing(cove) -> None:
    assert cove("new", "--quiet", "--name", "mine").err == ""


def test_ls_has_a_line_for_each_sandbox(cove, stub) -> None:
    stub.boxes[1] |= {"state": "paused", "expires_at": "2999-01-01T00:00:00Z"}
    lines = cove("ls").out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "ISOLATION", "IMAGE", "CPU", "MEM", "IDLE", "ENDS", "BY"]
    assert lines[1].split()[:6] == ["brave-otter", "running", "runc+user", "base", "2s", "41M/512M"]
    assert lines[1].split()[-2:] == ["never", "local"]
    assert lines[2].split()[1] == "paused"
    assert " in " in lines[2]


def test_ls_prints_no_control_characters_of_a_hostile_name(cove, stub) -> None:
    stub.boxes[0] |= {"name": "a\x1b[2Jb", "created_by": "key:\x07"}
    assert "\x1b" not in cove("ls").out
    assert "\x07" not in cove("ls").out


def test_ls_of_nothing_says_what_to_do_on_stderr(cove, stub) -> None:
    stub.boxes.clear()
    ran = cove("ls")
    assert (ran.out, ran.err) == ("", "No sandboxes. Make one: cove new\n")


def test_ls_json_is_one_line_each_with_the_fields_asked_for(cove) -> None:
    assert cove("ls", "--json", "name,state").objects == [
        {"name": "brave-otter", "state": "running"},
        {"name": "calm-heron", "state": "running"},
    ]
    assert cove("ls", "--json").objects[0]["memory_mib"] == 512


def test_ls_shows_what_a_hibernated_one_takes(cove, stub) -> None:
    stub.boxes[0] |= {"state": "hibernated", "kept_bytes": 9 << 20}
    assert "hibernated" in cove("ls").out
    assert "0 (disk 9.0M)" in cove("ls").out


def test_pause_says_that_memory_is_kept(cove) -> None:
    ran = cove("pause", "brave")
    assert (ran.code, ran.out) == (0, "")
    assert "its memory is kept" in ran.err
    assert "memory is kept" in cove("pause", "--help").out
    assert cove("pause", "--json", "state", "brave").objects == [{"state": "paused"}]
    assert cove("resume", "brave").err == "brave-otter runs.\n"


def test_rm_removes_what_is_named(cove, stub) -> None:
    ran = cove("rm", "brave", "calm")
    assert (ran.code, ran.out, stub.boxes) == (0, "", [])
    assert ran.err == "Removed brave-otter.\nRemoved calm-heron.\n"


def test_rm_of_nothing_or_of_both_is_wrong_usage(cove) -> None:
    assert cove("rm").code == 2
    assert cove("rm", "--all", "brave").code == 2


def test_rm_all_without_a_terminal_names_the_flag(cove, stub) -> None:
    ran = cove("rm", "--all")
    assert (ran.code, len(stub.boxes)) == (2, 2)
    assert "--yes" in ran.err
    assert cove("rm", "--all", "--yes").code == 0
    assert stub.boxes == []


def test_rm_all_asks_on_a_terminal_and_no_means_no(cove, stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert cove("rm", "--all").code == 130
    assert len(stub.boxes) == 2


def test_an_unknown_image_suggests_the_nearest(cove, stub) -> None:
    stub.extra["GET", "/images"] = {"images": [{"name": "python"}, {"name": "base"}]}
    stub.extra["POST", "/sandboxes"] = {
        "status": 404, "code": "not-found", "field": "image", "detail": 'no image "pyhton"', "hint": "cove ls",
    }  # fmt: skip
    ran = cove("new", "--image", "pyhton")
    assert ran.code == 120
    assert ran.err == 'error: no image "pyhton" (not-found)\nhint: did you mean python?  cove image ls\n'


def test_refusals_of_the_server_keep_stdout_empty(cove, stub) -> None:
    stub.problem = {"status": 503, "code": "capacity", "detail": "no room", "hint": "cove ls", "retryable": False}
    stub.problem |= {"status": 409, "code": "quota-exceeded"}
    ran = cove("new", "--json")
    assert (ran.code, ran.out, ran.error["hint"]) == (121, "", "cove ls")
