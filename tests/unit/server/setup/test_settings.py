from __future__ import annotations

from pathlib import Path

import pytest

from cove.server.config import BadSetting
from cove.server.setup.datadir import is_ours, make_data_dir
from cove.server.setup.packages import read_installed
from cove.server.setup.settings import DATA_DIR, SetupFailed, settings_from


def test_without_variables_the_defaults_hold() -> None:
    settings = settings_from({})
    assert settings.data_dir == DATA_DIR
    assert settings.debian_mirror == ""


def test_variables_are_taken() -> None:
    settings = settings_from({"COVE_DATA_DIR": "/srv/cove", "COVE_DEBIAN_MIRROR": " http://m.example/debian "})
    assert settings.runtimes_dir == Path("/srv/cove/runtimes")
    assert settings.debian_mirror == "http://m.example/debian"


@pytest.mark.parametrize("bad", ["relative", "/", "./x"])
def test_a_data_directory_must_be_absolute_and_not_the_root(bad: str) -> None:
    with pytest.raises((SetupFailed, BadSetting), match=r"data.dir|COVE_DATA_DIR"):
        settings_from({"COVE_DATA_DIR": bad})


def test_a_new_data_directory_is_closed_to_others(tmp_path: Path) -> None:
    make_data_dir(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_directory_with_other_files_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(SetupFailed, match="not Cove's"):
        make_data_dir(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_data_directory_that_a_server_made_is_ours(tmp_path: Path) -> None:
    (tmp_path / "cove.db").touch()
    assert is_ours(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupFailed, match="cannot be made"):
        make_data_dir(tmp_path / "file")


def test_packages_that_setup_installed_are_remembered(tmp_path: Path) -> None:
    assert read_installed(tmp_path) == []
    (tmp_path / "installed-packages").write_text("a\nb\n")
    assert read_installed(tmp_path) == ["a", "b"]
