"""A terminal over a WebSocket: binary messages are output and input, text messages the rest (`wire_terminals.py`)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, assert_never

import msgspec
from msgspec import Struct

from cove.core.terminals import Terminals, TerminalStream
from cove.dialects.native import wire, wire_terminals
from cove.dialects.native.translate import signal_of
from cove.dialects.native.translate_terminals import size_of
from cove.edge.peer import Peer
from cove.model.access import Principal
from cove.model.errors import BadRequest, Conflict
from cove.model.execs import Chunk, Ended, ExecEvent, Gap, Paused, Started

_ENCODE: Final = msgspec.json.Encoder().encode
_DECODER: Final = msgspec.json.Decoder(wire_terminals.ClientFrame)


class Attached:
    """One client at one terminal."""

    def __init__(self, terminals: Terminals, who: Principal, ref: str, terminal_id: str) -> None:
        self._terminals = terminals
        self._who = who
        self._ref = ref
        self._id = terminal_id

    async def run(self, peer: Peer, stream: TerminalStream) -> None:
        """Carry both ways until the terminal's end. Raises: BadRequest (a text message that is none), ClientGone."""
        size = stream.size
        await _say(peer, wire_terminals.AttachedFrame(cursor=stream.cursor, cols=size.cols, rows=size.rows))
        async with asyncio.TaskGroup() as tasks:
            inward = tasks.create_task(self._inward(peer, stream))
            async for event in stream:
                await _pass_on(peer, event)
            inward.cancel()

    async def _inward(self, peer: Peer, stream: TerminalStream) -> None:
        while True:
            message = await peer.receive()
            if isinstance(message, bytes):
                await stream.write(message)
            else:
                # The terminal may end meanwhile: the client is about to learn that.
                with contextlib.suppress(Conflict):
                    await self._do(_frame(message))

    async def _do(self, frame: wire_terminals.ClientFrame) -> None:
        match frame:
            case wire_terminals.ResizeFrame():
                await self._terminals.resize(self._who, self._ref, self._id, size_of(frame))
            case wire_terminals.SignalFrame(signal):
                await self._terminals.signal(self._who, self._ref, self._id, signal_of(wire.Signal(signal=signal)))
            case _:
                assert_never(frame)


async def _pass_on(peer: Peer, event: ExecEvent) -> None:
    match event:
        case Chunk(_, data):
            await peer.send_bytes(data)
        case Gap(lost_bytes):
            await _say(peer, wire_terminals.GapFrame(lost_bytes))
        case Ended(exit_, cursor):
            last = wire_terminals.ExitFrame(exit_.code, exit_.why.value, exit_.signal, cursor)
            await _say(peer, last)
        case Started() | Paused():
            pass
        case _:
            assert_never(event)


async def _say(peer: Peer, frame: Struct) -> None:
    await peer.send_text(_ENCODE(frame).decode())


def _frame(text: str) -> wire_terminals.ClientFrame:
    try:
        frame: wire_terminals.ClientFrame = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest(f"no message of a terminal: {str(error)[:200]}", field="message") from error
    return frame
