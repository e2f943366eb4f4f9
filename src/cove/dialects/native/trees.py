"""Operations on whole directory trees."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from cove.dialects.native import wire
from cove.dialects.native import wire_trees as trees
from cove.dialects.native.translate import file_view, sandbox_ref
from cove.dialects.native.translate_trees import (
    attributes_of,
    encode_found,
    encode_matches,
    replace_of,
    replacement_view,
    search_of,
    unpacking_of,
    usage_view,
    walk_of,
)
from cove.edge.download import Download, Reader
from cove.edge.ndjson import MEDIA_TYPE, Lines
from cove.edge.ops import Answer, Call, Json, Nothing, Op
from cove.model.access import Scope
from cove.model.errors import AgentTimeout, AgentViolation, FileError, Gone, NotFound, SandboxGone
from cove.model.files import FileKind
from cove.model.trees import Walk

TAG: Final = "Files"
ERRORS: Final = (NotFound, Gone, FileError, SandboxGone, AgentTimeout, AgentViolation)
TAR: Final = "application/x-tar"
GZIP: Final = "application/gzip"


async def find_files(call: Call[None, trees.FindQuery]) -> Answer:
    """A tree's entries."""
    query, ref = call.query, sandbox_ref(call.path["id"])
    kinds = tuple(FileKind(kind) for kind in query.kind)
    found = call.core.trees.find(call.who, ref, query.path, walk_of(query), kinds=kinds, limit=query.limit)
    return Lines(found, encode_found)


async def search_files(call: Call[None, trees.SearchQuery]) -> Answer:
    """Lines that match."""
    query, ref = call.query, sandbox_ref(call.path["id"])
    found = call.core.trees.search(
        call.who, ref, query.path, walk_of(query), search=search_of(query), limit=query.limit
    )
    return Lines(found, encode_matches)


async def replace_in_files(call: Call[trees.Replace, Nothing]) -> Json:
    """Rewrite what matches."""
    body, ref = call.body, sandbox_ref(call.path["id"])
    done = await call.core.trees.replace(
        call.who,
        ref,
        body.path,
        walk_of(body),
        search=replace_of(body),
        replacement=body.replacement,
        limit=body.limit,
        dry_run=body.dry_run,
    )
    return Json(replacement_view(done))


async def tree_usage(call: Call[None, trees.UsageQuery]) -> Json:
    """A tree's sum."""
    query, ref = call.query, sandbox_ref(call.path["id"])
    walk = Walk(exclude=query.exclude, timeout_s=query.timeout_s)
    return Json(usage_view(await call.core.trees.usage(call.who, ref, query.path, walk)))


async def pack_directory(call: Call[None, trees.PackQuery]) -> Answer:
    """Its content as a tar."""
    query, ref = call.query, sandbox_ref(call.path["id"])

    @asynccontextmanager
    async def open_at(_offset: int, _length: int) -> AsyncGenerator[tuple[Reader, int | None]]:
        async with call.core.trees.pack(
            call.who, ref, query.path, exclude=query.exclude, gzip=query.gzip, max_bytes=query.max_bytes
        ) as reader:
            yield reader, None

    return Download(open_at, None, [], GZIP if query.gzip else TAR)


async def unpack_archive(call: Call[None, trees.UnpackQuery]) -> Json:
    """Take a tar's members."""
    query, ref = call.query, sandbox_ref(call.path["id"])
    done = await call.core.trees.unpack(call.who, ref, query.path, call.chunks(), unpacking_of(query))
    return Json(trees.Unpacked(entries=done.entries, bytes=done.bytes))


async def make_link(call: Call[trees.Link, Nothing]) -> Json:
    """Make one."""
    body, ref = call.body, sandbox_ref(call.path["id"])
    info = await call.core.trees.link(
        call.who, ref, body.path, body.target, hard=body.hard, overwrite=body.overwrite, parents=body.parents
    )
    return Json(file_view(info))


async def set_attributes(call: Call[trees.SetAttributes, Nothing]) -> Json:
    """Change modes or owners."""
    body, ref = call.body, sandbox_ref(call.path["id"])
    return Json(file_view(await call.core.files.set_attributes(call.who, ref, body.path, attributes_of(body))))


OPS: Final = (
    Op(
        method="GET",
        path="/sandboxes/{id}/files/find",
        handler=find_files,
        summary="List a directory tree",
        description='One FileInfo a line, as they are found; the last line is `{"end":…}` or `{"error":…}`.',
        tag=TAG,
        query=trees.FindQuery,
        answer=trees.FoundLine,
        media_type=MEDIA_TYPE,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/files/search",
        handler=search_files,
        summary="Search the content of files",
        description='One match a line, as they are found; the last line is `{"end":…}` or `{"error":…}`.',
        tag=TAG,
        query=trees.SearchQuery,
        answer=trees.MatchLine,
        media_type=MEDIA_TYPE,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/files/replace",
        handler=replace_in_files,
        summary="Replace in files",
        description="Each file is rewritten whole or not at all. `dry_run` tells what would be.",
        tag=TAG,
        body=trees.Replace,
        answer=trees.Replacement,
        scopes=(Scope.FILES,),
        errors=ERRORS,
        watched=True,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/files/usage",
        handler=tree_usage,
        summary="Add up a directory tree",
        tag=TAG,
        query=trees.UsageQuery,
        answer=trees.TreeUsage,
        scopes=(Scope.FILES,),
        errors=ERRORS,
        watched=True,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/files/archive",
        handler=pack_directory,
        summary="Download a directory",
        description="As a tar stream, names relative to the directory; with `gzip` packed by gzip.",
        tag=TAG,
        query=trees.PackQuery,
        media_type=TAR,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="PUT",
        path="/sandboxes/{id}/files/archive",
        handler=unpack_archive,
        summary="Upload a directory",
        description="A tar, packed by gzip or not at all. Members that reach outside or are no files are refused.",
        tag=TAG,
        query=trees.UnpackQuery,
        answer=trees.Unpacked,
        scopes=(Scope.FILES,),
        errors=ERRORS,
        upload=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/files/link",
        handler=make_link,
        summary="Make a link",
        tag=TAG,
        body=trees.Link,
        answer=wire.FileInfo,
        scopes=(Scope.FILES,),
        errors=ERRORS,
    ),
    Op(
        method="PATCH",
        path="/sandboxes/{id}/files",
        handler=set_attributes,
        summary="Change modes or owners",
        description="With `recursive` of all below a directory; links keep their targets' out of it.",
        tag=TAG,
        body=trees.SetAttributes,
        answer=wire.FileInfo,
        scopes=(Scope.FILES,),
        errors=ERRORS,
        watched=True,
    ),
)
