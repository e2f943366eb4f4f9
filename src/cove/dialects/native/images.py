"""Operations on images. What takes long answers as an event stream to those who accept one, else once at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Final

from cove.dialects.native import wire_images
from cove.dialects.native.translate_images import (
    credentials_of,
    encode_event,
    failure_of,
    image_detail_view,
    image_view,
    order_of,
    recipe_of,
)
from cove.edge.decode import body_decoder
from cove.edge.download import Download, Reader
from cove.edge.exchange import Exchange
from cove.edge.interrupt import interruptible
from cove.edge.ops import Answer, Call, Json, Nothing, Op, Raw, empty
from cove.edge.sse import Events
from cove.model.access import Scope
from cove.model.errors import (
    CapacityExceeded,
    Conflict,
    EngineFailure,
    NotFound,
    RegistryError,
    RegistryUnreachable,
    SandboxError,
    TooLarge,
    Unsupported,
)
from cove.model.image import ImageEvent, ImageInfo, ImageStage

TAG: Final = "Images"
EVENT_STREAM: Final = "text/event-stream"
NAMED: Final = "`name` stands in the query, because references have `/` and `:`."
STREAMED: Final = (
    "With `Accept: text/event-stream`: events named after the stage, and last `done` with the image or `error`. Else "
    "one answer at the end. Closing the connection ends it."
)
MAKING: Final = (TooLarge, Conflict, CapacityExceeded, Unsupported, EngineFailure)

_decode_recipe: Final = body_decoder(wire_images.Recipe)


async def list_images(call: Call[None, Nothing]) -> Json:
    """All that the caller may use."""
    return Json(wire_images.ImageList(tuple(map(image_view, call.core.images.list(call.who)))))


async def get_image(call: Call[None, wire_images.ImageQuery]) -> Json:
    """One."""
    return Json(image_detail_view(call.core.images.get(call.who, call.query.name)))


async def remove_image(call: Call[None, wire_images.ImageQuery]) -> Raw:
    """Forget it."""
    await call.core.images.remove(call.who, call.query.name)
    return empty()


async def verify_image(call: Call[None, wire_images.ImageQuery]) -> Json:
    """Measure it again."""
    return Json(image_detail_view(await call.core.images.verify(call.who, call.query.name)))


async def pull_image(call: Call[wire_images.Pull, Nothing]) -> Answer:
    """Fetch it."""
    body = call.body
    return await _answer(
        call.exchange, call.core.images.pull(call.who, body.reference, credentials=credentials_of(body))
    )


async def import_image(call: Call[None, wire_images.ImportQuery]) -> Answer:
    """Take an archive."""
    archives = call.core.archives
    async with AsyncExitStack() as stack:
        upload = await stack.enter_async_context(archives.uploaded(call.who, call.chunks()))
        return await _answer(call.exchange, archives.adopt(call.who, call.query.name, upload), stack.pop_all())


async def build_image(call: Call[None, wire_images.BuildQuery]) -> Answer:
    """Make one out of another."""
    if (call.exchange.header(b"content-type") or b"").startswith(b"application/json"):
        raw = await call.exchange.read_body(call.exchange.limits.json_body_bytes)
        order = order_of(call.query, recipe_of(_decode_recipe(raw)))
        return await _answer(call.exchange, call.core.building.build(call.who, order))
    async with AsyncExitStack() as stack:
        context = await stack.enter_async_context(call.core.archives.uploaded(call.who, call.chunks()))
        events = call.core.building.build(call.who, order_of(call.query, None), context)
        return await _answer(call.exchange, events, stack.pop_all())


async def export_image(call: Call[None, wire_images.ImageQuery]) -> Answer:
    """Give it away."""

    @asynccontextmanager
    async def open_at(_offset: int, _length: int) -> AsyncGenerator[tuple[Reader, int | None]]:
        async with call.core.archives.export(call.who, call.query.name) as export:
            yield export, export.size_bytes

    return Download(open_at, None, [])


async def _answer(exchange: Exchange, events: AsyncGenerator[ImageEvent], held: AsyncExitStack | None = None) -> Answer:
    """The events as they come, or the image in the end. `held` is let go after the last one."""
    source = _source(events, held or AsyncExitStack())
    if EVENT_STREAM in (exchange.text_header("Accept") or ""):
        return Events(source, encode_event)
    made: ImageInfo | None = None
    async with interruptible(exchange), source as seen:
        async for progress in seen:
            made = progress.image or made
    if made is None:
        raise EngineFailure("Cove lost the image that it made")
    return Json(image_detail_view(made))


@asynccontextmanager
async def _source(
    events: AsyncGenerator[ImageEvent], held: AsyncExitStack
) -> AsyncGenerator[AsyncIterator[ImageEvent]]:
    async with held, aclosing(events):
        yield _raising(events)


async def _raising(events: AsyncIterator[ImageEvent]) -> AsyncIterator[ImageEvent]:
    """The events; a failure is raised, so that it ends a stream as every other one is ended."""
    async for progress in events:
        if progress.stage is ImageStage.FAILED:
            raise failure_of(progress)
        yield progress


OPS: Final = (
    Op(
        method="GET",
        path="/images",
        handler=list_images,
        summary="List images",
        description="Those that everybody has, and the project's own.",
        tag=TAG,
        answer=wire_images.ImageList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="DELETE",
        path="/images",
        handler=remove_image,
        summary="Remove an image",
        description=f"{NAMED} Refused while sandboxes run on it.",
        tag=TAG,
        query=wire_images.ImageQuery,
        status=204,
        scopes=(Scope.DESTROY,),
        errors=(NotFound, Conflict),
    ),
    Op(
        method="GET",
        path="/images/inspect",
        handler=get_image,
        summary="Show an image",
        description=NAMED,
        tag=TAG,
        query=wire_images.ImageQuery,
        answer=wire_images.ImageDetail,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="POST",
        path="/images/pull",
        handler=pull_image,
        summary="Pull an image from a registry",
        description=STREAMED,
        tag=TAG,
        body=wire_images.Pull,
        answer=wire_images.ImageDetail,
        scopes=(Scope.CREATE,),
        errors=(NotFound, RegistryError, RegistryUnreachable, *MAKING),
    ),
    Op(
        method="POST",
        path="/images/import",
        handler=import_image,
        summary="Import an image from an archive",
        description=f"The body: an archive of `docker save`, an OCI archive, or a tar of a file system. {STREAMED}",
        tag=TAG,
        query=wire_images.ImportQuery,
        answer=wire_images.ImageDetail,
        scopes=(Scope.CREATE,),
        errors=MAKING,
        upload=True,
    ),
    Op(
        method="POST",
        path="/images/build",
        handler=build_image,
        summary="Build an image",
        description="The body: a recipe with `Content-Type: application/json`, or a tar of the files that it needs, "
        f"with the recipe or Dockerfile in it. {STREAMED} Output lines come as `run` events.",
        tag=TAG,
        query=wire_images.BuildQuery,
        answer=wire_images.ImageDetail,
        scopes=(Scope.CREATE, Scope.EXEC),
        errors=(NotFound, RegistryError, SandboxError, *MAKING),
        upload=True,
    ),
    Op(
        method="POST",
        path="/images/verify",
        handler=verify_image,
        summary="Check an image",
        description="Measures its files again and compares; 500 if it is not what it was.",
        tag=TAG,
        query=wire_images.ImageQuery,
        answer=wire_images.ImageDetail,
        scopes=(Scope.READ,),
        errors=(NotFound, EngineFailure),
        watched=True,
    ),
    Op(
        method="GET",
        path="/images/export",
        handler=export_image,
        summary="Export an image",
        description="As an OCI archive.",
        tag=TAG,
        query=wire_images.ImageQuery,
        media_type="application/octet-stream",
        scopes=(Scope.READ,),
        errors=(NotFound, CapacityExceeded, EngineFailure),
    ),
)
