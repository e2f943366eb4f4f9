"""Built-in images: read-only directory trees with a digest, made by `cove setup`. Reads only.

Layout: `<images_dir>/<name>/current/image.json` beside `rootfs/`. `current` is a link that setup moves when an image is
rebuilt; a box keeps the tree it started with.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct, field

from cove.engine.driver import BoxImage
from cove.model.errors import EngineFailure, NotFound
from cove.model.image import ImageInfo


class _ImageFile(Struct, kw_only=True):
    name: str
    digest: str
    env: dict[str, str] = field(default_factory=dict[str, str])
    workdir: str = "/"
    size_bytes: int = 0
    kernels: tuple[str, ...] = ()


class BuiltinImages:
    """The images in a directory. `get` is cached until the link moves: one readlink, 5 µs."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self._cache: dict[str, tuple[str, BoxImage]] = {}

    def get(self, name: str) -> BoxImage:
        """The image. Raises: NotFound (field `image`), EngineFailure when its description is damaged."""
        if "/" in name or name.startswith(".") or "\0" in name:
            raise NotFound(f'no image "{name[:64]}"', field="image")
        current = self._dir / name / "current"
        try:
            target = str(current.readlink())
        except OSError as error:
            raise NotFound(f'no image "{name[:64]}"', field="image") from error
        known = self._cache.get(name)
        if known is not None and known[0] == target:
            return known[1]
        described = self._read(current)
        image = BoxImage(
            name=name,
            digest=described.digest,
            rootfs=current.resolve() / "rootfs",
            env=described.env,
            workdir=described.workdir,
            kernels=described.kernels,
        )
        self._cache[name] = (target, image)
        return image

    def version(self, name: str, digest: str) -> BoxImage:
        """An image as it was when it had that content, while its tree is kept. Raises: NotFound (field `image`)."""
        image = self.get(name)
        if image.digest == digest:
            return image
        for described in self._dir.glob(f"{name}/{digest[:12]}/image.json"):
            found = self._read(described.parent)
            if found.digest == digest:
                rootfs = described.parent / "rootfs"
                return BoxImage(
                    name=name,
                    digest=digest,
                    rootfs=rootfs,
                    env=found.env,
                    workdir=found.workdir,
                    kernels=found.kernels,
                )
        raise NotFound(f'the version of the image "{name[:64]}" that is needed is not here any more', field="image")

    def list(self) -> list[ImageInfo]:
        """All usable images, by name."""
        found: list[ImageInfo] = []
        for current in sorted(self._dir.glob("*/current")):
            described = self._read(current)
            found.append(ImageInfo(name=described.name, digest=described.digest, size_bytes=described.size_bytes))
        return found

    def _read(self, current: Path) -> _ImageFile:
        try:
            return msgspec.json.decode((current / "image.json").read_bytes(), type=_ImageFile)
        except (OSError, msgspec.DecodeError) as error:
            raise EngineFailure(
                f'image "{current.parent.name}" is damaged: rebuild it with `cove setup`',
                internal=str(error),
            ) from error
