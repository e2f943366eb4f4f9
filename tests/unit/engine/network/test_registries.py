"""Registries are asked of programs: here of stand-ins that a test puts first in the PATH."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from cove.engine.network import registries
from cove.engine.network.registries import ask_registries
from cove.model.policy import rule_words


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs that is the whole PATH; no Python of ours has a pip."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python-without-pip"))
    for name in ("npm", "apt-get", "python3"):
        program(tmp_path, name, "exit 1")
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def asked() -> dict[str, list[str]]:
    return {name: [rule_words(rule) for rule in rules] for name, rules in (await ask_registries()).items()}


async def test_each_clients_answer_becomes_rules_for_its_hosts(programs: Path) -> None:
    program(programs, "python3", """echo '["https://index.example/simple", "https://files.index.example"]'""")
    program(programs, "npm", "echo http://npm.example:4873/")
    program(programs, "apt-get", "printf 'http://apt.example/debian/\\nhttp://apt.example/security/\\n'")
    assert await asked() == {
        "pip": ["allow index.example:443/tcp", "allow files.index.example:443/tcp"],
        "npm": ["allow npm.example:4873/tcp"],
        "apt": ["allow apt.example:80/tcp"],
    }


async def test_logins_files_and_what_is_no_host_are_left_out(programs: Path) -> None:
    program(programs, "npm", "echo https://user:secret@npm.example/")
    program(
        programs,
        "apt-get",
        "printf 'file:///srv/mirror\\ncdrom:x\\nhttp://*/x\\nhttp://a..b/\\nhttp://0x7f.1/\\nhttps://203.0.114.7/\\nhttp://[::1]/\\n'",
    )
    found = await asked()
    assert found["npm"] == ["allow npm.example:443/tcp"]
    assert found["apt"] == ["allow 203.0.114.7/32:443/tcp"]


async def test_a_client_that_fails_or_is_not_there_has_none(programs: Path) -> None:
    program(programs, "npm", "echo https://npm.example/; exit 1")
    program(programs, "python3", "echo no json")
    (programs / "apt-get").unlink()
    program(programs, "apt-get", "head -c 1000000 /dev/zero")
    assert await asked() == {"pip": [], "npm": [], "apt": []}


async def test_a_client_that_hangs_is_ended(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "ANSWER_S", 0.2)
    program(programs, "npm", f"echo $$ > {programs}/pid; exec sleep 100")
    async with asyncio.timeout(60):
        assert (await asked())["npm"] == []
    pid = (programs / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()
