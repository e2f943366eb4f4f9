"""The shell: a WebSocket of JSON texts over one bash, which ends with it."""

from __future__ import annotations

import asyncio
import codecs
from contextlib import aclosing
from typing import Final, cast

import msgspec
from msgspec import Struct

from cove.core.shellsessions import ShellSession
from cove.dialects.isorun import wire_shells as wire
from cove.dialects.isorun.translate import run_ref
from cove.dialects.signals import signal_number
from cove.edge.ops import Call, Op
from cove.edge.peer import Peer
from cove.edge.websocket import WebSocket
from cove.model.access import Scope
from cove.model.errors import BadRequest, Conflict, Gone, NotFound, SandboxGone, TooLarge
from cove.model.execs import Chunk, Ended, Started, Stream
from cove.model.shells import ShellCommand, ShellSpec

_ENCODE: Final = msgspec.json.Encoder().encode
_FRAME: Final = msgspec.json.Decoder(wire.ClientFrame)


async def open_shell(call: Call[None, wire.ShellQuery]) -> WebSocket[ShellSession]:
    """Open, run commands one after the other."""
    source = call.core.shells.session(call.who, run_ref(call.path["id"]), ShellSpec())
    return WebSocket(source, _run)


async def _run(peer: Peer, session: ShellSession) -> None:
    """Carry both ways until the shell ends, or the client wants no more. Raises: ClientGone."""
    async with asyncio.TaskGroup() as tasks:
        outward = tasks.create_task(_outward(peer, session))
        inward = tasks.create_task(_inward(peer, session))
        await asyncio.wait((outward, inward), return_when=asyncio.FIRST_COMPLETED)
        outward.cancel()
        inward.cancel()
    ended = session.exit
    await _say(peer, wire.ClosedFrame(0 if ended is None else ended.code))


async def _inward(peer: Peer, session: ShellSession) -> None:
    """What the client sends, until it says `close`."""
    is_open = True
    while is_open:
        tag: wire.Tag = None
        try:
            frame = frame_of(await peer.receive())
            tag = frame.id
            is_open = await _take(frame, session)
        except (BadRequest, TooLarge, Conflict) as error:
            await _say(peer, wire.ErrorFrame(tag, error.public))


async def _take(frame: wire.ClientFrame, session: ShellSession) -> bool:
    """Do it. False: it was `close`."""
    match frame.type:
        case "run":
            session.submit(frame.id, ShellCommand(text=text_of(frame), timeout_s=frame.timeout or None))
        case "signal":
            await session.signal(_signal_of(frame))
        case "close":
            return False
        case other:
            raise BadRequest(f"no message of a shell has the type {other[:40]!r}", field="type")
    return True


async def _outward(peer: Peer, session: ShellSession) -> None:
    """What the commands write, until the shell ends."""
    texts = _Texts()
    async with aclosing(session.events()) as events:
        async for tagged, event in events:
            tag = cast("wire.Tag", tagged)
            match event:
                case Started():
                    texts = _Texts()
                case Chunk(stream, data):
                    await _say_output(peer, tag, stream, texts.add(stream, data))
                case Ended(exit_):
                    for stream in Stream:
                        await _say_output(peer, tag, stream, texts.rest(stream))
                    await _say(peer, wire.ExitFrame(tag, exit_.code, round(exit_.duration_ms)))
                case _:
                    pass


class _Texts:
    """The two streams of one command as text: a character may come in two pieces."""

    def __init__(self) -> None:
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: make("replace") for stream in Stream}

    def add(self, stream: Stream, data: bytes) -> str:
        return self._decoders[stream].decode(data)

    def rest(self, stream: Stream) -> str:
        return self._decoders[stream].decode(b"", final=True)


def frame_of(message: bytes | str) -> wire.ClientFrame:
    """A message of the client. Raises: BadRequest."""
    try:
        return _FRAME.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"no message of a shell: {str(error)[:200]}", field="message") from error


def text_of(frame: wire.ClientFrame) -> str:
    """The command. Raises: BadRequest."""
    text = frame.command if frame.command is not None else frame.cmd
    if text is None:
        raise BadRequest("command is missing", field="command")
    return text


def _signal_of(frame: wire.ClientFrame) -> int:
    number = signal_number(frame.signal) if isinstance(frame.signal, str) else frame.signal
    if number is None:
        raise BadRequest(f"no signal {str(frame.signal)[:40]!r}", field="signal")
    return number


async def _say_output(peer: Peer, tag: wire.Tag, stream: Stream, text: str) -> None:
    if text:
        await _say(peer, wire.OutputFrame(stream.value, tag, text))


async def _say(peer: Peer, frame: Struct) -> None:
    await peer.send_text(_ENCODE(frame).decode())


OPS: Final = (
    Op(
        method="GET",
        path="/v1/runs/{id}/shell",
        handler=open_shell,
        summary="Open a shell",
        description="A WebSocket over one bash (sh where there is none) that lasts as long as it. The client sends "
        '`{"id","command","timeout"}`, `{"type":"signal","signal"}`, `{"type":"close"}`; the server sends `stdout`, '
        "`stderr` and `exit` with the command's `id`, `error`, and last `closed`. Commands run in order; 64 may wait.",
        tag="Shells",
        query=wire.ShellQuery,
        scopes=(Scope.EXEC,),
        errors=(NotFound, Gone, SandboxGone, Conflict),
        websocket=True,
    ),
)
