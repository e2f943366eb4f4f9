"""Files of a run."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from cove.dialects.isorun import wire
from cove.dialects.isorun.translate import run_ref
from cove.edge.download import Download, Reader
from cove.edge.ops import Answer, Call, Json, Op
from cove.model.access import Scope
from cove.model.errors import AgentTimeout, AgentViolation, Conflict, FileError, NotFound, SandboxGone

TAG: Final = "Files"
ERRORS: Final = (NotFound, Conflict, FileError, SandboxGone, AgentTimeout, AgentViolation)


async def upload_file(call: Call[None, wire.Path]) -> Json:
    """Take its bytes, directories above it included."""
    path = call.query.path
    info = await call.core.files.write(call.who, run_ref(call.path["id"]), path, call.chunks(), parents=True)
    return Json(wire.Uploaded(path, info.size))


async def download_file(call: Call[wire.Ignored, wire.Path]) -> Answer:
    """Give its bytes."""
    ref, path = run_ref(call.path["id"]), call.query.path

    @asynccontextmanager
    async def open_at(offset: int, length: int) -> AsyncGenerator[tuple[Reader, int | None]]:
        async with call.core.files.read(call.who, ref, path, offset=offset, length=length) as reader:
            yield reader, reader.info.size or None

    return Download(open_at, None, [])


async def list_files(call: Call[wire.Ignored, wire.Path]) -> Json:
    """The names in a directory."""
    found = await call.core.files.names(call.who, run_ref(call.path["id"]), call.query.path)
    return Json(wire.Entries(tuple(found)))


OPS: Final = (
    Op(
        method="POST",
        path="/v1/runs/{id}/files/upload",
        handler=upload_file,
        summary="Upload a file",
        description="The raw body, of any size. Directories above it are made.",
        tag=TAG,
        query=wire.Path,
        answer=wire.Uploaded,
        scopes=(Scope.FILES,),
        errors=ERRORS,
        upload=True,
    ),
    Op(
        method="GET",
        path="/v1/runs/{id}/files/download",
        handler=download_file,
        summary="Download a file",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Path,
        media_type="application/octet-stream",
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/v1/runs/{id}/files",
        handler=list_files,
        summary="List a directory",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Path,
        answer=wire.Entries,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
)
