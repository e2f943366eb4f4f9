"""Operations on files."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from cove.dialects.native import wire
from cove.dialects.native.translate import file_page_view, file_view, mode_of, sandbox_ref
from cove.edge.download import Download, Reader, parse_range
from cove.edge.errors import RangeUnsatisfiable, Where
from cove.edge.ops import Answer, Call, Json, Nothing, Op
from cove.model.access import Scope
from cove.model.errors import AgentTimeout, AgentViolation, FileError, Gone, NotFound, SandboxGone

TAG: Final = "Files"
ERRORS: Final = (NotFound, Gone, FileError, SandboxGone, AgentTimeout, AgentViolation)
BYTES: Final = "application/octet-stream"


async def stat_file(call: Call[None, wire.PathQuery]) -> Json:
    """One entry."""
    return Json(file_view(await call.core.files.stat(call.who, sandbox_ref(call.path["id"]), call.query.path)))


async def list_files(call: Call[None, wire.ListQuery]) -> Json:
    """A page of a directory."""
    query, ref = call.query, sandbox_ref(call.path["id"])
    page = await call.core.files.list_page(call.who, ref, query.path, limit=query.limit, cursor=query.cursor)
    return Json(file_page_view(page))


async def read_file(call: Call[None, wire.PathQuery]) -> Answer:
    """Its bytes."""
    ref, path, wanted = sandbox_ref(call.path["id"]), call.query.path, call.exchange.text_header("Range")
    span = None
    if wanted is not None:
        span = parse_range(wanted, (await call.core.files.stat(call.who, ref, path, follow=True)).size)

    @asynccontextmanager
    async def open_at(offset: int, length: int) -> AsyncGenerator[tuple[Reader, int | None]]:
        async with call.core.files.read(call.who, ref, path, offset=offset, length=length) as reader:
            yield reader, (span.length if span else reader.info.size or None)

    return Download(open_at, span, [])


async def write_file(call: Call[None, wire.UploadQuery]) -> Json:
    """Take its bytes."""
    query, ref = call.query, sandbox_ref(call.path["id"])
    info = await call.core.files.write(
        call.who,
        ref,
        query.path,
        call.chunks(),
        mode=mode_of(query.mode),
        parents=query.parents,
        exclusive=query.exclusive,
        sync=query.sync,
    )
    return Json(file_view(info))


async def make_directory(call: Call[wire.Mkdir, Nothing]) -> Json:
    """Make one."""
    body, ref = call.body, sandbox_ref(call.path["id"])
    mode = mode_of(body.mode, where=Where.BODY)
    return Json(file_view(await call.core.files.mkdir(call.who, ref, body.path, mode=mode, parents=body.parents)))


async def move_file(call: Call[wire.Move, Nothing]) -> Json:
    """Rename."""
    body, ref = call.body, sandbox_ref(call.path["id"])
    info = await call.core.files.move(call.who, ref, body.source, body.target, overwrite=body.overwrite)
    return Json(file_view(info))


async def remove_file(call: Call[None, wire.RemoveQuery]) -> Json:
    """Remove."""
    query, ref = call.query, sandbox_ref(call.path["id"])
    return Json(wire.Removed(await call.core.files.remove(call.who, ref, query.path, recursive=query.recursive)))


def _content(method: str, summary: str) -> Op:
    return Op(
        method=method,
        path="/sandboxes/{id}/files/content",
        handler=read_file,
        name="read_file" if method == "GET" else "head_file",
        summary=summary,
        description="One byte range is honoured (206, 416).",
        tag=TAG,
        query=wire.PathQuery,
        media_type=BYTES,
        scopes=(Scope.FILES,),
        errors=(*ERRORS, RangeUnsatisfiable),
        headers=(("Range", "`bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-LAST_N`"),),
    )


OPS: Final = (
    Op(
        method="GET",
        path="/sandboxes/{id}/files",
        handler=stat_file,
        summary="Show a file or directory",
        description="Links are not followed.",
        tag=TAG,
        query=wire.PathQuery,
        answer=wire.FileInfo,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="DELETE",
        path="/sandboxes/{id}/files",
        handler=remove_file,
        summary="Remove a file or directory",
        tag=TAG,
        query=wire.RemoveQuery,
        answer=wire.Removed,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/files/list",
        handler=list_files,
        summary="List a directory",
        tag=TAG,
        query=wire.ListQuery,
        answer=wire.FileList,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    _content("GET", "Download a file"),
    _content("HEAD", "Show a download's headers"),
    Op(
        method="PUT",
        path="/sandboxes/{id}/files/content",
        handler=write_file,
        summary="Upload a file",
        description="The raw body, of any size. Readers see the old file or the whole new one.",
        tag=TAG,
        query=wire.UploadQuery,
        answer=wire.FileInfo,
        scopes=(Scope.FILES,),
        errors=ERRORS,
        upload=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/files/mkdir",
        handler=make_directory,
        summary="Make a directory",
        tag=TAG,
        body=wire.Mkdir,
        answer=wire.FileInfo,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/files/move",
        handler=move_file,
        summary="Move or rename",
        tag=TAG,
        body=wire.Move,
        answer=wire.FileInfo,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
)
