"""What registries and archives say about an image: indexes, manifests, configurations. Parsed strictly. Pure.

Sources: OCI image-spec 1.1 (image-index.md, manifest.md, config.md) and Docker's image manifest version 2, schema 2.
Whatever comes in was written by strangers.
"""

from __future__ import annotations

import hashlib
import platform
import posixpath
import re
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, field

from cove.model.errors import BadRequest, Unsupported
from cove.model.image import ImageConfig

MAX_MANIFEST: Final = 4 * 1024 * 1024
MAX_LAYERS: Final = 127
MAX_ENTRIES: Final = 1024
MAX_TEXT: Final = 64 * 1024
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_VARIANTS: Final = {"amd64": (None, "", "v1"), "arm64": (None, "", "v8")}
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ENV_NAME: Final = re.compile(r"[^=\0]+")
_CONFIGS: Final = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
T = TypeVar("T")


class Platform(Struct, frozen=True):
    """What an entry of an index was built for."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None


class Descriptor(Struct, frozen=True, rename="camel"):
    """A pointer to content."""

    digest: str
    size: int = 0
    media_type: str = ""
    platform: Platform | None = None


class Manifest(Struct, frozen=True, rename="camel"):
    """A manifest or, with `manifests`, an index of several."""

    schema_version: int = 2
    media_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] | None = None


class _Rootfs(Struct, frozen=True):
    diff_ids: tuple[str, ...] = ()


class _Run(Struct, frozen=True, rename="pascal"):
    env: tuple[str, ...] | None = None
    user: str | None = None
    working_dir: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    labels: dict[str, str] | None = None


class Configuration(Struct, frozen=True):
    """An image's configuration, as far as it matters here."""

    architecture: str = ""
    os: str = ""
    rootfs: _Rootfs = field(default_factory=_Rootfs)
    config: _Run | None = None


def digest_of(data: bytes) -> str:
    """The name of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_manifest(raw: bytes) -> Manifest:
    """A manifest or index. Raises: BadRequest, Unsupported."""
    if len(raw) > MAX_MANIFEST:
        raise _bad("its manifest is larger than 4 MiB")
    manifest = _decode(raw, Manifest, "manifest")
    if manifest.schema_version != 2:  # noqa: PLR2004 - the version
        raise Unsupported("this image has a manifest of Docker's version 1, which is not supported", field="image")
    pointers = manifest.manifests if manifest.manifests is not None else (manifest.config, *manifest.layers)
    for pointer in pointers:
        if pointer is None or not _DIGEST.fullmatch(pointer.digest) or pointer.size < 0:
            raise _bad("its manifest points to something without a valid digest")
    if len(manifest.layers) > MAX_LAYERS:
        raise _bad(f"it has more than {MAX_LAYERS} layers")
    if manifest.config is not None and manifest.config.media_type not in {"", *_CONFIGS}:
        raise _bad("it is no container image but another kind of artifact")
    return manifest


def choose_platform(index: Manifest) -> Descriptor:
    """The entry for this machine. Raises: Unsupported."""
    machine = machine_architecture()
    for entry in index.manifests or ():
        built_for = entry.platform
        if built_for is None or built_for.os != "linux" or built_for.architecture != machine:
            continue
        if built_for.variant in _VARIANTS.get(machine, (None, "")):
            return entry
    raise Unsupported(f"this image is not made for linux on {machine}", field="image")


def read_configuration(raw: bytes, *, layers: int) -> Configuration:
    """An image's configuration. `layers`: how many its manifest has. Raises: BadRequest, Unsupported."""
    if len(raw) > MAX_MANIFEST:
        raise _bad("its configuration is larger than 4 MiB")
    found = _decode(raw, Configuration, "configuration")
    machine = machine_architecture()
    if found.os not in {"", "linux"} or found.architecture not in {"", machine}:
        made_for = f"{found.os or 'linux'} on {found.architecture or 'another machine'}"
        raise Unsupported(f"this image is made for {made_for[:80]}, this machine is linux on {machine}", field="image")
    if len(found.rootfs.diff_ids) != layers:
        raise _bad("its configuration and its manifest have different layers")
    if not all(_DIGEST.fullmatch(digest) for digest in found.rootfs.diff_ids):
        raise _bad("its configuration names a layer without a valid digest")
    return found


def image_config(configuration: Configuration) -> ImageConfig:
    """What of it holds for a sandbox. Raises: BadRequest where it is larger than any honest one."""
    run = configuration.config or _Run()
    texts = [*(run.env or ()), *(run.entrypoint or ()), *(run.cmd or ()), run.user or "", run.working_dir or ""]
    texts += [part for pair in (run.labels or {}).items() for part in pair]
    if len(texts) > MAX_ENTRIES or sum(map(len, texts)) > MAX_TEXT:
        raise _bad("its configuration has more than 1024 entries or 64 KiB")
    if any("\0" in text for text in texts):
        raise _bad("its configuration has a NUL character")
    env = {"PATH": DEFAULT_PATH}
    for entry in run.env or ():
        name, has_value, value = entry.partition("=")
        if has_value and _ENV_NAME.fullmatch(name):
            env[name] = value
    return ImageConfig(
        env=env,
        workdir=posixpath.normpath(posixpath.join("/", run.working_dir or "/")),
        user=run.user or None,
        entrypoint=run.entrypoint or (),
        command=run.cmd or (),
        labels=run.labels or {},
    )


def machine_architecture() -> str:
    """This machine's architecture in OCI's words."""
    return _MACHINES.get(platform.machine(), platform.machine())


def _decode(raw: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad(f"its {what} is not valid") from error


def _bad(why: str) -> BadRequest:
    return BadRequest(f"this image cannot be used: {why}", field="image")
