"""Archives of images: read what somebody sent, write what somebody wants. The work on hostile bytes is done confined.

Read: what `docker save` writes, OCI archives, and plain tars of a file system, each also packed by gzip or zstd.
Written: OCI archives (OCI image-spec 1.1, image-layout.md). Everything lies in a directory of the caller's.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import stat
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from cove.engine.confined.process import CAP_SETGID, CAP_SETUID, Confinement, python_program
from cove.engine.images.dialogue import converse
from cove.engine.images.manifests import (
    DEFAULT_PATH,
    MAX_LAYERS,
    MAX_MANIFEST,
    Manifest,
    choose_platform,
    digest_of,
    image_config,
    machine_architecture,
    read_configuration,
    read_manifest,
)
from cove.engine.images.settings import UnpackLimits
from cove.engine.images.unpack import LayerFile
from cove.model.errors import BadRequest, EngineFailure, TooLarge
from cove.model.image import ImageConfig, ImageInfo

CAP_DAC_READ_SEARCH: Final = 2
MAX_PICKED: Final = 1024 * 1024
"""Largest recipe or Dockerfile in a context."""

_MEMORY_BYTES: Final = 4 * 1024**3
_SLACK_BYTES: Final = 64 * 1024**2
_MAX_LINKS: Final = 8
_PIECE_BYTES: Final = 1024 * 1024
_BLOCK: Final = 512
_OCI: Final = "application/vnd.oci.image"


class Contents(Struct, frozen=True, kw_only=True):
    """What an archive holds: layers to unpack in order, and how the image runs."""

    layers: tuple[LayerFile, ...]
    config: ImageConfig


class _Saved(Struct, frozen=True, rename="pascal"):
    """An image in the `manifest.json` of `docker save`."""

    config: str
    layers: tuple[str, ...]


class _Parts:
    """The parts of an image archive, by name. Their files were made by a program that read hostile bytes."""

    def __init__(self, folder: Path, numbers: dict[str, int], links: dict[str, str]) -> None:
        self._folder = folder
        self._numbers = numbers
        self._links = links

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def path(self, name: str) -> Path:
        """The file of a part, through the archive's own links. Raises: BadRequest."""
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        number = self._numbers.get(name)
        if number is None:
            raise BadRequest("the archive lacks a part that it names", field="archive")
        path = self._folder / str(number)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise EngineFailure("the archive could not be read", internal=f"{path} is no file")
        return path

    def read(self, name: str) -> bytes:
        """A small part. Raises: BadRequest, TooLarge."""
        with self.path(name).open("rb") as file:
            data = file.read(MAX_MANIFEST + 1)
        if len(data) > MAX_MANIFEST:
            raise TooLarge("the archive has a manifest or configuration of more than 4 MiB", field="archive")
        return data

    def blob(self, digest: str) -> bytes:
        """A small blob, checked. Raises: BadRequest, TooLarge."""
        data = self.read(_blob(digest))
        if digest_of(data) != digest:
            raise BadRequest("a part of the archive is not what its digest says", field="archive")
        return data


async def read_archive(upload: Path, folder: Path, limits: UnpackLimits, *, timeout_s: float) -> Contents:
    """What `upload` is; its parts are put into the empty directory `folder`, where the layers then lie.

    Raises: BadRequest (damaged), TooLarge (a limit), CapacityExceeded (disk full), Unsupported (another machine's).
    """
    found = await _split(upload, folder, limits, None, timeout_s)
    if "rootfs" in found:
        return Contents(layers=(LayerFile(path=upload),), config=ImageConfig(env={"PATH": DEFAULT_PATH}))
    parts = _Parts(folder, found["parts"], found["links"])
    return await asyncio.to_thread(_read_layout if "oci-layout" in parts else _read_saved, parts)


async def pick_file(upload: Path, folder: Path, name: str, limits: UnpackLimits, *, timeout_s: float) -> bytes:
    """One file of at most 1 MiB out of a tar. Raises: BadRequest (field `file`: it is not there), TooLarge."""
    wanted = posixpath.normpath("/" + name).lstrip("/")
    found = await _split(upload, folder, limits, wanted, timeout_s)
    numbers: dict[str, int] = found.get("parts", {})
    if not numbers:
        raise BadRequest(f"the uploaded files have no {name[:200]}", field="file")
    path = _Parts(folder, numbers, {}).path(next(iter(numbers)))
    return await asyncio.to_thread(path.read_bytes)


class Export(Struct, frozen=True, kw_only=True):
    """An OCI archive on its way out: iterate over its bytes, once. `layer` is a file that must stay until then."""

    size_bytes: int
    files: tuple[tuple[str, bytes], ...]
    layer_name: str
    layer: Path

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes of the archive, in pieces."""
        for name, data in self.files:
            yield _head(name, len(data)) + data + bytes(-len(data) % _BLOCK)
        size = self.layer.stat().st_size
        yield _head(self.layer_name, size)
        with self.layer.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
                yield piece
        yield bytes(-size % _BLOCK + 2 * _BLOCK)


async def write_archive(
    image: ImageInfo,
    rootfs: Path,
    folder: Path,
    *,
    timeout_s: float,
    progress: Callable[[int], None] = lambda _: None,
) -> Export:
    """The image as an OCI archive of one layer, which is made in `folder` first: the archive's head has its digest.

    Raises: CapacityExceeded (disk full), TooLarge (`timeout_s` over), EngineFailure.
    """
    layer = folder / "layer"
    layer.touch(mode=0o600)
    spec = Confinement(
        argv=python_program("pack"),
        binds=((rootfs, "/target", False), (layer, "/layer", True)),
        capabilities=(CAP_DAC_READ_SEARCH,),
        limits={"RLIMIT_AS": _MEMORY_BYTES},
    )
    facts = await converse(spec, {}, progress, what="archive", timeout_s=timeout_s)
    described = _described(image, facts)
    name = _blob(facts["digest"])
    archive = Export(size_bytes=0, files=described, layer_name=name, layer=layer)
    return msgspec.structs.replace(archive, size_bytes=_size(described, facts["size"]))


def _described(image: ImageInfo, layer: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
    """The small files of an OCI archive, in the order in which they go out."""
    run = image.config
    config = _json(
        {
            "architecture": machine_architecture(),
            "os": "linux",
            "config": {
                "Env": [f"{name}={value}" for name, value in run.env.items()],
                "WorkingDir": run.workdir,
                **({"User": run.user} if run.user else {}),
                **({"Entrypoint": run.entrypoint} if run.entrypoint else {}),
                **({"Cmd": run.command} if run.command else {}),
                **({"Labels": run.labels} if run.labels else {}),
            },
            "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"]]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": _pointer(f"{_OCI}.config.v1+json", config),
            "layers": [
                {"mediaType": f"{_OCI}.layer.v1.tar+gzip", "digest": layer["digest"], "size": layer["size"]},
            ],
        }
    )
    # The last part of the name: what follows a colon is what other tools take for the tag.
    tag = image.name.rpartition("/")[2].partition("@")[0].partition(":")[2] or "latest"
    index = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.index.v1+json",
            "manifests": [
                {
                    **_pointer(f"{_OCI}.manifest.v1+json", manifest),
                    "platform": {"architecture": machine_architecture(), "os": "linux"},
                    "annotations": {"org.opencontainers.image.ref.name": tag},
                }
            ],
        }
    )
    return (
        ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
        ("index.json", index),
        (_blob(digest_of(manifest)), manifest),
        (_blob(digest_of(config)), config),
    )


def _read_layout(parts: _Parts) -> Contents:
    """An OCI image layout: an index, perhaps one below it, that names this machine's manifest."""
    manifest = read_manifest(parts.read("index.json"))
    for _ in range(_MAX_LINKS):
        if manifest.manifests is None:
            return _read_manifest(parts, manifest)
        named = manifest.manifests
        entry = named[0] if len(named) == 1 else choose_platform(manifest)
        manifest = read_manifest(parts.blob(entry.digest))
    raise BadRequest("the archive's indexes are nested too deeply", field="archive")


def _read_manifest(parts: _Parts, manifest: Manifest) -> Contents:
    if manifest.config is None:
        raise BadRequest("the archive has a manifest without a configuration", field="archive")
    configuration = read_configuration(parts.blob(manifest.config.digest), layers=len(manifest.layers))
    layers = tuple(
        LayerFile(path=parts.path(_blob(layer.digest)), digest=layer.digest, diff_id=diff_id)
        for layer, diff_id in zip(manifest.layers, configuration.rootfs.diff_ids, strict=True)
    )
    return Contents(layers=layers, config=image_config(configuration))


def _read_saved(parts: _Parts) -> Contents:
    """Docker's own layout, of before it took up OCI's."""
    try:
        saved = msgspec.json.decode(parts.read("manifest.json"), type=tuple[_Saved, ...])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest("the archive has a manifest.json that is not valid", field="archive") from error
    if len(saved) != 1:
        raise BadRequest(f"the archive has {len(saved)} images: save one at a time", field="archive")
    if len(saved[0].layers) > MAX_LAYERS:
        raise BadRequest(f"the archive has more than {MAX_LAYERS} layers", field="archive")
    configuration = read_configuration(parts.read(saved[0].config), layers=len(saved[0].layers))
    layers = tuple(
        LayerFile(path=parts.path(name), diff_id=diff_id)
        for name, diff_id in zip(saved[0].layers, configuration.rootfs.diff_ids, strict=True)
    )
    return Contents(layers=layers, config=image_config(configuration))


async def _split(
    upload: Path, folder: Path, limits: UnpackLimits, pick: str | None, timeout_s: float
) -> dict[str, Any]:
    most = limits.most_bytes if pick is None else MAX_PICKED
    order = {"pick": pick, "most_bytes": most, "most_archive": limits.most_bytes, "most_ratio": limits.most_ratio}
    spec = Confinement(
        argv=python_program("split"),
        binds=((upload, "/archive", False), (folder, "/target", True)),
        # To run a decompressor as nobody.
        capabilities=(CAP_SETGID, CAP_SETUID),
        limits={"RLIMIT_AS": _MEMORY_BYTES, "RLIMIT_FSIZE": most + _SLACK_BYTES},
    )
    return await converse(spec, order, lambda _: None, what="archive", timeout_s=timeout_s)


def _head(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def _size(files: tuple[tuple[str, bytes], ...], layer_bytes: int) -> int:
    sizes = [*(len(data) for _, data in files), layer_bytes]
    return sum(_BLOCK + size + -size % _BLOCK for size in sizes) + 2 * _BLOCK


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _pointer(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
