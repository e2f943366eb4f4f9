"""Executions: for a result, as a stream of events, over a WebSocket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Final

import msgspec

from cove.dialects.isol8 import translate, wire
from cove.dialects.isol8.errors import sentence
from cove.dialects.isol8.socket import NO_ROOM, Executor
from cove.edge.ops import Call, Json, Nothing, Op
from cove.edge.sse import Events
from cove.edge.websocket import WebSocket
from cove.model.access import Scope
from cove.model.errors import (
    BadRequest,
    CapacityExceeded,
    CoveError,
    EngineFailure,
    Forbidden,
    QuotaExceeded,
)
from cove.model.sandbox import MIB

SERVER: Final = "Server"
EXECUTIONS: Final = "Executions"
NAME: Final = "isol8"

VERSION: Final = "0.20.0"
"""Of the protocol, as its clients know it."""

BODY_BYTES: Final = 128 * MIB
"""As over there."""

SCOPES: Final = (Scope.CREATE, Scope.EXEC, Scope.FILES, Scope.DESTROY)
ERRORS: Final = (BadRequest, Forbidden, CapacityExceeded, QuotaExceeded, EngineFailure)
_ENCODE: Final = msgspec.json.Encoder().encode


class IsolEvents(Events[wire.Event | wire.Refusal]):
    """Lines `data: ...`, as the original's clients read them."""

    media_type = b"text/event-stream"
    caching = b"no-cache"

    def failure(self, rendered: bytes) -> bytes:
        """A stream that was cut."""
        said = msgspec.json.decode(rendered, type=wire.Told)
        return _line(wire.Refusal(said.error))


async def health(call: Call[None, Nothing]) -> Json:
    """Say that the server answers."""
    del call
    return Json(wire.Health("ok", VERSION))


async def execute(call: Call[wire.Envelope, Nothing]) -> Json:
    """Run code, and answer with its result."""
    body = call.body
    spec = translate.spec_of(body.request, body.options, body.session_id)
    result = await call.core.executions.run(call.who, spec, dialect=NAME)
    if result.failure is not None:
        raise BadRequest(translate.failure_text(result.failure))
    return Json(translate.result_of(result))


async def execute_stream(call: Call[wire.Envelope, Nothing]) -> IsolEvents:
    """Run code, and tell of it as it goes."""
    return IsolEvents(aclosing(events(call, call.body)), _line)


async def execute_ws(call: Call[None, Nothing]) -> WebSocket[Executor]:
    """Run code that comes over a WebSocket."""

    @asynccontextmanager
    async def source() -> AsyncGenerator[Executor]:
        yield Executor(lambda body: events(call, body))

    return WebSocket(source(), lambda peer, executor: executor.serve(peer), message_bytes=BODY_BYTES)


async def events(
    call: Call[wire.Envelope, Nothing] | Call[None, Nothing], body: wire.Envelope
) -> AsyncGenerator[wire.Event | wire.Refusal]:
    """An execution's events. What is refused is the only one. Raises: what says that there is no room now."""
    try:
        spec = translate.spec_of(body.request, body.options, body.session_id)
        async with call.core.executions.stream(call.who, spec, dialect=NAME) as found:
            async for event in found:
                for told in translate.events_of(event):
                    yield told
    except NO_ROOM:
        raise
    except CoveError as error:
        yield wire.Refusal(sentence(error))


def _line(event: wire.Event | wire.Refusal) -> bytes:
    return b"data: %b\n\n" % _ENCODE(event)


OPS: Final = (
    Op(
        method="GET",
        path="/health",
        handler=health,
        summary="Whether the server answers",
        tag=SERVER,
        answer=wire.Health,
        public=True,
    ),
    Op(
        method="HEAD",
        path="/health",
        handler=health,
        name="head_health",
        summary="Whether the server answers",
        tag=SERVER,
        public=True,
    ),
    Op(
        method="POST",
        path="/execute",
        handler=execute,
        summary="Run code for its result",
        tag=EXECUTIONS,
        body=wire.Envelope,
        answer=wire.Result,
        scopes=SCOPES,
        errors=ERRORS,
        body_bytes=BODY_BYTES,
        watched=True,
    ),
    Op(
        method="POST",
        path="/execute/stream",
        handler=execute_stream,
        summary="Run code, with its events as they come",
        tag=EXECUTIONS,
        body=wire.Envelope,
        media_type="text/event-stream",
        scopes=SCOPES,
        errors=ERRORS,
        body_bytes=BODY_BYTES,
    ),
    Op(
        method="GET",
        path="/execute/ws",
        handler=execute_ws,
        summary="Run code that comes over a WebSocket",
        tag=EXECUTIONS,
        scopes=SCOPES,
        errors=ERRORS,
        websocket=True,
    ),
)
