"""Images: what there is, and fetching more."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.edge.ops import Call, Json, Op
from cove.model.access import Scope
from cove.model.errors import BadRequest, Forbidden, Unsupported
from cove.model.image import ImageInfo

TAG: Final = "Images"
_READY: Final = "ready"
_ACCEPTED: Final = 202


def _status(image: ImageInfo) -> str:
    return image.status if image.status in {_READY, "failed"} else "building"


def _view(image: ImageInfo) -> wire.Image:
    return wire.Image(name=image.name, size_bytes=image.size_bytes, status=_status(image), error=image.failure)


async def list_images(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """Ready ones, those on their way, and those that did not come."""
    found = call.core.images.tried(call.who)
    return Json(wire.ImageList(tuple(map(_view, found))))


async def build_image(call: Call[wire.Build, wire.Ignored]) -> Json:
    """Fetch one from its registry, behind this answer."""
    found = await call.core.images.begin(call.who, call.body.image)
    view = wire.Built(image=call.body.image, status=_status(found), error=found.failure)
    return Json(view, status=200 if view.status == _READY else _ACCEPTED)


OPS: Final = (
    Op(
        method="GET",
        path="/v1/images",
        handler=list_images,
        summary="List images",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        answer=wire.ImageList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="POST",
        path="/v1/images/build",
        handler=build_image,
        summary="Fetch an image from a registry",
        description="200 when it is there, else 202: the list of images tells how it goes.",
        tag=TAG,
        body=wire.Build,
        query=wire.Ignored,
        answer=wire.Built,
        scopes=(Scope.CREATE,),
        errors=(BadRequest, Forbidden, Unsupported),
    ),
)
