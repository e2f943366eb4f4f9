"""Between the native wire format and the core's values, about images. Pure functions, no decisions."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final

import msgspec

from cove.dialects.native import wire_images
from cove.dialects.native.times import timestamp
from cove.edge.sse import event
from cove.model.build import BuildOrder, Recipe
from cove.model.errors import BadRequest, CoveError, EngineFailure, FileError, Forbidden, NotFound
from cove.model.image import Credentials, ImageEvent, ImageInfo
from cove.model.sandbox import MIB, Limits

_ENCODE: Final = msgspec.json.Encoder().encode


def image_view(image: ImageInfo) -> wire_images.Image:
    """An image."""
    return wire_images.Image(**_facts(image))


def image_detail_view(image: ImageInfo) -> wire_images.ImageDetail:
    """An image with its configuration."""
    config = image.config
    return wire_images.ImageDetail(
        **_facts(image),
        config=wire_images.ImageConfig(
            env=config.env,
            workdir=config.workdir,
            user=config.user,
            entrypoint=config.entrypoint,
            command=config.command,
            labels=config.labels,
        ),
    )


def credentials_of(body: wire_images.Pull) -> Credentials | None:
    """The login of a pull, None for none."""
    if not (body.username or body.password or body.token):
        return None
    return Credentials(username=body.username, password=body.password, token=body.token)


def recipe_of(body: wire_images.Recipe) -> Recipe:
    """What to build."""
    return Recipe(
        base=body.base,
        files=body.files,
        env=body.env,
        packages=body.packages,
        pip=body.pip,
        npm=body.npm,
        commands=body.commands,
        workdir=body.workdir,
        user=body.user,
        entrypoint=body.entrypoint,
        command=body.command,
        labels=body.labels,
    )


def order_of(query: wire_images.BuildQuery, recipe: Recipe | None) -> BuildOrder:
    """How to build it. `recipe` None: it is in the context."""
    return BuildOrder(
        name=query.name,
        recipe=recipe,
        file=query.file,
        target=query.target,
        args=query.arg,
        driver=query.driver,
        limits=Limits(
            cpus=query.cpus,
            memory_bytes=query.memory_mib * MIB,
            disk_bytes=query.disk_mib * MIB,
        ),
        timeout_s=query.timeout_s,
    )


def encode_event(progress: ImageEvent) -> bytes:
    """Progress as a server-sent event, named after its stage; `done` has the image."""
    name = progress.stage.value.encode()
    if progress.image is not None:
        return event(name, _ENCODE(image_detail_view(progress.image)))
    data = wire_images.ProgressEvent(
        done_bytes=progress.done_bytes, total_bytes=progress.total_bytes, text=progress.text
    )
    return event(name, _ENCODE(data))


def failure_of(progress: ImageEvent) -> CoveError:
    """The error that a `failed` event tells of."""
    kind = _KINDS.get(progress.error, EngineFailure)
    return kind(progress.text, field="image" if issubclass(kind, BadRequest | Forbidden | NotFound) else None)


def _facts(image: ImageInfo) -> dict[str, Any]:
    return {
        "name": image.name,
        "digest": image.digest,
        "size_bytes": image.size_bytes,
        "status": image.status,
        "origin": image.origin.value,
        "manifest_digest": image.manifest_digest or None,
        "created_at": timestamp(image.created_at) if image.created_at else None,
    }


def _kinds(parent: type[CoveError]) -> Iterator[tuple[str, type[CoveError]]]:
    for kind in parent.__subclasses__():
        if kind is not FileError:  # a pull works on no file of a sandbox
            yield kind.kind, kind
            yield from _kinds(kind)


_KINDS: Final = MappingProxyType(dict(_kinds(CoveError)))
