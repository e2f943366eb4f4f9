"""One execution over a WebSocket: what the client sends is read, what is unknown is said, the end is 1000."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, cast

import msgspec
from websockets.frames import CloseCode

from cove.dialects.isol8 import wire
from cove.dialects.isol8.errors import sentence
from cove.edge.decode import body_decoder
from cove.edge.errors import ServerStopping
from cove.edge.peer import Peer
from cove.model.errors import CapacityExceeded, CoveError, QuotaExceeded, RateLimited

NO_ROOM: Final = (CapacityExceeded, QuotaExceeded, RateLimited, ServerStopping)
"""What an execution is not refused for, but put off."""

_RESERVED: Final = frozenset({"stdin", "signal"})
_ENCODE: Final = msgspec.json.Encoder().encode
_DECODE: Final = body_decoder(wire.Envelope)

Run = Callable[[wire.Envelope], AsyncGenerator[wire.Event | wire.Refusal]]


class Executor:
    """What serves one WebSocket. `run` begins an execution."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def serve(self, peer: Peer) -> None:
        """Until an execution is over or a message is none. Raises: ClientGone."""
        while True:
            data = await peer.receive()
            try:
                message: Any = msgspec.json.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                await _say(peer, wire.Refusal("Invalid JSON message"))
                await peer.close(CloseCode.UNSUPPORTED_DATA, "Invalid JSON")
                return
            kind = _kind(message)
            if kind == "execute":
                await self._execute(peer, data if isinstance(data, bytes) else data.encode())
                return
            if kind not in _RESERVED:
                await _say(peer, wire.Refusal(f"Unknown message type: {kind}"))

    async def _execute(self, peer: Peer, data: bytes) -> None:
        try:
            body = _DECODE(data)
        except CoveError as error:
            await _say(peer, wire.Refusal(sentence(error)))
        else:
            try:
                await self._tell(peer, body)
            except* NO_ROOM as group:
                await _say(peer, wire.Refusal(sentence(_first(group))))
                await peer.close(CloseCode.TRY_AGAIN_LATER, "No room")
        await peer.close(CloseCode.NORMAL_CLOSURE, "Execution complete")

    async def _tell(self, peer: Peer, body: wire.Envelope) -> None:
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(_pass_over(peer))
            async with aclosing(self._run(body)) as events:
                async for event in events:
                    await _say(peer, event)
            watch.cancel()


async def _pass_over(peer: Peer) -> None:
    """What comes while an execution runs is reserved. Raises: ClientGone, which ends the execution."""
    while True:
        await peer.receive()


async def _say(peer: Peer, event: wire.Event | wire.Refusal) -> None:
    await peer.send_text(_ENCODE(event).decode())


def _kind(message: Any) -> str:
    """The type that a message says it has, as JavaScript writes it."""
    if not isinstance(message, dict) or "type" not in message:
        return "undefined"
    kind = cast("dict[str, Any]", message)["type"]
    return kind[:200] if isinstance(kind, str) else _ENCODE(kind).decode()[:200]


def _first(error: BaseException) -> CoveError:
    """The first leaf of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return cast("CoveError", error)
