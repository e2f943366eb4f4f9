"""Files of sessions, base64 in JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from posixpath import join
from typing import Final

from cove.dialects.isol8 import wire_sessions as wire
from cove.edge.base64file import Base64File, Reader
from cove.edge.errors import Malformed, Where
from cove.edge.ops import Answer, Call, Json, Nothing, Op
from cove.model.access import Scope
from cove.model.errors import FileError, NotFound
from cove.model.execution import EXECUTION_GID, EXECUTION_UID, HOME

TAG: Final = "Files"
BODY_BYTES: Final = 128 * 1024 * 1024
_PIECE: Final = 256 * 1024


async def put_file(call: Call[wire.FilePut, Nothing]) -> Json:
    """Take one, as it is, over whatever was there."""
    body = call.body
    sandbox = await call.core.execution_sessions.use(call.who, body.session_id)
    content = await asyncio.to_thread(decoded, body.content)
    await call.core.files.write(
        call.who, sandbox, join(HOME, body.path), _pieces(content), uid=EXECUTION_UID, gid=EXECUTION_GID
    )
    return Json(wire.Ok())


async def get_file(call: Call[None, wire.FileQuery]) -> Answer:
    """Give one."""
    query = call.query
    if not query.session_id or not query.path:
        raise Malformed("Missing sessionId or path", where=Where.QUERY)
    sandbox = await call.core.execution_sessions.use(call.who, query.session_id)

    @asynccontextmanager
    async def open_it() -> AsyncGenerator[Reader]:
        async with call.core.files.read(call.who, sandbox, join(HOME, query.path)) as reader:
            yield reader

    return Base64File(open_it)


def decoded(content: str | None) -> bytes:
    """Base64 in either alphabet, with or without padding, as JavaScript's `Buffer` reads it. Raises: Malformed."""
    if content is None:
        raise Malformed("content is required", where=Where.BODY, field="content")
    try:
        raw = content.translate(_ALPHABET).rstrip("=").encode("ascii")
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise Malformed("content must be base64", where=Where.BODY, field="content") from error


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), _PIECE):
        yield data[at : at + _PIECE]


_ALPHABET: Final = str.maketrans({"-": "+", "_": "/", " ": None, "\n": None, "\r": None, "\t": None})

OPS: Final = (
    Op(
        method="POST",
        path="/file",
        handler=put_file,
        summary="Put a file into a session",
        tag=TAG,
        body=wire.FilePut,
        body_bytes=BODY_BYTES,
        answer=wire.Ok,
        scopes=(Scope.FILES,),
        errors=(NotFound, FileError),
    ),
    Op(
        method="GET",
        path="/file",
        handler=get_file,
        summary="Get a file of a session",
        tag=TAG,
        query=wire.FileQuery,
        answer=wire.FileContent,
        scopes=(Scope.FILES,),
        errors=(NotFound, FileError),
    ),
)
