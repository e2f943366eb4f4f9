from __future__ import annotations

import os
from pathlib import Path

import pytest

from cove.model.credentials import Secret
from cove.model.errors import EngineFailure
from cove.server.secretsfile import open_secrets


def test_the_first_start_makes_a_key_for_this_user_alone(tmp_path: Path) -> None:
    ours = open_secrets(tmp_path)
    path = tmp_path / "secrets.key"
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["secrets.key"]
    sealed = ours.seal(Secret("x"), "row")
    assert open_secrets(tmp_path).open(sealed, "row").reveal() == "x"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_a_file_that_others_may_read_stops_the_start(tmp_path: Path, mode: int) -> None:
    open_secrets(tmp_path)
    (tmp_path / "secrets.key").chmod(mode)
    with pytest.raises(EngineFailure, match=rf"secrets.key has the mode 0{mode:o}.*chmod 600.*rekey"):
        open_secrets(tmp_path)


def test_a_file_of_somebody_else_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_secrets(tmp_path)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(EngineFailure, match=rf"belongs to the user {uid}"):
        open_secrets(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"junk", b"abcd1234 AAAA\n", b"\xff\xfe", b"abcd1234 " + b"A" * 43])
def test_a_damaged_file_stops_the_start_and_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secrets.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(EngineFailure, match="is damaged"):
        open_secrets(tmp_path)
    assert path.read_bytes() == content


def test_links_and_what_is_no_file_are_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    open_secrets(other)
    path = tmp_path / "secrets.key"
    path.symlink_to(other / "secrets.key")
    with pytest.raises(EngineFailure, match="cannot be read"):
        open_secrets(tmp_path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(EngineFailure, match="is no file"):
        open_secrets(tmp_path)


def test_a_rotation_is_in_the_file_before_it_is_used(tmp_path: Path) -> None:
    ours = open_secrets(tmp_path)
    old = ours.seal(Secret("x"), "row")
    ours.begin_rotation()
    new = ours.seal(Secret("y"), "row")
    after_a_crash = open_secrets(tmp_path)
    assert after_a_crash.open(old, "row").reveal() == "x"
    assert after_a_crash.open(new, "row").reveal() == "y"
    ours.end_rotation()
    assert len((tmp_path / "secrets.key").read_text().splitlines()) == 1
    with pytest.raises(EngineFailure):
        open_secrets(tmp_path).open(old, "row")
    assert (tmp_path / "secrets.key").stat().st_mode & 0o7777 == 0o600
