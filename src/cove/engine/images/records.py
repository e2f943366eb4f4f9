"""One small file per image of a project: what it is called, which tree it is, how it runs. Whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct, field

from cove.model.image import ImageConfig, ImageInfo, ImageOrigin

log = logging.getLogger(__name__)


class StoredImage(Struct, frozen=True, kw_only=True):
    """An image of a project. `digest` names its tree, `blobs` are what it was fetched as."""

    project: str
    name: str
    digest: str
    size_bytes: int
    origin: ImageOrigin
    created_at: float
    manifest_digest: str = ""
    config: ImageConfig = field(default_factory=ImageConfig)
    blobs: tuple[str, ...] = ()

    @property
    def info(self) -> ImageInfo:
        """As a caller sees it."""
        return ImageInfo(
            name=self.name,
            digest=self.digest,
            size_bytes=self.size_bytes,
            origin=self.origin,
            manifest_digest=self.manifest_digest,
            project=self.project,
            created_at=self.created_at,
            config=self.config,
        )


def folder_of(project: str) -> str:
    """A project's name as a directory's, whatever is in it."""
    return hashlib.sha256(project.encode()).hexdigest()[:16]


def record_path(directory: Path, image: StoredImage) -> Path:
    """Where the record of `image` lies."""
    return directory / folder_of(image.project) / f"{hashlib.sha256(image.name.encode()).hexdigest()[:32]}.json"


def read_records(directory: Path) -> Iterator[StoredImage]:
    """Every record; one that is damaged is logged and left."""
    for path in sorted(directory.glob("*/*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=StoredImage)
        except (OSError, msgspec.DecodeError):
            log.exception("the record of an image is damaged: %s", path)


def write_file(path: Path, data: bytes) -> None:
    """Give `path` this content, on the disk, in one step."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(f".{secrets.token_hex(4)}.partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Remove it for good. Idempotent."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Let what was renamed in it survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
