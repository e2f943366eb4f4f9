"""The file `quiesce`, in a directory in which the sandbox may put anything."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cove.engine.oci import quiet
from cove.model.errors import AgentViolation


def test_it_is_put_and_withdrawn(tmp_path: Path) -> None:
    quiet.ask(tmp_path)
    assert stat.S_ISREG((tmp_path / "quiesce").lstat().st_mode)
    assert quiet.withdraw(tmp_path)
    assert not quiet.withdraw(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_sandbox_put_there_is_replaced_and_never_followed(tmp_path: Path) -> None:
    victim, place = tmp_path / "victim", tmp_path / "s"
    victim.write_text("as it was")
    place.mkdir()
    (place / "quiesce").symlink_to(victim)
    quiet.ask(place)
    assert not (place / "quiesce").is_symlink()
    quiet.withdraw(place)
    os.mkfifo(place / "quiesce")
    quiet.ask(place)
    (place / "quiesce").unlink()
    (place / "quiesce").symlink_to(victim)
    assert quiet.withdraw(place)
    assert victim.read_text() == "as it was"


def test_a_sandbox_that_blocks_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "quiesce" / "deep").mkdir(parents=True)
    with pytest.raises(AgentViolation):
        quiet.ask(tmp_path)
    assert not quiet.withdraw(tmp_path)


def test_its_directory_is_not_followed_either(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "real")
    with pytest.raises(AgentViolation):
        quiet.ask(tmp_path / "s")
