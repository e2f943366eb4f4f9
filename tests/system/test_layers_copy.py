"""Copies of writable layers on real file systems: what they hold, what they may write, what is measured."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.engine.layers import BtrfsLayers, LayerStore

pytestmark = pytest.mark.real

MIB = 1024**2


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[BtrfsLayers]:
    """A pool of its own."""
    layers = BtrfsLayers(tmp_path, 1024 * MIB)
    layers.open()
    yield layers
    layers.close()
    shutil.rmtree(tmp_path, ignore_errors=True)


def make(layers: LayerStore, name: str, limit: int) -> Path:
    path = layers.create(name, limit)
    for part in ("u", "w"):
        (path / part).mkdir()
    return path


def write(path: Path, size: int) -> int:
    """Write `size` random bytes. Returns the errno that stopped it, or 0."""
    try:
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_copy_has_the_files_and_lives_apart(btrfs: BtrfsLayers) -> None:
    source = make(btrfs, "a", 100 * MIB)
    (source / "u" / "f").write_text("one")
    (source / "w" / "work").mkdir()
    copy = btrfs.copy("a", "b", 100 * MIB)
    assert (copy / "u" / "f").read_text() == "one"
    assert not (copy / "w").exists()
    (copy / "u" / "f").write_text("two")
    btrfs.remove("a")
    assert (copy / "u" / "f").read_text() == "two"
    assert btrfs.names() == {"b"}


def test_the_limit_of_a_copy_counts_what_it_began_with(btrfs: BtrfsLayers) -> None:
    source = make(btrfs, "a", 100 * MIB)
    assert write(source / "u" / "f", 40 * MIB) == 0
    btrfs.copy("a", "s-1", None)
    btrfs.settle("s-1")
    assert 40 * MIB <= btrfs.used_bytes("s-1") < 42 * MIB
    copy = btrfs.copy("s-1", "b", 60 * MIB)
    assert 40 * MIB <= btrfs.used_bytes("b") < 42 * MIB
    assert write(copy / "u" / "g", 15 * MIB) == 0
    assert write(copy / "u" / "h", 15 * MIB) == errno.EDQUOT
    (copy / "u" / "h").unlink()
    btrfs.resize("b", 90 * MIB)
    assert write(copy / "u" / "h", 25 * MIB) == 0
    btrfs.flush("b")
    assert 80 * MIB <= btrfs.used_bytes("b") < 83 * MIB


def test_deleting_what_it_began_with_makes_room_again(btrfs: BtrfsLayers) -> None:
    """Over many hibernations, each of which makes the files inherited ones."""
    source, name = make(btrfs, "box-0", 100 * MIB), "box-0"
    assert write(source / "u" / "f", 60 * MIB) == 0
    for cycle in range(1, 4):
        btrfs.copy(name, f"s-{cycle}", None)
        btrfs.settle(f"s-{cycle}")
        btrfs.remove(name)
        name = f"box-{cycle}"
        source = btrfs.copy(f"s-{cycle}", name, 100 * MIB)
        btrfs.remove(f"s-{cycle}")
        (source / "u" / "f").unlink()
        btrfs.flush(name)
        btrfs.resize(name, 100 * MIB)
        assert btrfs.used_bytes(name) < 2 * MIB
        assert write(source / "u" / "f", 60 * MIB) == 0
        assert 60 * MIB <= btrfs.used_bytes(name) < 63 * MIB
    assert btrfs.names() == {name}


def test_a_full_layer_can_be_copied_and_comes_back(btrfs: BtrfsLayers) -> None:
    source = make(btrfs, "a", 20 * MIB)
    assert write(source / "u" / "f", 40 * MIB) == errno.EDQUOT
    btrfs.copy("a", "s-1", None)
    copy = btrfs.copy("s-1", "b", 20 * MIB)
    (copy / "u" / "note").write_text("there is a little room")
    assert write(copy / "u" / "g", 4 * MIB) == errno.EDQUOT
    (copy / "u" / "f").unlink()


def test_what_a_crash_left_of_a_flush_goes_at_the_next_start(btrfs: BtrfsLayers, tmp_path: Path) -> None:
    make(btrfs, "a", 20 * MIB)
    btrfs.create("f-a", 20 * MIB)
    btrfs.place_beside("checkpoints")
    assert btrfs.names() == {"a", "f-a"}
    btrfs.close()
    btrfs.open()
    btrfs.place_beside("checkpoints")
    assert btrfs.names() == {"a"}
