"""Copies of writable layers on real file systems: what they hold, what they may write, what is measured."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cove.engine import kernel
from cove.engine.layers import BtrfsLayers, LayerStore, LoopExt4Layers, TmpfsLayers
from cove.model.errors import BadRequest, CapacityExceeded, Unsupported

pytestmark = pytest.mark.real

MIB = 1024**2


def forget(home: Path) -> None:
    """No mount and no file is left, whatever happened: another session would stumble over it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[1].startswith(f"{home}/"):
            kernel.umount(line.split()[1], kernel.MNT_DETACH)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[BtrfsLayers]:
    """A pool of its own."""
    layers = BtrfsLayers(tmp_path, 1024 * MIB)
    layers.open()
    yield layers
    layers.close()
    forget(tmp_path)


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
    btrfs.measure("s-1")
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
        btrfs.remove(name)
        name = f"box-{cycle}"
        source = btrfs.copy(f"s-{cycle}", name, 100 * MIB)
        assert 60 * MIB <= btrfs.used_bytes(name) < 63 * MIB
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


KINDS = ("btrfs", "ext4", "tmpfs")


@pytest.fixture(params=KINDS)
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LayerStore]:
    """Each kind of layers."""
    makers: dict[str, Callable[[], LayerStore]] = {
        "btrfs": lambda: BtrfsLayers(tmp_path, 1024 * MIB),
        "ext4": lambda: LoopExt4Layers(tmp_path),
        "tmpfs": lambda: TmpfsLayers(tmp_path),
    }
    store = makers[request.param]()
    store.open()
    yield store
    store.close()
    forget(tmp_path)


def fill_with_traps(tree: Path) -> None:
    """What a layer may have: overlay's marks, holes, links, pipes, sockets, odd names, modes, owners and times."""
    (tree / "etc").mkdir(mode=0o751)
    (tree / "etc" / "file").write_text("text")
    os.link(tree / "etc" / "file", tree / "hard")
    (tree / "etc" / "up").symlink_to("../../../../etc/passwd")
    (tree / "abs").symlink_to("/etc")
    os.mknod(tree / "gone", 0o020000, 0)
    os.mkfifo(tree / "pipe", 0o640)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tree / "sock"))
    (tree / "opaque").mkdir()
    os.setxattr(tree / "opaque", "trusted.overlay.opaque", b"y")
    with (tree / "holes").open("wb") as file:
        file.seek(40 * 1024 * MIB)
        file.write(b"end")
        file.truncate(50 * 1024 * MIB)
    (tree / os.fsdecode(b"\xff\xfe\n")).write_bytes(bytes(range(256)))
    (tree / ("n" * 255)).touch()
    os.setxattr(tree / "hard", "user.note", b"\xff\0binary")
    os.chown(tree / "etc", 1000, 65534)
    (tree / "hard").chmod(0o4755)
    os.utime(tree / "etc", ns=(5, 1234567890123456789))
    tree.chmod(0o2775)


def described(tree: Path) -> dict[bytes, tuple[object, ...]]:
    """All that is to be kept of a tree."""
    top = os.fsencode(tree)
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        for path in (folder, *(b"/".join((folder, name)) for name in (*folders, *files))):
            facts = os.lstat(path)
            kind = stat.S_IFMT(facts.st_mode)
            content: object = Path(os.fsdecode(path)).readlink() if kind == stat.S_IFLNK else None
            if kind == stat.S_IFREG and facts.st_size < MIB:
                content = Path(os.fsdecode(path)).read_bytes()
            names = sorted(n for n in os.listxattr(path, follow_symlinks=False) if not n.startswith("security."))
            attributes = [(n, os.getxattr(path, n, follow_symlinks=False)) for n in names]
            links = facts.st_nlink if kind == stat.S_IFREG else 0
            size = facts.st_size if kind == stat.S_IFREG else 0
            found[path[len(top) :]] = (
                *(facts.st_mode, facts.st_uid, facts.st_gid, facts.st_mtime_ns, facts.st_rdev),
                *(links, size, content, attributes),
            )
    return found


def test_every_kind_keeps_all_that_a_layer_has(layers: LayerStore) -> None:
    source = make(layers, "a", 200 * MIB)
    fill_with_traps(source / "u")
    (source / "w" / "work").mkdir()
    before = described(source / "u")
    layers.copy("a", "s-1", None)
    layers.settle("s-1")
    layers.remove("a")
    assert layers.names() == {"s-1"}
    assert 0 < layers.used_bytes("s-1") < 100 * MIB
    copy = layers.copy("s-1", "b", 250 * MIB)
    assert described(copy / "u") == before
    assert not (copy / "w").exists()
    for name in ("b", "s-1"):
        layers.remove(name)
    assert layers.names() == set()


def test_kept_copies_outlive_the_server_and_its_mounts(layers: LayerStore) -> None:
    source = make(layers, "a", 100 * MIB)
    (source / "u" / "f").write_text("kept")
    layers.copy("a", "s-1", None)
    layers.settle("s-1")
    layers.remove("a")
    layers.close()
    layers.open()
    assert layers.names() == {"s-1"}
    layers.copy("s-1", "s-2", None)
    assert (layers.copy("s-2", "b", 50 * MIB) / "u" / "f").read_text() == "kept"
    assert layers.names() == {"s-1", "s-2", "b"}


def test_an_archive_makes_the_same_layer_on_any_kind(layers: LayerStore, tmp_path: Path) -> None:
    source = make(layers, "a", 200 * MIB)
    fill_with_traps(source / "u")
    before = described(source / "u")
    layers.copy("a", "s-1", None)
    archive = tmp_path / "archive"
    facts = layers.keep_archive("s-1", archive)
    assert archive.stat().st_size == facts.size < MIB
    layers.fetch_archive("s-2", archive, 200 * MIB, digest=f"sha256:{facts.digest}")
    assert described(layers.copy("s-2", "b", 200 * MIB) / "u") == before
    with pytest.raises(BadRequest, match="not what their digest says"):
        layers.fetch_archive("s-3", archive, 200 * MIB, digest="sha256:0")
    assert layers.names() == {"a", "b", "s-1", "s-2"}


def test_an_archive_with_more_than_the_limit_is_refused_and_leaves_nothing(layers: LayerStore, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        top = tarfile.TarInfo(".")
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        member = tarfile.TarInfo("./f")
        member.size = 80 * MIB
        tar.addfile(member, io.BytesIO(os.urandom(member.size)))
    with pytest.raises(CapacityExceeded):
        layers.fetch_archive("s-1", archive, 40 * MIB)
    assert layers.names() == set()


def test_a_copy_on_ext4_gets_the_limit_that_it_is_to_have(tmp_path: Path) -> None:
    layers = LoopExt4Layers(tmp_path)
    layers.open()
    try:
        source = make(layers, "a", 100 * MIB)
        assert write(source / "u" / "f", 30 * MIB) == 0
        for name, limit, room in (("more", 200 * MIB, 140 * MIB), ("less", 70 * MIB, 25 * MIB)):
            copy = layers.copy("a", name, limit)
            assert (copy / "u" / "f").stat().st_size == 30 * MIB
            assert write(copy / "u" / "g", limit - 20 * MIB) == errno.ENOSPC
            assert write(copy / "u" / "g", room) == 0
        with pytest.raises(CapacityExceeded, match="more than this disk limit"):
            layers.copy("a", "least", 20 * MIB)
        assert layers.names() == {"a", "more", "less"}
    finally:
        layers.close()
        forget(tmp_path)


def test_a_tree_that_no_archive_can_hold_is_refused_in_words(tmp_path: Path) -> None:
    layers = TmpfsLayers(tmp_path)
    layers.open()
    try:
        source = make(layers, "a", 100 * MIB)
        at = os.open(source / "u", os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("deep", dir_fd=at)
            below = os.open("deep", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)
        with pytest.raises(
            Unsupported, match="the sandbox's files cannot be kept: the sandbox has a path of more than"
        ):
            layers.copy("a", "s-1", None)
        assert layers.names() == {"a"}
    finally:
        layers.close()
        forget(tmp_path)
