"""Images as archives: taking what a caller uploads, giving what a caller wants. Flat memory; a break leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

from cove.core.access import require
from cove.core.following import Voice, following
from cove.core.images import Images
from cove.engine.images.archives import Export, read_archive, write_archive
from cove.engine.images.settings import ImageSettings
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, CapacityExceeded, EngineFailure, TooLarge
from cove.model.image import ImageEvent, ImageInfo, ImageOrigin, ImageStage
from cove.model.reference import parse_local

_PIECE_BYTES: Final = 1024 * 1024
_RESERVE_BYTES: Final = 1024**3


class Archives:
    """Every operation on archives of images. `slots`: so many are read or made at a time, the others wait."""

    def __init__(self, images: Images, settings: ImageSettings, slots: asyncio.Semaphore) -> None:
        self._images = images
        self._settings = settings
        self._slots = slots

    @asynccontextmanager
    async def uploaded(self, who: Principal, chunks: AsyncIterable[bytes]) -> AsyncGenerator[Path]:
        """A file with all of `chunks`, there until the context is left; nothing else lies beside it.

        At most as large as an image may be. Raises: Forbidden, Unsupported, BadRequest (empty), TooLarge,
        CapacityExceeded (disk full).
        """
        require(who, Scope.CREATE)
        async with self._images.workspace() as folder:
            path = folder / "upload"
            with path.open("xb", buffering=0) as file:
                await self._receive(file, chunks, folder)
            yield path

    async def _receive(self, file: IO[bytes], chunks: AsyncIterable[bytes], folder: Path) -> None:
        most = min(self._settings.limits.most_bytes, shutil.disk_usage(folder).free - _RESERVE_BYTES)
        size, waiting, pieces = 0, 0, list[bytes]()
        async for chunk in chunks:
            size += len(chunk)
            if size > self._settings.limits.most_bytes:
                raise TooLarge("the upload is larger than an image may be", field="archive")
            if size > most:
                raise CapacityExceeded("the disk is full: the upload has no room", retry_after_s=60)
            pieces.append(chunk)
            waiting += len(chunk)
            if waiting >= _PIECE_BYTES:
                await _write(file, pieces)
                waiting, pieces = 0, []
        await _write(file, pieces)
        if not size:
            raise BadRequest("the upload is empty", field="archive")

    async def adopt(self, who: Principal, name: str, upload: Path) -> AsyncGenerator[ImageEvent]:
        """Make the image `localhost/NAME` of an archive; the last event is `done`. Closing ends it without a trace.

        Raises: Forbidden, BadRequest, TooLarge, Conflict (a built-in image's name), CapacityExceeded, Unsupported,
        EngineFailure.
        """
        require(who, Scope.CREATE)
        parse_local(name)

        async def work(voice: Voice) -> ImageInfo:
            await voice.say(ImageEvent(stage=ImageStage.RESOLVE))
            async with self._slots, self._images.workspace() as folder:
                settings = self._settings
                found = await read_archive(upload, folder, settings.limits, timeout_s=settings.pull_s)
                total = sum([layer.path.stat().st_size for layer in found.layers])
                return await self._images.adopt_layers(
                    who,
                    name,
                    found.layers,
                    config=found.config,
                    origin=ImageOrigin.IMPORTED,
                    progress=lambda done: voice.mark(ImageStage.UNPACK, done, total),
                )

        async for event in following(work):
            yield event

    @asynccontextmanager
    async def export(self, who: Principal, name: str) -> AsyncGenerator[Export]:
        """The image as an OCI archive; it is made before the context is entered, and gone when it is left.

        Raises: Forbidden, BadRequest, NotFound, TooLarge (it took too long), CapacityExceeded (disk full), Unsupported.
        """
        async with self._images.opened(who, name) as (info, rootfs), self._images.workspace() as folder:
            if info.size_bytes > shutil.disk_usage(folder).free - _RESERVE_BYTES:
                raise CapacityExceeded("the disk is full: the export has no room", retry_after_s=60)
            async with self._slots:
                archive = await write_archive(info, rootfs, folder, timeout_s=self._settings.pull_s)
            yield archive


async def _write(file: IO[bytes], pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    try:
        while data:
            written = await asyncio.to_thread(file.write, data)
            data = data[written:]
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise CapacityExceeded("the disk is full: the upload has no room", retry_after_s=60) from error
        raise EngineFailure("the upload could not be kept", internal=repr(error)) from error
