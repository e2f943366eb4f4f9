"""The terminal: a WebSocket of PTY bytes. Its shell ends with it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec
from msgspec import Struct

from cove.core.terminals import Terminals, TerminalSession
from cove.dialects.isorun import wire_terminals as wire
from cove.dialects.isorun.translate import run_ref
from cove.edge.ops import Call, Op
from cove.edge.peer import Peer
from cove.edge.websocket import WebSocket
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Conflict, Gone, NotFound, SandboxGone
from cove.model.execs import Chunk, Ended, ExecSpec
from cove.model.terminals import TerminalSize

SHELL: Final = ExecSpec(
    argv=("/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash -i; exec /bin/sh -i"),
    env={"TERM": "xterm-256color"},
)

_ENCODE: Final = msgspec.json.Encoder().encode
_PROBE: Final = msgspec.json.Decoder(wire.AnyFrame)
_FRAME: Final = msgspec.json.Decoder(wire.ClientFrame)
_KINDS: Final = frozenset({"input", "resize"})


async def open_terminal(call: Call[None, wire.TerminalQuery]) -> WebSocket[TerminalSession]:
    """Open, look and type."""
    ref, core = run_ref(call.path["id"]), call.core.terminals
    source = core.session(call.who, ref, SHELL, size=TerminalSize(call.query.cols, call.query.rows))
    return WebSocket(source, _Socket(core, call.who, ref).run)


class _Socket:
    """One client at its terminal."""

    def __init__(self, terminals: Terminals, who: Principal, ref: str) -> None:
        self._terminals = terminals
        self._who = who
        self._ref = ref

    async def run(self, peer: Peer, session: TerminalSession) -> None:
        """Carry both ways until the shell's end. Raises: ClientGone."""
        async with asyncio.TaskGroup() as tasks:
            inward = tasks.create_task(self._inward(peer, session))
            async for event in session.stream:
                if isinstance(event, Chunk):
                    await peer.send_bytes(event.data)
                elif isinstance(event, Ended):
                    await _say(peer, wire.ExitFrame(event.exit.code))
            inward.cancel()

    async def _inward(self, peer: Peer, session: TerminalSession) -> None:
        while True:
            message = await peer.receive()
            try:
                await self._take(message, session)
            except Conflict:
                pass  # the shell has ended: the client is about to learn that
            except BadRequest as error:
                await _say(peer, wire.ErrorFrame(error.public))

    async def _take(self, message: bytes | str, session: TerminalSession) -> None:
        frame = frame_of(message)
        if isinstance(frame, wire.ResizeFrame):
            size = TerminalSize(frame.cols, frame.rows)
            await self._terminals.resize(self._who, self._ref, session.id, size)
        else:
            await session.stream.write(frame.data.encode() if isinstance(frame, wire.InputFrame) else frame)


def frame_of(message: bytes | str) -> bytes | wire.ClientFrame:
    """What a message of the client means. Raises: BadRequest (a message of ours that is wrong)."""
    if isinstance(message, bytes):
        return message
    kind = None
    with contextlib.suppress(msgspec.MsgspecError, RecursionError):
        kind = _PROBE.decode(message).type
    if kind not in _KINDS:
        return message.encode()
    try:
        frame: wire.ClientFrame = _FRAME.decode(message)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"no message of a terminal: {str(error)[:200]}", field="message") from error
    return frame


async def _say(peer: Peer, frame: Struct) -> None:
    await peer.send_text(_ENCODE(frame).decode())


OPS: Final = (
    Op(
        method="GET",
        path="/v1/runs/{id}/terminal",
        handler=open_terminal,
        summary="Open a terminal",
        description="A WebSocket; `?token=` may bring the key. Binary messages are its bytes, both ways. Text from the "
        'client: `{"type":"input","data"}`, `{"type":"resize","cols","rows"}`, any other is typed as it is. The last '
        'text from the server is `{"type":"exit","exit_code"}`. Closing it hangs the shell up.',
        tag="Terminals",
        query=wire.TerminalQuery,
        scopes=(Scope.EXEC,),
        errors=(NotFound, Gone, SandboxGone, Conflict),
        websocket=True,
    ),
)
