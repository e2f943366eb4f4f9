"""Raw TCP to a port of a sandbox, over a WebSocket: binary messages are the bytes, cut anywhere."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import msgspec
from msgspec import Struct

from cove.core.ports import DialStream
from cove.dialects.native.translate import sandbox_ref
from cove.edge.ops import Call, Nothing, Op
from cove.edge.peer import Peer
from cove.edge.websocket import WebSocket
from cove.model.access import Scope
from cove.model.errors import AgentTimeout, AgentViolation, BadRequest, Conflict, Gone, NotFound, SandboxGone

ERRORS: Final = (NotFound, Gone, Conflict, SandboxGone, AgentTimeout, AgentViolation)
_DIGITS: Final = 5
EOF: Final = '{"type":"eof"}'


class HalfClose(Struct, frozen=True, forbid_unknown_fields=True):
    """The only text message: no more bytes come from who sends it."""

    type: Literal["eof"]


_DECODER: Final = msgspec.json.Decoder(HalfClose)


def port_of(text: str) -> int:
    """The port in a path. Raises: BadRequest."""
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise BadRequest("a port is a number from 1 to 65535", field="port")
    return int(text)


async def connect_tcp(call: Call[None, Nothing]) -> WebSocket[DialStream]:
    """Connect."""
    source = call.core.ports.dial(call.who, sandbox_ref(call.path["id"]), port_of(call.path["port"]))
    return WebSocket(source, carry)


async def carry(peer: Peer, stream: DialStream) -> None:
    """Carry bytes both ways until both directions are closed."""
    async with asyncio.TaskGroup() as tasks:
        inward = tasks.create_task(_inward(peer, stream))
        async for data in stream:
            await peer.send_bytes(data)
        await peer.send_text(EOF)
        await stream.wait_closed()
        inward.cancel()


async def _inward(peer: Peer, stream: DialStream) -> None:
    while True:
        message = await peer.receive()
        if isinstance(message, bytes):
            await stream.write(message)
        else:
            _check_eof(message)
            await stream.write_eof()


def _check_eof(text: str) -> None:
    try:
        _DECODER.decode(text)
    except msgspec.MsgspecError:
        raise BadRequest('the only text message here is {"type":"eof"}', field="message") from None


OPS: Final = (
    Op(
        method="GET",
        path="/sandboxes/{id}/ports/{port}/tcp",
        handler=connect_tcp,
        summary="Connect to a TCP port",
        description="A WebSocket: binary messages are the connection's bytes, the text message "
        '`{"type":"eof"}` is a half-close, both ways. Closed with 1000 when both directions have ended.',
        tag="Ports",
        scopes=(Scope.EXEC,),
        errors=ERRORS,
        websocket=True,
    ),
)
