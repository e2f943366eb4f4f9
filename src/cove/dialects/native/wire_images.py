"""What goes over the wire about images: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from cove.dialects.native.wire import Cpus, DiskMib, DriverName, MemoryMib, Request, Seconds

ImageName = Annotated[str, Meta(min_length=1, max_length=512, description="A built-in image's name or a reference.")]
LocalName = Annotated[str, Meta(min_length=1, max_length=255, description="`NAME` or `NAME:TAG`, without a registry.")]
Secret = Annotated[str, Meta(max_length=16384)]


class ImageQuery(Request, frozen=True):
    """Which image. In the query, because references have `/` and `:`."""

    name: ImageName


class Pull(Request, frozen=True):
    """An image to fetch. The login is used for this pull only and kept nowhere."""

    reference: ImageName
    username: Secret = ""
    password: Secret = ""
    token: Secret = ""


class ImportQuery(Request, frozen=True):
    """What the uploaded archive becomes."""

    name: LocalName


class Recipe(Request, frozen=True):
    """How an image is made out of another one, in this order."""

    base: Annotated[ImageName, Meta(description="The image to start from.")] = field(default="base", name="from")
    files: Annotated[dict[str, str], Meta(description="Absolute path -> text of the file.")] = field(
        default_factory=dict[str, str]
    )
    env: dict[str, str] = field(default_factory=dict[str, str])
    packages: Annotated[tuple[str, ...], Meta(description="For apt-get install.")] = ()
    pip: Annotated[tuple[str, ...], Meta(description="For pip install.")] = ()
    npm: Annotated[tuple[str, ...], Meta(description="For npm install --global.")] = ()
    commands: Annotated[tuple[str, ...], Meta(description="For /bin/sh -c, as root.")] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])


class BuildQuery(Request, frozen=True):
    """What is built, from which file of the context, and in what kind of sandbox."""

    name: LocalName
    file: Annotated[
        str,
        Meta(
            max_length=1024, description="A file of the context: a recipe if it ends in .toml or .json, or Dockerfile."
        ),
    ] = "Dockerfile"
    target: Annotated[str, Meta(max_length=128, description="The stage of a Dockerfile to stop at.")] | None = None
    arg: Annotated[dict[str, str], Meta(description="Values for ARG in a Dockerfile.")] = field(
        default_factory=dict[str, str]
    )
    driver: DriverName | None = None
    cpus: Cpus = 1.0
    memory_mib: MemoryMib = 1024
    disk_mib: DiskMib = 10240
    timeout_s: Seconds = 1800.0


class Image(Struct, frozen=True, kw_only=True):
    """An image; `status` is ready, pulling, building or failed, `origin` builtin, pulled, built or imported."""

    name: str
    digest: str
    size_bytes: int
    status: str
    origin: str
    manifest_digest: str | None
    created_at: str | None


class ImageList(Struct, frozen=True):
    """Images that the caller may use."""

    images: tuple[Image, ...]


class ImageConfig(Struct, frozen=True, kw_only=True):
    """What an image says about running it."""

    env: dict[str, str]
    workdir: str
    user: str | None
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    labels: dict[str, str]


class ImageDetail(Image, frozen=True):
    """One image with its configuration."""

    config: ImageConfig


class ProgressEvent(Struct, frozen=True, kw_only=True):
    """Data of `resolve`, `download`, `unpack` and `run`. `total_bytes` 0: not known. `text`: a line of a build."""

    done_bytes: int
    total_bytes: int
    text: str
