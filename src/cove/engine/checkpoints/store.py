"""Where checkpoints lie (`ports.Checkpoints`): a directory with the memory each, and a kept copy of the layer.

A checkpoint is a draft until it is sealed: files and digests on the disk, the manifest signed, then the directory gets
its name. So after a crash it is whole or absent. What a draft left is swept at the next start. Names that lead anywhere
are made by us; a memory image is only read once its digests are those of a signed manifest (`manifest.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cove.engine.checkpoints import transfer
from cove.engine.checkpoints.manifest import MOST_BYTES, MOST_FILES, Damaged, FileFacts, Manifest, sign, verify
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.engine.checkpoints.shelf import Shelf
from cove.engine.layers import LayerStore
from cove.engine.reflink import copy_file
from cove.model.errors import BadRequest, CapacityExceeded, CoveError, EngineFailure, NotFound
from cove.model.ids import is_core_id

log = logging.getLogger(__name__)
T = TypeVar("T")

MEMORY: Final = "memory"
MANIFEST: Final = "manifest.json"
LAYER_PREFIX: Final = "s-"
_DRAFT_PREFIX: Final = "draft-"
_THREADS: Final = 4
_PIECE: Final = 1024 * 1024
_RETRY_S: Final = 60
_PACK_AFTER_S: Final = 2.0
"""Whoever made it is likely to use it at once, and needs the processors."""

ONLY_FILES: Final = "only its files were asked for"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

_Mark = tuple[int, int, int, int]
"""What tells a file that nobody wrote to since: inode, size, times of change of content and of inode."""


class CheckpointStore:
    """Made by `registry.open_engine`. `disk` says bytes in all and free; `keep_free_bytes` as in admission.

    `lets_memory_in`: files of other servers may bring memory, too.
    """

    def __init__(
        self,
        shelf: Shelf,
        layers: LayerStore | None,
        key: bytes,
        disk: Callable[[], tuple[int, int]],
    ) -> None:
        self.shelf = shelf
        self.layers = layers
        self.key = key
        self._disk = disk
        self.keep_free_bytes: int | None = None
        self.lets_memory_in = False
        self.on_packed: Callable[[str, int], None] | None = None
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS, "cove-checkpoint")
        self._background = ThreadPoolExecutor(1, "cove-pack")
        self._verified: dict[str, dict[str, _Mark]] = {}
        self._holds: dict[str, int] = {}
        self._doomed: set[str] = set()
        self._expected: dict[str, int] = {}

    def close(self) -> None:
        """End the threads. What runs is waited for; what was to be packed stays as it is."""
        self._closing.set()
        self._background.shutdown(wait=True, cancel_futures=True)
        self._threads.shutdown()

    # -- making ---------------------------------------------------------------------------------------------------

    async def begin(self, checkpoint_id: str, *, expected_bytes: int = 0) -> Draft:
        """See `ports.Checkpoints`."""
        if not is_core_id(checkpoint_id):
            raise EngineFailure("that is no id of a snapshot", internal=checkpoint_id[:100])
        if self._holds.get(checkpoint_id):
            raise EngineFailure("an earlier snapshot of this id is in use", internal=checkpoint_id)
        expected = max(0, expected_bytes)
        self._expected[checkpoint_id] = expected
        try:
            await self.run(self.require_room)
            memory = await self.run(lambda: self._make_draft(checkpoint_id))
        except BaseException:
            self._expected.pop(checkpoint_id, None)
            raise
        return Draft(id=checkpoint_id, memory=memory, layer=LAYER_PREFIX + checkpoint_id)

    def require_room(self, more_bytes: int = 0) -> None:
        """Raises: CapacityExceeded when `more_bytes` and all that is expected do not fit. Blocks for a moment."""
        total, free = self._disk()
        kept = self.keep_free_bytes if self.keep_free_bytes is not None else min(1024**3, total // 20)
        if free - sum(self._expected.values()) - more_bytes <= kept:
            raise CapacityExceeded(
                "this machine has too little free disk space for a snapshot now",
                internal=f"{free} free, {more_bytes} more, {sum(self._expected.values())} expected, {kept} kept",
                retry_after_s=_RETRY_S,
            )

    def _make_draft(self, checkpoint_id: str) -> Path:
        self._remove_now(checkpoint_id)
        memory = self.shelf.make(_DRAFT_PREFIX + checkpoint_id) / MEMORY
        memory.mkdir(mode=0o700)
        return memory

    async def seal(
        self, draft: Draft, facts: CheckpointFacts, *, expected: Mapping[str, FileFacts] | None = None
    ) -> Checkpoint:
        """See `ports.Checkpoints`. `expected`: what the files must be (BadRequest)."""
        flushing = self.run(lambda: self._flush(draft))
        digesting = self.run(lambda: self._digest_all(draft))
        settling = self.run(lambda: self._settle(draft))
        async with _together() as tasks:
            tasks.create_task(flushing)
            digests = tasks.create_task(digesting)
            settled = tasks.create_task(settling)
        files, marks = digests.result()
        if expected is not None and files != expected:
            raise BadRequest("this snapshot cannot be used: its memory is not what its digests say", field="file")
        facts = msgspec.structs.replace(
            facts,
            memory_bytes=sum(one.size for one in files.values()),
            inherited_bytes=settled.result(),
        )
        manifest = Manifest(id=draft.id, layer=draft.layer, facts=facts, files=files)
        checkpoint = await self.run(lambda: self._publish(draft, manifest))
        self._verified[draft.id] = marks
        self._expected.pop(draft.id, None)
        self._background.submit(self._pack, draft.id, time.monotonic() + _PACK_AFTER_S, asyncio.get_running_loop())
        return checkpoint

    async def lend(self, draft: Draft, facts: CheckpointFacts) -> Checkpoint:
        """See `ports.Checkpoints`."""
        self._expected.pop(draft.id, None)
        return Checkpoint(
            id=draft.id, memory=draft.memory, layer=draft.layer, facts=facts, memory_bytes=facts.memory_bytes
        )

    async def copy(self, checkpoint_id: str, new_id: str, *, with_memory: bool = True) -> Checkpoint:
        """See `ports.Checkpoints`."""
        async with self.hold(checkpoint_id):
            source = await self.get(checkpoint_id, with_memory=with_memory)
            draft = await self.begin(new_id, expected_bytes=source.memory_bytes if with_memory else 0)
            try:
                await self.run(lambda: self._copy_into(source, draft, with_memory=with_memory))
                facts = source.facts
                if facts.has_memory and not with_memory:
                    facts = msgspec.structs.replace(facts, has_memory=False, why_no_memory=ONLY_FILES, engine={})
                return await self.seal(draft, facts)
            except BaseException:
                await self.discard(draft)
                raise

    def _copy_into(self, source: Checkpoint, draft: Draft, *, with_memory: bool) -> None:
        if self.layers is not None and source.layer in self.layers.names():
            self.layers.copy(source.layer, draft.layer, None)
        if with_memory:
            with (
                _opened(self.shelf.home / source.id) as theirs,
                _opened(self.shelf.home / (_DRAFT_PREFIX + draft.id)) as ours,
            ):
                for name in _names(theirs):
                    copy_file(theirs, ours, name)

    def _flush(self, draft: Draft) -> None:
        with _opened(draft.memory.parent) as folder:
            if _names(folder):
                self.shelf.flush(_DRAFT_PREFIX + draft.id)

    def _settle(self, draft: Draft) -> int:
        if self.layers is None or draft.layer not in self.layers.names():
            return 0
        self.layers.settle(draft.layer)
        return self.layers.used_bytes(draft.layer)

    def _digest_all(self, draft: Draft) -> tuple[dict[str, FileFacts], dict[str, _Mark]]:
        files: dict[str, FileFacts] = {}
        marks: dict[str, _Mark] = {}
        with _opened(self.shelf.home / (_DRAFT_PREFIX + draft.id)) as folder:
            names = _names(folder)
            if len(names) > MOST_FILES:
                raise EngineFailure("the memory image has too many files", internal=f"{len(names)}")
            for name in names:
                files[name], marks[name] = _digest(folder, name)
        return files, marks

    def _publish(self, draft: Draft, manifest: Manifest) -> Checkpoint:
        name = _DRAFT_PREFIX + draft.id
        with _opened(self.shelf.home / name) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(MANIFEST, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(sign(manifest, self.key))
                file.flush()
                os.fsync(file.fileno())
        self.shelf.publish(name, draft.id)
        return self._described(manifest)

    def _pack(self, checkpoint_id: str, due: float, loop: asyncio.AbstractEventLoop) -> None:
        """In the background; whoever removes the checkpoint meanwhile wins."""
        if self._closing.wait(max(0.0, due - time.monotonic())):
            return
        with contextlib.suppress(OSError):
            if self.layers is not None:
                self.layers.measure(LAYER_PREFIX + checkpoint_id)
            before = self.shelf.taken_bytes(checkpoint_id)
            self.shelf.pack(checkpoint_id)
            after = self.shelf.taken_bytes(checkpoint_id)
            if after != before and self.on_packed is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
                    loop.call_soon_threadsafe(self.on_packed, checkpoint_id, after)

    async def discard(self, draft: Draft) -> None:
        """See `ports.Checkpoints`."""
        self._expected.pop(draft.id, None)
        await self._remove_surely(draft.id)

    # -- using ----------------------------------------------------------------------------------------------------

    async def get(self, checkpoint_id: str, *, with_memory: bool = True) -> Checkpoint:
        """See `ports.Checkpoints`."""
        if not is_core_id(checkpoint_id) or checkpoint_id in self._doomed:
            raise NotFound("no such snapshot", field="snapshot")
        try:
            return await self.run(lambda: self._read(checkpoint_id, with_memory=with_memory))
        except FileNotFoundError as error:
            raise NotFound("no such snapshot", field="snapshot") from error
        except Damaged as error:
            raise EngineFailure(
                f"the snapshot {checkpoint_id} cannot be used: {error}. Nothing was changed.", internal=checkpoint_id
            ) from error

    def _read(self, checkpoint_id: str, *, with_memory: bool) -> Checkpoint:
        with _opened(self.shelf.home / checkpoint_id) as folder:
            try:
                manifest = verify(_read_small(folder, MANIFEST), self.key)
            except OSError as error:
                raise Damaged("its manifest cannot be read") from error
            if manifest.id != checkpoint_id:
                raise Damaged("its manifest is another one's")
            if self.layers is not None and manifest.layer not in self.layers.names():
                raise Damaged("its files are not there")
            if with_memory:
                self._verify_memory(folder, manifest)
        return self._described(manifest)

    def _verify_memory(self, folder: int, manifest: Manifest) -> None:
        known = self._verified.get(manifest.id, {})
        try:
            found = set(_names(folder))
        except OSError as error:
            raise Damaged("its memory is not there") from error
        if found != manifest.files.keys():
            strange = min(found ^ manifest.files.keys())
            raise Damaged(f"{strange} is missing or was added")
        marks = {name: _verify_file(folder, name, facts, known.get(name)) for name, facts in manifest.files.items()}
        self._verified[manifest.id] = marks

    def _described(self, manifest: Manifest) -> Checkpoint:
        used = 0 if self.layers is None else self.layers.used_bytes(manifest.layer)
        taken = self.shelf.taken_bytes(manifest.id)
        return Checkpoint(
            id=manifest.id,
            memory=self.shelf.home / manifest.id / MEMORY,
            layer=manifest.layer,
            facts=manifest.facts,
            memory_bytes=taken if manifest.files else 0,
            disk_bytes=used,
        )

    @asynccontextmanager
    async def hold(self, checkpoint_id: str) -> AsyncGenerator[None]:
        """See `ports.Checkpoints`."""
        self._holds[checkpoint_id] = self._holds.get(checkpoint_id, 0) + 1
        try:
            yield
        finally:
            self._holds[checkpoint_id] -= 1
            if not self._holds[checkpoint_id]:
                del self._holds[checkpoint_id]
                if checkpoint_id in self._doomed:
                    await self._remove_surely(checkpoint_id)

    async def files_of(self, checkpoint_id: str) -> dict[str, FileFacts]:
        """The files of a sealed one's memory and those beside it, as its manifest has them. Raises: as `get`."""

        def read() -> dict[str, FileFacts]:
            with _opened(self.shelf.home / checkpoint_id) as folder:
                return verify(_read_small(folder, MANIFEST), self.key).files

        return await self.run(read)

    def export(self, checkpoint_id: str, about: bytes) -> AsyncGenerator[bytes]:
        """See `ports.Checkpoints`."""
        return transfer.export(self, checkpoint_id, about)

    async def import_(
        self, stream: AsyncIterator[bytes], new_id: str, *, accept: transfer.Accept | None = None
    ) -> tuple[Checkpoint, bytes]:
        """See `ports.Checkpoints`."""
        return await transfer.import_(self, stream, new_id, accept)

    # -- removing -------------------------------------------------------------------------------------------------

    async def remove(self, checkpoint_id: str) -> None:
        """See `ports.Checkpoints`."""
        if self._holds.get(checkpoint_id):
            self._doomed.add(checkpoint_id)
        else:
            await self._remove_surely(checkpoint_id)

    async def _remove_surely(self, checkpoint_id: str) -> None:
        try:
            await self.run(lambda: self._remove_now(checkpoint_id))
        except (CoveError, OSError):
            log.exception("the checkpoint %s could not be removed, the next start tries again", checkpoint_id)
        self._doomed.discard(checkpoint_id)

    def _remove_now(self, checkpoint_id: str) -> None:
        self._verified.pop(checkpoint_id, None)
        # The directory first: without it the copy of the layer is nobody's and is swept.
        self.shelf.remove(checkpoint_id)
        self.shelf.remove(_DRAFT_PREFIX + checkpoint_id)
        if self.layers is not None:
            self.layers.remove(LAYER_PREFIX + checkpoint_id)

    async def ids(self) -> frozenset[str]:
        """See `ports.Checkpoints`."""
        names = await self.run(self.shelf.names)
        return frozenset(name for name in names if is_core_id(name))

    async def sweep(self, known: frozenset[str]) -> list[str]:
        """See `ports.Checkpoints`."""

        def find() -> set[str]:
            sealed = {name for name in self.shelf.names() if is_core_id(name)}
            drafts = {name.removeprefix(_DRAFT_PREFIX) for name in self.shelf.names() if name not in sealed}
            layers = set[str]() if self.layers is None else self.layers.names()
            kept = {name.removeprefix(LAYER_PREFIX) for name in layers if name.startswith(LAYER_PREFIX)}
            return (sealed | drafts | kept) - (known & sealed)

        lost = sorted(await self.run(find))
        for one in lost:
            await self._remove_surely(one)
        return lost

    async def run(self, work: Callable[[], T]) -> T:
        """On a thread; cancelling waits for its end, so that nothing is half made behind our back.

        Raises: CapacityExceeded for a full disk, EngineFailure for any other OSError but FileNotFoundError.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await future
            raise
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise CapacityExceeded("the disk is full", internal=str(error), retry_after_s=_RETRY_S) from error
            raise EngineFailure("a snapshot could not be written or read", internal=str(error)) from error


@asynccontextmanager
async def _together() -> AsyncGenerator[asyncio.TaskGroup]:
    """A task group that raises the first failure itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


@contextlib.contextmanager
def _opened(path: Path) -> Generator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _read_small(folder: int, name: str) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise Damaged("its manifest is too large")
    return data


def _names(folder: int) -> list[str]:
    """What a checkpoint's directory has, but its manifest: files beside the memory and those in it. Raises: OSError."""
    memory = os.open(MEMORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        inside = [f"{MEMORY}/{name}" for name in os.listdir(memory)]  # noqa: PTH208 - of a descriptor
    finally:
        os.close(memory)
    beside = set(os.listdir(folder)) - {MANIFEST, MEMORY}
    return sorted([*beside, *inside])


def _mark(facts: os.stat_result) -> _Mark:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _digest(folder: int, name: str) -> tuple[FileFacts, _Mark]:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(fd, "rb", buffering=0) as file:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise EngineFailure("the memory image has something that is no file", internal=name)
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_PIECE))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return FileFacts(before.st_size, digest.hexdigest()), _mark(before)


def _verify_file(folder: int, name: str, facts: FileFacts, known: _Mark | None) -> _Mark:
    """Raises: Damaged. Not read again if it is as this process wrote or read it."""
    try:
        now = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if now.st_size != facts.size:
            raise Damaged(f"{name} has {now.st_size} bytes instead of {facts.size}")
        if known is not None and known == _mark(now):
            return known
        found, mark = _digest(folder, name)
    except (OSError, EngineFailure) as error:
        raise Damaged(f"{name} cannot be read") from error
    if found != facts:
        raise Damaged(f"{name} is not what was written")
    return mark
