"""What is known of a runtime's state, by its files; and the versions that gVisor tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from cove.engine.drivers.gvisor import MINIMUM, release_of
from cove.engine.oci import runtime

BOX, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """As runc and crun (a directory each) and as runsc (files that begin with the id) leave it."""
    (tmp_path / OTHER).mkdir()
    (tmp_path / BOX).mkdir()
    (tmp_path / BOX / "state.json").write_text("{}")
    for name in (f"{BOX}_sandbox:{BOX}.state", f"{BOX}_sandbox:{BOX}.lock", f"runsc-{BOX}.sock"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_every_box_with_state_is_known_once(state: Path) -> None:
    assert runtime.known(state) == {BOX, OTHER}
    assert runtime.known(state / "none") == set()


def test_only_the_box_that_is_named_is_forgotten(state: Path) -> None:
    for _ in range(2):
        runtime.forget(state, BOX)
    assert runtime.known(state) == {OTHER}
    assert [path.name for path in state.iterdir()] == [OTHER]


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("release-20240729.0", 20240729),
        ("0.0~20240729.0", 20240729),
        ("release-20260101.0-3-gabc", 20260101),
        ("unknown", 0),
        ("1.3.6", 0),
    ],
)
def test_a_release_of_gvisor_is_its_date(version: str, release: int) -> None:
    assert release_of(version) == release
    assert (release >= MINIMUM) is (release != 0)
