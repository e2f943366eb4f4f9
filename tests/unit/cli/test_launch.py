# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cove.cli import launch


@pytest.fixture
def machine(stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine without a server, as root; `programs` are what was started, `ends` the server's exit code."""
    stub.is_down = True
    stub.extra["GET", "/health"] = {"status": "ok"}
    facts = SimpleNamespace(programs=[], ends=None, setup_code=0, data_dir=tmp_path / "data", says=b"")
    monkeypatch.setenv("COVE_DATA_DIR", str(facts.data_dir))
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def start(argv: list[str], **options: Any) -> SimpleNamespace:
        facts.programs.append(argv[-1])
        options["stdout"].write(facts.says)
        stub.is_down = facts.ends is not None
        return SimpleNamespace(poll=lambda: facts.ends)

    def run(argv: list[str], **_options: Any) -> SimpleNamespace:
        facts.programs.append(argv[3])
        return SimpleNamespace(returncode=facts.setup_code)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(subprocess, "run", run)
    return facts


def test_a_bare_machine_is_set_up_first(cove, machine) -> None:
    ran = cove("run", "true")
    assert ran.code == 0
    assert machine.programs == ["setup", "serve"]
    assert f"starting one (data in {machine.data_dir})" in ran.err


def test_a_machine_that_is_set_up_only_gets_its_server(cove, machine) -> None:
    (machine.data_dir / "images" / "base" / "current").mkdir(parents=True)
    (machine.data_dir / "runtimes").mkdir()
    assert cove("new", "--quiet", "--name", "mine").out == "mine\n"
    assert machine.programs == ["serve"]


def test_a_setup_that_fails_is_told_and_nothing_is_started(cove, machine) -> None:
    machine.setup_code = 125
    ran = cove("run", "true")
    assert (ran.code, ran.out, machine.programs) == (125, "", ["setup"])
    assert "hint: cove doctor" in ran.err


def test_a_server_that_ends_at_once_shows_the_last_error_of_its_log(cove, machine) -> None:
    machine.ends = 2
    machine.says = b"ts=1 msg=starting\nerror: port 8080 is taken\n"
    ran = cove("run", "--json", "true")
    assert (ran.code, ran.out) == (125, "")
    assert ran.error["message"] == "the server ended at its start: port 8080 is taken"
    assert ran.error["hint"] == f"cat {machine.data_dir / launch.LOG}"


def test_an_older_log_is_not_mistaken_for_this_starts(cove, machine) -> None:
    machine.data_dir.mkdir()
    (machine.data_dir / launch.LOG).write_text("error: something old\n")
    machine.ends = 2
    assert "it said nothing" in cove("run", "true").err


def test_ls_starts_nothing(cove, machine) -> None:
    assert cove("ls").code == 123
    assert machine.programs == []
