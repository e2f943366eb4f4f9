"""A checkpoint as one file, and back.

The file is a tar packed by zstd: the signed manifest (`cove-snapshot.json`), the files of the memory and those beside
it, the layer as `layer.tar`. Written and read as a stream. Every part has its digest in the manifest.

What comes in is hostile until its digests are known: it is parsed by programs in worlds of their own, sizes are those
that the manifest declares and that the disk has room for. Even then a memory image is let in only if this server's own
key signed it, or the operator lets any in (COVE_IMPORT_MEMORY): a forged image acts as root of the host.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import subprocess
import tarfile
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from cove.engine.checkpoints.manifest import Damaged, FileFacts, sign_body, verify_body
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.engine.confined.process import CAP_SETGID, CAP_SETUID, Confinement, python_program
from cove.engine.images.dialogue import converse
from cove.engine.layerarchive import MOST_FILES as MOST_LAYER_FILES
from cove.engine.layerarchive import LayerArchive
from cove.model.errors import BadRequest, EngineFailure, TooLarge, Unsupported
from cove.model.sandbox import Limits

if TYPE_CHECKING:
    from cove.engine.checkpoints.store import CheckpointStore

FORMAT: Final = 1
MOST_ABOUT: Final = 64 * 1024
MOST_BYTES: Final = 1024**4
FOREIGN: Final = (
    "it came in a file that this server did not make: its memory was left out, because a forged one would act as root "
    "of this machine (COVE_IMPORT_MEMORY)"
)
MANIFEST_NAME: Final = "cove-snapshot.json"
LAYER_NAME: Final = "layer.tar"
Accept = Callable[[CheckpointFacts, bytes], None]
"""Asked once the manifest is known, before anything is unpacked; raises what the import shall end with."""

_PLACE: Final = "import"
_PARTS: Final = "parts"
_PIECE: Final = 256 * 1024
_CHECK_ROOM_BYTES: Final = 64 * 1024**2
_MEMORY_BYTES: Final = 1024**3
_SPLIT_LIMIT_S: Final = 3600.0
_LEAST_LIMIT: Final = 64 * 1024**2
_PURPOSE: Final = b"cove exported snapshot\0"
_PART = re.compile(
    r"memory/[A-Za-z0-9_][A-Za-z0-9._-]{0,199}|(?!manifest\.json$|memory$)[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_ENGINE_TEXT: Final = 1000
_MOST_ENGINE: Final = 64
_MOST_NUMBER: Final = 2**50


class Exported(Struct, frozen=True, kw_only=True):
    """The manifest of the file. `about`: the core's own words of it, base64. `layer` None: it has no files."""

    format: int
    machine: str
    about: str
    facts: CheckpointFacts
    files: dict[str, FileFacts]
    layer: LayerArchive | None


class _Head(Struct, frozen=True):
    format: int


# -- out --------------------------------------------------------------------------------------------------------------


async def export(store: CheckpointStore, checkpoint_id: str, about: bytes) -> AsyncGenerator[bytes]:
    """See `ports.Checkpoints`."""
    if len(about) > MOST_ABOUT:
        raise TooLarge("the snapshot's description is larger than 64 KiB", internal=f"{len(about)} bytes")
    folder = f"export-{uuid.uuid4().hex}"
    async with store.hold(checkpoint_id):
        checkpoint = await store.get(checkpoint_id)
        files = await store.files_of(checkpoint_id)
        try:
            place = await store.run(lambda: store.shelf.make(folder))
            layer = await store.run(lambda: _keep_layer(store, checkpoint, place / LAYER_NAME))
            manifest = Exported(
                format=FORMAT,
                machine=os.uname().machine,
                about=base64.b64encode(about).decode(),
                facts=checkpoint.facts,
                files=files,
                layer=layer,
            )
            head = sign_body(msgspec.json.encode(manifest), store.key, _PURPOSE)
            parts = [(name, store.shelf.home / checkpoint_id / name, files[name].size) for name in sorted(files)]
            if layer is not None:
                parts.append((LAYER_NAME, place / LAYER_NAME, layer.size))
            async for piece in _packed(head, parts):
                yield piece
        finally:
            await store.run(lambda: store.shelf.remove(folder))


def _keep_layer(store: CheckpointStore, checkpoint: Checkpoint, file: Path) -> LayerArchive | None:
    if store.layers is None or checkpoint.layer not in store.layers.names():
        return None
    return store.layers.keep_archive(checkpoint.layer, file)


async def _packed(head: bytes, parts: list[tuple[str, Path, int]]) -> AsyncGenerator[bytes]:
    """The bytes of the file. The program is ended with the generator, wherever that is."""
    zstd = await asyncio.to_thread(_start_packing)
    assert zstd.stdin is not None  # noqa: S101 - pipes were asked for
    assert zstd.stdout is not None  # noqa: S101
    failed: list[OSError] = []
    feeder = threading.Thread(target=_feed, args=(zstd.stdin, head, parts, failed), daemon=True)
    feeder.start()
    try:
        while piece := await asyncio.to_thread(os.read, zstd.stdout.fileno(), _PIECE):
            yield piece
        if failed or zstd.wait() != 0:
            raise EngineFailure("the snapshot could not be exported", internal=repr(failed[:1]))
    finally:
        zstd.kill()
        feeder.join()
        zstd.wait()
        zstd.stdout.close()


def _start_packing() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/usr/bin/zstd", "-q", "-c", "-3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _feed(pipe: IO[bytes], head: bytes, parts: list[tuple[str, Path, int]], failed: list[OSError]) -> None:
    try:
        with pipe:
            pipe.write(_tar_head(MANIFEST_NAME, len(head)) + head + bytes(-len(head) % tarfile.BLOCKSIZE))
            for name, path, size in parts:
                pipe.write(_tar_head(name, size))
                for piece in _read(path, size):
                    pipe.write(piece)
                pipe.write(bytes(-size % tarfile.BLOCKSIZE))
            pipe.write(bytes(2 * tarfile.BLOCKSIZE))
    except OSError as error:  # a reader that went away, too: then nobody looks at it
        failed.append(error)


def _tar_head(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)  # its sizes have no bound


def _read(path: Path, size: int) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        while size:
            piece = file.read(min(size, _PIECE))
            if not piece:
                raise OSError("a part became shorter")
            size -= len(piece)
            yield piece


# -- in ---------------------------------------------------------------------------------------------------------------


async def import_(
    store: CheckpointStore, stream: AsyncIterator[bytes], new_id: str, accept: Accept | None
) -> tuple[Checkpoint, bytes]:
    """See `ports.Checkpoints`."""
    draft = await store.begin(new_id)
    try:
        place = await store.run(lambda: _make_place(draft))
        upload = place / "upload"
        await _receive(store, stream, upload)
        manifest, is_ours = await _read_manifest(store, upload)
        facts = _admitted(manifest, is_ours=is_ours, is_memory_let_in=store.lets_memory_in)
        about = _about(manifest)
        if accept is not None:
            accept(facts, about)
        manifest = msgspec.structs.replace(manifest, facts=facts)
        return await _unpack(store, draft, upload, manifest), about
    except BaseException as error:
        await store.discard(draft)
        if isinstance(error, BadRequest | Unsupported):
            error.field = "file"
        raise


def _make_place(draft: Draft) -> Path:
    """In the draft, so that parts need only be renamed, and gone with it. Returns it."""
    place = draft.memory.parent / _PLACE
    (place / _PARTS).mkdir(mode=0o700, parents=True)
    return place


async def _receive(store: CheckpointStore, stream: AsyncIterator[bytes], upload: Path) -> None:
    """The whole file on the disk, as long as there is room."""
    fd = os.open(upload, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    size = since_check = 0
    try:
        async for piece in stream:
            size += len(piece)
            since_check += len(piece)
            if size > MOST_BYTES:
                raise TooLarge("the file is larger than 1 TiB", field="file")
            if since_check > _CHECK_ROOM_BYTES:
                since_check = 0
                await store.run(store.require_room)
            await store.run(partial(_write, fd, piece))
    finally:
        os.close(fd)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


async def _read_manifest(store: CheckpointStore, upload: Path) -> tuple[Exported, bool]:
    """What the file says of itself, and whether we said it."""
    found = await _split(upload, upload.parent / _PARTS, None, MOST_BYTES)
    text = str(found["manifest"]).encode()
    try:
        body = verify_body(text, store.key, _PURPOSE)
        is_ours = True
    except Damaged:
        body, is_ours = _unsigned(text), False
    try:
        version = msgspec.json.decode(body, type=_Head).format
        if version != FORMAT:
            raise Unsupported(
                f"the file's format is {version}, this server reads {FORMAT}: a newer Cove made it", field="file"
            )
        return msgspec.json.decode(body, type=Exported), is_ours
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("this is no exported snapshot: its manifest is damaged", field="file") from error


class _Signed(Struct, frozen=True):
    manifest: msgspec.Raw


def _unsigned(text: bytes) -> bytes:
    try:
        return bytes(msgspec.json.decode(text, type=_Signed).manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("this is no exported snapshot: its manifest is damaged", field="file") from error


def _admitted(manifest: Exported, *, is_ours: bool, is_memory_let_in: bool) -> CheckpointFacts:
    """The facts, checked and without memory where that may not come in. Raises: BadRequest, Unsupported."""
    machine = os.uname().machine
    if manifest.machine != machine:
        raise Unsupported(
            f"the snapshot is of a machine of another kind ({manifest.machine[:40]}), this one is {machine}",
            field="file",
        )
    check_facts(manifest.facts)
    for name, facts in manifest.files.items():
        if not _PART.fullmatch(name) or not 0 <= facts.size <= MOST_BYTES:
            raise BadRequest("the file's manifest names a part that no snapshot has", field="file")
    layer = manifest.layer
    if layer is not None and not (0 <= layer.size <= MOST_BYTES and 0 <= layer.files <= MOST_LAYER_FILES):
        raise BadRequest("the file's manifest says sizes that cannot be", field="file")
    if manifest.facts.has_memory and not (is_ours or is_memory_let_in):
        return msgspec.structs.replace(manifest.facts, has_memory=False, why_no_memory=FOREIGN, engine={})
    return manifest.facts


def check_facts(facts: CheckpointFacts) -> None:
    """Refuse what no box of ours could have said of itself. Raises: BadRequest."""
    limits: Limits = facts.limits
    numbers = (
        *(limits.cpus, limits.memory_bytes, limits.disk_bytes, limits.pids),
        *(facts.processes, facts.memory_bytes, facts.inherited_bytes, facts.stopped_ms),
    )
    words = (facts.driver, facts.image, facts.image_digest, facts.agent_build)
    texts = [*facts.engine.items(), *facts.env.items(), ("workdir", facts.workdir or ""), ("user", facts.user or "")]
    is_fine = (
        all(0 <= number <= _MOST_NUMBER for number in numbers)
        and all(_WORD.fullmatch(word) for word in words)
        and _HOST.fullmatch(facts.hostname) is not None
        and len(facts.engine) <= _MOST_ENGINE
        and all(len(name) + len(text) <= _ENGINE_TEXT for name, text in facts.engine.items())
        and not any("\0" in name or "\0" in text for name, text in texts)
        and not any("=" in name or not name for name in facts.env)
        and len(facts.why_no_memory or "") <= _ENGINE_TEXT
    )
    if not is_fine:
        raise BadRequest("the file's manifest says what no snapshot can be", field="file")


def _about(manifest: Exported) -> bytes:
    try:
        about = base64.b64decode(manifest.about, validate=True)
    except ValueError as error:
        raise BadRequest("the file's manifest is damaged", field="file") from error
    if len(about) > MOST_ABOUT:
        raise TooLarge("the snapshot's description is larger than 64 KiB", field="file")
    return about


async def _unpack(store: CheckpointStore, draft: Draft, upload: Path, manifest: Exported) -> Checkpoint:
    """The parts to where they belong, then the seal."""
    files = manifest.files if manifest.facts.has_memory else {}
    wanted = [(name, facts.size) for name, facts in sorted(files.items())]
    if manifest.layer is not None:
        wanted.append((LAYER_NAME, manifest.layer.size))
    # A layer lies there twice for a moment, as an archive and as files.
    total = sum(size for _, size in wanted) + (manifest.layer.size if manifest.layer else 0)
    await store.run(lambda: store.require_room(total))
    parts = upload.parent / _PARTS
    await _split(upload, parts, wanted, total + MOST_ABOUT)
    await store.run(lambda: _move(parts, draft.memory.parent, [name for name, _ in wanted if name != LAYER_NAME]))
    layer = manifest.layer
    if layer is not None:
        if store.layers is None:
            raise Unsupported("this server's sandboxes have no files of their own", field="file")
        limit = max(manifest.facts.limits.disk_bytes, _LEAST_LIMIT)
        layers, archive = store.layers, parts / str(len(wanted) - 1)
        digest = f"sha256:{layer.digest}"
        await store.run(lambda: layers.fetch_archive(draft.layer, archive, limit, digest=digest))
    await store.run(lambda: shutil.rmtree(upload.parent))
    return await store.seal(draft, manifest.facts, expected=files)


def _move(parts: Path, target: Path, names: list[str]) -> None:
    """Parts to their names. Each is a file of ours: the program that wrote it could name nothing."""
    for number, name in enumerate(names):
        (parts / str(number)).rename(target / name)


async def _split(upload: Path, target: Path, parts: list[tuple[str, int]] | None, most_bytes: int) -> dict[str, object]:
    spec = Confinement(
        argv=python_program("splitsnapshot"),
        binds=((upload, "/archive", False), (target, "/target", True)),
        # To run a decompressor as nobody.
        capabilities=(CAP_SETGID, CAP_SETUID),
        limits={"RLIMIT_AS": _MEMORY_BYTES},
    )
    order = {"parts": parts, "most_bytes": most_bytes}
    return await converse(spec, order, lambda _: None, what="snapshot", timeout_s=_SPLIT_LIMIT_S)
