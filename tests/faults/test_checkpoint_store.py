"""Checkpoints on real file systems: exported and imported, hostile files, killed writers, full disks, damage."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cove.engine import kernel
from cove.engine.checkpoints.manifest import KEY_FILE, ensure_key
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts
from cove.engine.checkpoints.shelf import SubvolumeShelf
from cove.engine.checkpoints.store import CheckpointStore
from cove.engine.checkpoints.transfer import FOREIGN
from cove.engine.layers import BtrfsLayers
from cove.model.errors import BadRequest, CapacityExceeded, CoveError, EngineFailure, NotFound, TooLarge, Unsupported
from cove.model.ids import new_core_id
from cove.model.sandbox import Limits
from tests_support import SOAK

pytestmark = pytest.mark.real

MIB = 1024**2
ABOUT = b'{"name": "warm"}'
CONTENT = b"the memory of a process" * 4096


def forget(home: Path) -> None:
    """No mount and no file is left, whatever happened: another session would stumble over it."""
    with contextlib.suppress(OSError):
        kernel.umount(home / "btrfs", kernel.MNT_DETACH)
    shutil.rmtree(home, ignore_errors=True)


class Place:
    """A pool and a store in it."""

    def __init__(self, home: Path, pool_bytes: int = 512 * MIB) -> None:
        self.home = home
        self.layers = BtrfsLayers(home, pool_bytes)
        self.layers.open()
        beside = self.layers.place_beside("checkpoints")
        assert beside is not None
        self.shelf = SubvolumeShelf(beside)
        self.shelf.open()
        self.store = CheckpointStore(self.shelf, self.layers, ensure_key(home), self.layers.space)
        self.store.keep_free_bytes = 0

    def close(self) -> None:
        self.store.close()
        self.layers.close()
        forget(self.home)

    def is_empty(self) -> bool:
        return self.layers.names() == set() and self.shelf.names() == set()

    async def make(self, checkpoint_id: str, *, has_memory: bool = True) -> Checkpoint:
        draft = await self.store.begin(checkpoint_id)
        tree = self.layers.create("a", 100 * MIB) / "u"
        tree.mkdir()
        (tree / "file").write_text("kept")
        (tree / "link").symlink_to("/etc/passwd")
        os.mknod(tree / "gone", 0o020000, 0)
        self.layers.copy("a", draft.layer, None)
        self.layers.remove("a")
        if has_memory:
            (draft.memory / "pages-1.img").write_bytes(CONTENT)
            (draft.memory.parent / "agent").write_bytes(b"a program")
        return await self.store.seal(draft, facts(has_memory=has_memory))


def facts(*, has_memory: bool = True) -> CheckpointFacts:
    return CheckpointFacts(
        driver="runc",
        has_memory=has_memory,
        image="base",
        image_digest="sha256:" + "0" * 64,
        limits=Limits(cpus=1.0, memory_bytes=128 * MIB, disk_bytes=100 * MIB, pids=64),
        hostname="box-1",
        agent_build="b252dfebbfea",
        engine={"criu": "4.2.1"} if has_memory else {},
        env={"TOKEN": "hush"},
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


async def pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def exported(place: Place, checkpoint_id: str) -> bytes:
    return b"".join([piece async for piece in place.store.export(checkpoint_id, ABOUT)])


def packed(members: list[tuple[str, bytes]]) -> bytes:
    """A file as the export writes it, with whatever somebody puts into it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return subprocess.run(["zstd", "-q", "-c"], input=buffer.getvalue(), capture_output=True, check=True).stdout


def unpacked(data: bytes) -> list[tuple[str, bytes]]:
    plain = subprocess.run(["zstd", "-dqc"], input=data, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


async def test_a_snapshot_comes_back_from_its_file_with_everything(place: Place) -> None:
    one, two = new_core_id(), new_core_id()
    await place.make(one)
    data = await exported(place, one)
    assert len(data) < len(CONTENT)
    await place.store.remove(one)
    assert place.is_empty()
    seen: list[bytes] = []
    made, about = await place.store.import_(pieces(data), two, accept=lambda _, about: seen.append(about))
    assert about == ABOUT
    assert seen == [ABOUT]
    assert made == await place.store.get(two)
    assert made.facts.has_memory
    assert made.facts.env == {"TOKEN": "hush"}
    assert (made.memory / "pages-1.img").read_bytes() == CONTENT
    assert (made.memory.parent / "agent").read_bytes() == b"a program"
    tree = place.layers.copy(made.layer, "b", 100 * MIB) / "u"
    assert (tree / "file").read_text() == "kept"
    assert (tree / "link").readlink() == Path("/etc/passwd")
    assert (tree / "gone").lstat().st_rdev == 0
    assert place.shelf.names() == {two}


async def test_memory_of_another_server_is_left_out_unless_it_is_let_in(place: Place, tmp_path: Path) -> None:
    one, two, three = new_core_id(), new_core_id(), new_core_id()
    await place.make(one)
    data = await exported(place, one)
    (tmp_path / KEY_FILE).unlink()
    place.store.key = ensure_key(tmp_path)
    made, _ = await place.store.import_(pieces(data), two)
    assert (made.facts.has_memory, made.facts.why_no_memory) == (False, FOREIGN)
    assert list(made.memory.iterdir()) == []
    assert not (made.memory.parent / "agent").exists()
    assert (place.layers.copy(made.layer, "b", 100 * MIB) / "u" / "file").read_text() == "kept"
    place.store.lets_memory_in = True
    made, _ = await place.store.import_(pieces(data), three)
    assert made.facts.has_memory
    assert (made.memory / "pages-1.img").read_bytes() == CONTENT


async def refused(place: Place, data: bytes, error: type[CoveError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        await place.store.import_(pieces(data), new_core_id())
    assert raised.value.field == "file" or error is CapacityExceeded
    assert place.layers.names() == {name for name in place.layers.names() if name.startswith("s-")}
    assert len(place.shelf.names()) == 1


async def test_what_is_no_export_or_a_damaged_one_is_refused_and_leaves_nothing(place: Place) -> None:
    one = new_core_id()
    await place.make(one)
    whole = await exported(place, one)
    members = unpacked(whole)
    names = [name for name, _ in members]
    assert names == ["cove-snapshot.json", "agent", "memory/pages-1.img", "layer.tar"]
    head = json.loads(members[0][1])

    def changed(**changes: object) -> bytes:
        manifest = {**head["manifest"], **changes}
        return packed([("cove-snapshot.json", json.dumps({**head, "manifest": manifest}).encode()), *members[1:]])

    place.store.lets_memory_in = True
    cases: list[tuple[bytes, type[CoveError], str]] = [
        (b"", BadRequest, "no exported snapshot"),
        (b"hello" * 1000, BadRequest, "no exported snapshot, or damaged"),
        (whole[: len(whole) // 2], BadRequest, "does not unpack|cut off"),
        (packed(members[1:]), BadRequest, "no exported snapshot"),
        (packed([("cove-snapshot.json", b"{}")]), BadRequest, "manifest is damaged"),
        (packed([("cove-snapshot.json", b"[" * 100_000)]), BadRequest, "manifest is damaged"),
        (packed(members[:-1]), BadRequest, "missing"),
        (packed([*members, members[-1]]), BadRequest, "not what its manifest says"),
        (packed([*members[:2], ("memory/pages-1.img", CONTENT[:-1] + b"X"), members[3]]), BadRequest, "digests say"),
        (packed([*members[:3], ("layer.tar", members[3][1][:-1] + b"X")]), BadRequest, "not what their digest says"),
        (packed([*members[:2], ("memory/pages-1.img", CONTENT + b"X"), members[3]]), BadRequest, "manifest says"),
        (changed(format=2), Unsupported, "format is 2, this server reads 1"),
        (changed(machine="riscv64"), Unsupported, "riscv64"),
        (changed(files={"../../etc/passwd": [1, "0"]}), BadRequest, "names a part"),
        (changed(files={"manifest.json": [1, "0"]}), BadRequest, "names a part"),
        (changed(files={"memory/x": [-1, "0"]}), BadRequest, "names a part"),
        (changed(files={"memory/x": [2**39, "0"]}), CapacityExceeded, "too little free disk"),
        (changed(facts={**head["manifest"]["facts"], "hostname": "a\nb"}), BadRequest, "no snapshot can be"),
        (changed(facts={**head["manifest"]["facts"], "image_digest": "../x y"}), BadRequest, "no snapshot can be"),
        (changed(about="!"), BadRequest, "damaged"),
        (changed(about="A" * 100_000), TooLarge, "64 KiB"),
    ]
    for data, error, words in cases:
        await refused(place, data, error, words)
    assert (await place.store.get(one)).id == one


async def test_what_the_core_refuses_leaves_nothing(place: Place) -> None:
    one = new_core_id()
    await place.make(one)
    data = await exported(place, one)
    await place.store.remove(one)

    def refuse(_: CheckpointFacts, __: bytes) -> None:
        raise Unsupported("the image is not here", field="file")

    with pytest.raises(Unsupported, match="not here"):
        await place.store.import_(pieces(data), new_core_id(), accept=refuse)
    assert place.is_empty()


async def test_an_export_that_nobody_reads_to_its_end_leaves_nothing(place: Place) -> None:
    one = new_core_id()
    await place.make(one)
    stream = place.store.export(one, ABOUT)
    assert await anext(stream)
    await place.store.remove(one)
    with pytest.raises(NotFound):
        await place.store.get(one)
    await stream.aclose()
    assert place.is_empty()
    with pytest.raises(NotFound):
        await anext(place.store.export(one, ABOUT))


async def test_an_upload_that_ends_in_the_middle_leaves_nothing(place: Place) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"\x28\xb5\x2f\xfd"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await place.store.import_(breaking(), new_core_id())
    assert place.is_empty()


def fill(path: Path) -> int | None:
    try:
        with path.open("wb") as file:
            for _ in range(300):
                file.write(os.urandom(MIB))
    except OSError as error:
        return error.errno
    return None


async def test_a_full_disk_in_the_middle_leaves_the_source_and_nothing_else(tmp_path: Path) -> None:
    place = Place(tmp_path, 256 * MIB)
    try:
        one, two = new_core_id(), new_core_id()
        await place.make(one)
        draft = await place.store.begin(two)
        assert fill(draft.memory / "pages-1.img") == errno.ENOSPC
        with pytest.raises(CapacityExceeded):
            await place.store.seal(draft, facts())
        await place.store.discard(draft)
        assert (await place.store.get(one)).id == one
        assert place.shelf.names() == {one}
        assert place.layers.names() == {f"s-{one}"}
        place.store.keep_free_bytes = 10**12
        with pytest.raises(CapacityExceeded, match="too little free disk space"):
            await place.store.begin(two)
    finally:
        place.close()


async def test_a_missing_layer_and_a_damaged_memory_are_named(place: Place) -> None:
    one = new_core_id()
    made = await place.make(one)
    (made.memory / "pages-1.img").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(EngineFailure, match=f"{one} cannot be used: memory/pages-1.img is not what was written"):
        await place.store.get(one)
    assert (await place.store.get(one, with_memory=False)).id == one
    place.layers.remove(made.layer)
    with pytest.raises(EngineFailure, match="its files are not there"):
        await place.store.get(one, with_memory=False)


async def test_it_is_packed_in_the_background_and_stays_what_it_was(place: Place) -> None:
    one = new_core_id()
    told: list[tuple[str, int]] = []
    place.store.on_packed = lambda name, size: told.append((name, size))
    made = await place.make(one)
    deadline = time.monotonic() + 60
    while (again := await place.store.get(one)).memory_bytes >= len(CONTENT):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert again.memory_bytes < made.memory_bytes
    await asyncio.sleep(0.2)
    assert told == [(one, again.memory_bytes)]
    assert (again.memory / "pages-1.img").read_bytes() == CONTENT


KILLED = """
import asyncio, os, sys
from pathlib import Path
sys.path[:0] = {path!r}
import cove.engine.checkpoints.store as store_module
from test_checkpoint_store import Place, pieces
from cove.engine.checkpoints.shelf import SubvolumeShelf
from cove.engine.checkpoints import transfer

step, home, checkpoint_id, file = sys.argv[1:]

def wait(*_, **__):
    print("there", flush=True)
    import time
    time.sleep(60)

place = Place(Path(home))
targets = {{
    "flush": (SubvolumeShelf, "flush"),
    "publish": (SubvolumeShelf, "publish"),
    "digest": (store_module, "_digest"),
    "sign": (store_module, "sign"),
    "unpack": (transfer, "_unpack"),
    "move": (transfer, "_move"),
    "receive": (transfer, "_write"),
    "fetch": (type(place.layers), "fetch_archive"),
    "memory": (os, "mknod"),
}}
setattr(*targets[step], wait)
if file:
    asyncio.run(place.store.import_(pieces(Path(file).read_bytes()), checkpoint_id))
else:
    asyncio.run(place.make(checkpoint_id))
"""


def kill_at(step: str, home: Path, checkpoint_id: str, file: Path | None) -> None:
    code = KILLED.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    child = subprocess.Popen(
        [sys.executable, "-c", code, step, str(home), checkpoint_id, str(file or "")],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n", step
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]


async def test_killed_at_any_step_it_is_whole_or_absent_and_is_swept(tmp_path: Path) -> None:
    place = Place(tmp_path)
    one = new_core_id()
    await place.make(one)
    file = tmp_path / "file"
    file.write_bytes(await exported(place, one))
    place.store.close()
    try:
        seal_steps = ("memory", "sign", "publish") + (("flush", "digest") if SOAK else ())
        import_steps = ("receive", "fetch", "publish") + (("unpack", "move") if SOAK else ())
        for steps, given in ((seal_steps, None), (import_steps, file)):
            for step in steps:
                two = new_core_id()
                await asyncio.to_thread(kill_at, step, tmp_path, two, given)
                place = Place(tmp_path)
                assert await place.store.ids() == {one}, step
                await place.store.sweep(frozenset({one, two}))
                place.layers.remove("a")
                assert place.shelf.names() == {one}, step
                assert place.layers.names() == {f"s-{one}"}, step
                assert (await place.store.get(one)).id == one
                place.store.close()
    finally:
        place.close()
