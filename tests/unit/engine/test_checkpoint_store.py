"""Drafts, seals, damage, holds and sweeps of checkpoints in plain directories, without layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cove.engine.checkpoints.manifest import KEY_FILE, ensure_key
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts
from cove.engine.checkpoints.shelf import DirectoryShelf
from cove.engine.checkpoints.store import CheckpointStore
from cove.model.errors import CapacityExceeded, EngineFailure, NotFound
from cove.model.ids import new_core_id
from cove.model.sandbox import Limits

GIB = 1024**3


def make_store(tmp_path: Path, *, free: int = 100 * GIB) -> CheckpointStore:
    shelf = DirectoryShelf(tmp_path / "checkpoints")
    shelf.open()
    return CheckpointStore(shelf, None, ensure_key(tmp_path), lambda: (100 * GIB, free))


def facts(**changes: object) -> CheckpointFacts:
    values: dict[str, object] = {
        "driver": "runc",
        "has_memory": True,
        "image": "base",
        "image_digest": "sha256:1",
        "limits": Limits(cpus=1.0, memory_bytes=1, disk_bytes=1, pids=1),
        "hostname": "h",
        "agent_build": "b",
        "engine": {},
        "env": {"TOKEN": "hush"},
        **changes,
    }
    return CheckpointFacts(**values)  # type: ignore[arg-type]


async def make_one(store: CheckpointStore, checkpoint_id: str) -> Checkpoint:
    draft = await store.begin(checkpoint_id)
    (draft.memory / "pages-1.img").write_bytes(b"p" * 100_000)
    (draft.memory / "core-1.img").write_bytes(b"c" * 10)
    return await store.seal(draft, facts())


async def test_a_sealed_one_is_read_again_also_by_another_process(tmp_path: Path) -> None:
    one = new_core_id()
    made = await make_one(make_store(tmp_path), one)
    assert made.facts.memory_bytes == 100_010
    again = await make_store(tmp_path).get(one)
    assert again == made
    assert again.facts.env == {"TOKEN": "hush"}
    assert (again.memory / "core-1.img").read_bytes() == b"c" * 10


async def test_a_draft_is_nothing_until_it_is_sealed(tmp_path: Path) -> None:
    store, one = make_store(tmp_path), new_core_id()
    draft = await store.begin(one)
    with pytest.raises(NotFound):
        await store.get(one)
    assert await store.ids() == frozenset()
    await store.discard(draft)
    assert list((tmp_path / "checkpoints").iterdir()) == []


async def test_one_that_is_lent_is_there_at_once_and_never_after_a_start(tmp_path: Path) -> None:
    store, one, other = make_store(tmp_path), new_core_id(), new_core_id()
    for checkpoint_id in (one, other):
        draft = await store.begin(checkpoint_id)
        (draft.memory / "core-1.img").write_bytes(b"c" * 10)
        lent = await store.lend(draft, facts())
        assert (lent.memory / "core-1.img").read_bytes() == b"c" * 10
        with pytest.raises(NotFound):
            await store.get(checkpoint_id)
    await store.remove(one)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert await make_store(tmp_path).sweep(frozenset({one, other})) == [other]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def flip(path: Path) -> None:
    path.write_bytes(b"q" + b"p" * 99_999)


def cut(path: Path) -> None:
    path.write_bytes(b"p" * 99_999)


def add(path: Path) -> None:
    path.with_name("more.img").touch()


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "is not what was written"),
        (cut, "has 99999 bytes instead of 100000"),
        (Path.unlink, "pages-1.img is missing"),
        (add, "more.img is missing or was added"),
        (link, "memory/pages-1.img"),
        (make_folder, "memory/pages-1.img"),
    ],
    ids=["flipped", "truncated", "gone", "added", "link", "directory"],
)
async def test_damage_of_the_memory_is_told_and_the_files_can_be_had_without_it(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    store, one = make_store(tmp_path), new_core_id()
    made = await make_one(store, one)
    await store.get(one)
    damage(made.memory / "pages-1.img")
    with pytest.raises(EngineFailure, match=words) as raised:
        await store.get(one)
    assert one in raised.value.public
    assert "Nothing was changed" in raised.value.public
    assert (await store.get(one, with_memory=False)).id == one


async def test_a_changed_or_foreign_manifest_is_refused(tmp_path: Path) -> None:
    store, one = make_store(tmp_path), new_core_id()
    await make_one(store, one)
    manifest = tmp_path / "checkpoints" / one / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b"runc", b"crun"))
    with pytest.raises(EngineFailure, match="was changed, or another server made it"):
        await store.get(one)
    manifest.write_bytes(whole)
    assert (await store.get(one)).id == one
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(EngineFailure, match="another server made it"):
        await make_store(tmp_path).get(one)
    manifest.write_bytes(whole[:100])
    with pytest.raises(EngineFailure, match="cannot be read"):
        await store.get(one)


async def test_one_that_is_renamed_is_not_another(tmp_path: Path) -> None:
    store, one, other = make_store(tmp_path), new_core_id(), new_core_id()
    await make_one(store, one)
    (tmp_path / "checkpoints" / one).rename(tmp_path / "checkpoints" / other)
    with pytest.raises(EngineFailure, match="another one's"):
        await store.get(other)


async def test_what_is_held_is_removed_at_the_end_of_the_last_hold(tmp_path: Path) -> None:
    store, one = make_store(tmp_path), new_core_id()
    await make_one(store, one)
    async with store.hold(one):
        async with store.hold(one):
            await store.remove(one)
            with pytest.raises(NotFound):
                await store.get(one)
        assert (tmp_path / "checkpoints" / one).exists()
    assert not (tmp_path / "checkpoints" / one).exists()
    await store.remove(one)
    await make_one(store, one)
    assert (await store.get(one)).id == one


async def test_the_sweep_leaves_what_is_known_and_takes_drafts(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    kept, lost, half = new_core_id(), new_core_id(), new_core_id()
    await make_one(store, kept)
    await make_one(store, lost)
    await store.begin(half)
    assert await store.sweep(frozenset({kept, half})) == sorted((lost, half))
    assert await store.ids() == {kept}
    assert (await store.get(kept)).id == kept


async def test_too_little_disk_is_refused_with_what_others_will_take(tmp_path: Path) -> None:
    store = make_store(tmp_path, free=10 * GIB)
    first, second = new_core_id(), new_core_id()
    draft = await store.begin(first, expected_bytes=5 * GIB)
    with pytest.raises(CapacityExceeded, match="too little free disk space"):
        await store.begin(second, expected_bytes=5 * GIB)
    await store.discard(draft)
    await store.begin(second, expected_bytes=5 * GIB)
    with pytest.raises(CapacityExceeded):
        await make_store(tmp_path, free=GIB).begin(first)


async def test_no_secret_is_readable_by_others(tmp_path: Path) -> None:
    store, one = make_store(tmp_path), new_core_id()
    made = await make_one(store, one)
    assert "hush" not in repr(made)
    for path, mode in (
        (tmp_path / KEY_FILE, 0o600),
        (tmp_path / "checkpoints", 0o700),
        (tmp_path / "checkpoints" / one, 0o700),
        (tmp_path / "checkpoints" / one / "manifest.json", 0o600),
    ):
        assert path.stat().st_mode & 0o777 == mode


async def test_a_copy_is_independent_and_may_leave_the_memory_out(tmp_path: Path) -> None:
    store, one, two, three = make_store(tmp_path), new_core_id(), new_core_id(), new_core_id()
    draft = await store.begin(one)
    (draft.memory / "pages-1.img").write_bytes(b"p" * 100_000 + bytes(1024**2) + b"q")
    (draft.memory.parent / "agent").write_bytes(b"a program")
    await store.seal(draft, facts())
    await store.copy(one, two)
    await store.copy(one, three, with_memory=False)
    await store.remove(one)
    copied = await store.get(two)
    assert (copied.memory / "pages-1.img").read_bytes() == b"p" * 100_000 + bytes(1024**2) + b"q"
    assert (copied.memory.parent / "agent").read_bytes() == b"a program"
    assert copied.facts.has_memory
    files_only = await store.get(three)
    assert (files_only.facts.has_memory, files_only.facts.why_no_memory) == (False, "only its files were asked for")
    assert files_only.facts.env == {"TOKEN": "hush"}
    assert list(files_only.memory.iterdir()) == []
    (copied.memory.parent / "agent").write_bytes(b"b program")
    with pytest.raises(EngineFailure, match="agent is not what was written"):
        await store.get(two)
    with pytest.raises(NotFound):
        await store.copy(one, new_core_id())
    assert await store.ids() == {two, three}
