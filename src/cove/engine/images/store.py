"""Images that projects brought: their trees, shared by content, and what each project calls them.

Layout, all of it closed to everybody but root::

    trees/<digest>/rootfs, image.json    whole or not there; never written again
    refs/<project>/<name>.json           `records.py`
    downloads/<project>/blobs/sha256/    what registries sent, whole; a cut pull finds it again
    work/                                half-made things, emptied at every start
    trash/                               what nobody names any more, on its way out

A project's blobs are its own: else a manifest that only names a blob would get at a stranger's. One server owns the
directory, and what is used is decided on its loop without a pause, so nothing needs a lock: `collect` renames what is
unused away and only then spends time on removing it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from cove.engine.driver import BoxImage
from cove.engine.extra_ca import ExtraCa, add_certificates
from cove.engine.images.records import (
    StoredImage,
    folder_of,
    read_records,
    record_path,
    remove_file,
    sync_directory,
    write_file,
)
from cove.engine.images.settings import UnpackLimits
from cove.engine.images.unpack import LayerFile, Tree, measure, unpack_layers
from cove.model.errors import CapacityExceeded, EngineFailure
from cove.model.reference import INTERIM

log = logging.getLogger(__name__)

KEEP_BLOBS_S: Final = 3600.0
"""How long blobs of a pull that failed are kept for the next try."""

_RESERVE: Final = 1024**3
_REMOVE_LIMIT_S: Final = 600.0
_MEASURE_LIMIT_S: Final = 900.0


class ImageStore:
    """What is on the disk. `open` first; all other calls are on one event loop."""

    def __init__(self, directory: Path, extra_ca: ExtraCa | None = None) -> None:
        self._dir = directory
        self._extra_ca = extra_ca or ExtraCa()
        self._images: dict[tuple[str, str], StoredImage] = {}
        self._held: Counter[str] = Counter()
        self._pulls = 0
        self._blob_gate = asyncio.Lock()
        self._records = asyncio.Lock()
        self._collecting = asyncio.Lock()
        self.collected = 0

    def open(self) -> None:
        """Make the directories, sweep what was left half made, read the records. Blocks. Raises: OSError."""
        for name in ("trees", "refs", "downloads", "work", "trash"):
            (self._dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._dir.chmod(0o700)
        for path in (*(self._dir / "work").iterdir(), *(self._dir / "downloads").glob("*/job-*")):
            path.rename(self._dir / "trash" / f"{path.name}-{secrets.token_hex(4)}")
        for image in read_records(self._dir / "refs"):
            if image.name.startswith(INTERIM):
                remove_file(record_path(self._dir / "refs", image))  # of a build that a crash ended
            elif self.tree(image.digest).is_dir():
                self._images[image.project, image.name] = image
            else:
                log.error("image %s of project %s is gone: its tree is missing", image.name, image.project)

    # What there is.

    def get(self, project: str, name: str) -> StoredImage | None:
        """A project's image by its full name."""
        return self._images.get((project, name))

    def list(self, project: str | None = None) -> list[StoredImage]:
        """The images of a project, or of all, by name."""
        found = [image for image in self._images.values() if project in {None, image.project}]
        return sorted(found, key=lambda image: (image.project, image.name))

    def tree(self, digest: str) -> Path:
        """Where the tree of that content lies."""
        return self._dir / "trees" / digest / "rootfs"

    def box_image(self, image: StoredImage) -> BoxImage:
        """As a driver needs it."""
        config = image.config
        return BoxImage(
            name=image.name,
            digest=image.digest,
            rootfs=self.tree(image.digest),
            env=config.env,
            workdir=config.workdir,
            user=config.user,
            entrypoint=config.entrypoint,
            command=config.command,
            origin=image.origin,
        )

    # Making.

    @asynccontextmanager
    async def workspace(self) -> AsyncGenerator[Path]:
        """A private directory beside the trees, removed afterwards with all that is in it."""
        path = self._dir / "work" / secrets.token_hex(8)
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            await asyncio.shield(self._discard(path))

    @asynccontextmanager
    async def download(self, project: str) -> AsyncGenerator[tuple[Path, str]]:
        """The directory of a project's blobs and the name of a fresh job in it, for one `Transfer`."""
        directory = self._dir / "downloads" / folder_of(project)
        async with self._blob_gate:
            self._pulls += 1
        try:
            (directory / "blobs" / "sha256").mkdir(mode=0o700, parents=True, exist_ok=True)
            yield directory, f"job-{secrets.token_hex(8)}"
        finally:
            self._pulls -= 1

    async def add(
        self,
        image: StoredImage,
        layers: Sequence[LayerFile],
        limits: UnpackLimits,
        *,
        timeout_s: float,
        progress: Callable[[int], None] = lambda _: None,
    ) -> StoredImage:
        """Unpack `layers` and keep the result as `image`, whose `digest` and `size_bytes` are then set.

        Replaces an image of that name. Cancelling or failing leaves nothing. Raises: CoveError.
        """
        async with self.workspace() as work:
            rootfs = work / "tree" / "rootfs"
            rootfs.mkdir(mode=0o755, parents=True)
            rootfs.chmod(0o755)  # whatever the umask
            tree = await unpack_layers(
                layers, rootfs, self._within_disk(limits), timeout_s=timeout_s, progress=progress
            )
            config = image.config
            if self._extra_ca.certificates:
                variables = await asyncio.to_thread(_add_certificates, rootfs, self._extra_ca)
                config = replace(config, env={**variables, **config.env})
                tree = await measure(rootfs, timeout_s=_MEASURE_LIMIT_S)
            await asyncio.to_thread(write_file, rootfs.parent / "image.json", msgspec.json.encode(tree))
            with self._published(rootfs.parent, tree):
                stored = replace(image, digest=tree.digest, size_bytes=tree.size_bytes, config=config)
                await asyncio.shield(self._keep(stored))
        return stored

    async def verify(self, digest: str) -> Tree:
        """Measure a tree again. Raises: EngineFailure when it is not what its name says."""
        with self.hold(digest):
            return await verified(self.tree(digest), digest)

    @contextmanager
    def hold(self, digest: str) -> Generator[Path]:
        """Keep a tree for the time of the context, whoever still names it."""
        self._held[digest] += 1
        try:
            yield self.tree(digest)
        finally:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]

    # Unmaking.

    async def forget(self, image: StoredImage) -> None:
        """Remove the record. The tree goes with the next `collect`, once nothing uses it."""
        if self._images.get((image.project, image.name)) == image:
            del self._images[image.project, image.name]
            await asyncio.shield(self._remove_record(image))

    async def collect(self, used: Callable[[], AbstractSet[str]]) -> int:
        """Remove trees that no record, no hold and no box (`used`: their digests) names, and blobs nobody needs.

        Returns how many trees went.
        """
        async with self._collecting:
            return await self._collect(used)

    async def _collect(self, used: Callable[[], AbstractSet[str]]) -> int:
        present = [path.name for path in await asyncio.to_thread(_listed, self._dir / "trees")]
        # From here to the last rename nothing else runs.
        wanted = {image.digest for image in self._images.values()} | self._held.keys() | used()
        gone = [digest for digest in present if digest not in wanted]
        for digest in gone:
            (self._dir / "trees" / digest).rename(self._dir / "trash" / f"{digest}-{secrets.token_hex(4)}")
        self.collected += len(gone)
        async with self._blob_gate:
            if not self._pulls:
                needed: dict[str, set[str]] = {}
                for image in self._images.values():
                    needed.setdefault(folder_of(image.project), set()).update(image.blobs)
                await asyncio.to_thread(self._drop_blobs, needed)
        await self.empty_trash()
        return len(gone)

    async def empty_trash(self) -> None:
        """Remove what was thrown away."""
        for path in await asyncio.to_thread(_listed, self._dir / "trash"):
            await remove_tree(path)

    def _within_disk(self, limits: UnpackLimits) -> UnpackLimits:
        free = shutil.disk_usage(self._dir).free - _RESERVE
        if free <= 0:
            raise CapacityExceeded("the disk is full: no image can be unpacked", retry_after_s=60)
        return replace(limits, most_bytes=min(limits.most_bytes, free))

    @contextmanager
    def _published(self, made: Path, tree: Tree) -> Generator[None]:
        """Give a finished tree its name, unless one of that content is there; held until the record names it."""
        with self.hold(tree.digest):
            final = self._dir / "trees" / tree.digest
            if not final.exists():
                made.rename(final)
                sync_directory(final.parent)
            yield

    async def _keep(self, image: StoredImage) -> None:
        # Held here, not by the caller alone: it may be cancelled while this goes on.
        with self.hold(image.digest):
            async with self._records:
                path = record_path(self._dir / "refs", image)
                await asyncio.to_thread(write_file, path, msgspec.json.encode(image))
                self._images[image.project, image.name] = image

    async def _remove_record(self, image: StoredImage) -> None:
        async with self._records:
            if (image.project, image.name) not in self._images:  # another may have come by that name meanwhile
                await asyncio.to_thread(remove_file, record_path(self._dir / "refs", image))

    async def _discard(self, path: Path) -> None:
        trash = self._dir / "trash" / path.name
        with contextlib.suppress(FileNotFoundError):
            path.rename(trash)  # noqa: ASYNC240 - a rename takes microseconds, on the loop it is a point in time
            await remove_tree(trash)

    def _drop_blobs(self, wanted: dict[str, set[str]]) -> None:
        """Remove blobs that no image of their project was fetched as (`wanted`), a while after they came."""
        for path in (self._dir / "downloads").glob("*/blobs/sha256/*"):
            project = path.parents[2].name
            with contextlib.suppress(FileNotFoundError):
                is_old = time.time() - path.stat().st_mtime > KEEP_BLOBS_S
                if is_old and f"sha256:{path.name}" not in wanted.get(project, ()):
                    path.unlink()


def _add_certificates(rootfs: Path, extra: ExtraCa) -> dict[str, str]:
    fd = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return add_certificates(fd, extra)
    finally:
        os.close(fd)


def _listed(directory: Path) -> list[Path]:
    return list(directory.iterdir())


async def verified(rootfs: Path, digest: str) -> Tree:
    """Measure a tree. Raises: EngineFailure when it is not what `digest` says."""
    tree = await measure(rootfs, timeout_s=_MEASURE_LIMIT_S)
    if tree.digest != digest:
        raise EngineFailure(
            "the image on this machine's disk is not what it was: remove it and pull or build it again",
            internal=f"{rootfs}: {tree.digest} instead of {digest}",
        )
    return tree


async def remove_tree(path: Path) -> None:
    """Remove a directory that strangers filled: rm(1) follows no link, and needs no turn of our interpreter."""
    process = await asyncio.create_subprocess_exec(
        "/bin/rm", "-rf", "--one-file-system", "--", os.fspath(path), stdin=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_REMOVE_LIMIT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        log.warning("%s could not be removed in time, the next start tries again", path)
