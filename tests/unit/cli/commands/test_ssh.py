"""`cove ssh` and `cove ssh-config`: the line that ssh gets, and the files that are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

SSH = {"listening": True, "host": "0.0.0.0", "port": 2222, "host_key": "ssh-ed25519 AAAA", "missing": ""}  # noqa: S104


class Became(BaseException):
    """What execv was called with."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__()
        self.argv = argv


@pytest.fixture
def server(stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    stub.extra["GET", "/server"] = {"ssh": SSH}
    stub.boxes[:] = [stub.box("otter")]
    return stub


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> None:
    def become(program: str, argv: list[str]) -> None:
        del program
        raise Became(argv)

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "execv", become)


@pytest.mark.usefixtures("server", "became")
@pytest.mark.parametrize(
    ("words", "before", "after"),
    [
        ((), [], []),
        (("make", "-j"), [], ["make", "-j"]),
        (("-L", "1:localhost:2", "-N"), ["-L", "1:localhost:2", "-N"], []),
        (("-tti", "key", "-vL1:localhost:2", "top"), ["-tti", "key", "-vL1:localhost:2"], ["top"]),
        (("-p",), ["-p"], []),
        (("-4", "--", "-x"), ["-4"], ["--", "-x"]),
    ],
)
def test_options_stand_before_the_sandbox_and_a_command_behind(
    cove: Any, tmp_path: Path, words: tuple[str, ...], before: list[str], after: list[str]
) -> None:
    with pytest.raises(Became) as caught:
        cove("ssh", "ott", *words)
    argv = caught.value.argv
    place = next(index for index, word in enumerate(argv) if "@cove-" in word)
    assert argv[place].startswith("sb_"), "a name may be that of another project's sandbox too"
    assert argv[place + 1 :] == after
    told = [word for word in argv[1:place] if word != "-o"]
    assert told[len(told) - len(before) :] == before
    assert {"Port=2222", "HostName=127.0.0.1", "StrictHostKeyChecking=yes"} <= set(told)
    (known,) = (tmp_path / "state" / "cove").glob("known_hosts-*")
    assert known.read_text() == f"{argv[place].partition('@')[2]} ssh-ed25519 AAAA\n"


def test_a_server_without_ssh_says_why(cove: Any, server: Any) -> None:
    server.extra["GET", "/server"] = {"ssh": {**SSH, "listening": False, "missing": "port 2222 is in use"}}
    ran = cove("ssh", "otter")
    assert ran.code == 125
    assert "port 2222 is in use" in ran.err


def test_no_sandbox_of_that_name_is_no_login(cove: Any, server: Any) -> None:
    assert cove("ssh", "badger", "true").code == 120


def test_the_configuration_has_each_sandbox_and_is_included_once(cove: Any, server: Any, tmp_path: Path) -> None:
    printed = cove("ssh-config").out
    assert "Host otter.cove\n  User otter\n" in printed
    assert "Host *.cove\n  HostName 127.0.0.1\n  Port 2222\n" in printed
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host a\n  User b\n")
    for _ in range(2):
        assert cove("ssh-config", "--install").code == 0
    assert (tmp_path / ".ssh" / "config").read_text() == "Include cove_config\nHost a\n  User b\n"
    assert (tmp_path / ".ssh" / "cove_config").read_text() == printed
