"""One byte stream to an agent: frames in, frames out, calls told apart by channel. An asyncio protocol.

It reads always (the volume is bounded by credit), so neither side can block the other; it stops its own writers while
the transport's buffer is full. The first breach closes it for good, with the same error for every open call.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Final, TypeVar, cast

import msgspec

from cove.agentlink.channel import Channel, Sink
from cove.agentlink.frames import MAX_PAYLOAD_BYTES, Decoder, Frame, Kind, encode, encode_header
from cove.agentlink.wire import AgentHello, decode, violation
from cove.model.errors import AgentViolation, Conflict, CoveError, SandboxGone, TooLarge

T = TypeVar("T")

PROTOCOL: Final = 1
_MAX_CHANNELS: Final = 1024
_WRITE_BUFFER: Final = 1024 * 1024
_JOIN_BELOW: Final = 16 * 1024
"""Header and payload up to this size leave in one write; above it the copy would cost more than a second write."""

_FRAMES_A_TURN: Final = 256
"""Frames taken in one turn of the loop. A read of 1 MiB may hold a hundred thousand tiny ones, and nobody else would
have a turn before the last; these take under 1 ms, and honest output comes in some dozen frames a read."""


class Connection(asyncio.BufferedProtocol):
    """Made by `AgentClient.connect`. Use `open` to start a call."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._transport: asyncio.WriteTransport | None = None
        self._channels: dict[int, Channel] = {}
        self._last = 0
        self._hello: asyncio.Future[AgentHello] = self._loop.create_future()
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._writable: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._reason: CoveError | None = None
        self._is_behind = False  # reading is paused until the frames that are there were taken
        self.is_writable = True

    @property
    def is_closed(self) -> bool:
        """Whether it can carry no more calls."""
        return self._reason is not None

    @property
    def is_made(self) -> bool:
        """Whether a transport has taken over the socket."""
        return self._transport is not None

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there."""
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the transport may read to."""
        return self._decoder.space()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came. A breach ends the connection."""
        self._decoder.received(nbytes)
        self._take_frames()

    def eof_received(self) -> bool:
        """The agent sends no more: the transport closes."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self.abort(SandboxGone("the sandbox is gone", internal=f"agent connection closed: {exc!r}"))
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """The transport takes bytes again."""
        self.is_writable = True
        self._release_writers()
        for channel in tuple(self._channels.values()):
            channel.on_writable()

    # Our side.

    async def greet(self) -> AgentHello:
        """Exchange HELLO. Raises: AgentViolation (none, or no common protocol), SandboxGone."""
        hello = await self._hello
        if hello.protocol != PROTOCOL:
            raise violation(f"the agent speaks protocol {hello.protocol}")
        self.send(Kind.HELLO, 0, msgspec.json.encode({"protocol": PROTOCOL}))
        return hello

    def open(self, call: Mapping[str, object], *, takes_output: bool = False, sink: Sink | None = None) -> Channel:
        """Start a call.

        Raises: SandboxGone or AgentViolation (closed), Conflict (1024 calls are open), TooLarge (beyond one frame).
        """
        if self._reason is not None:
            raise self._reason.with_traceback(None)
        if len(self._channels) >= _MAX_CHANNELS:
            raise Conflict("too many calls at once in this sandbox")
        payload = msgspec.json.encode(call)
        if len(payload) > MAX_PAYLOAD_BYTES:
            # Escaped, a control character is six bytes: only here it is known what a command comes to.
            raise TooLarge("the command and its environment together are too large", field="command")
        self._last += 1
        channel = Channel(self, self._last, takes_output=takes_output, sink=sink)
        message = encode(Kind.CALL, self._last, payload)
        self._channels[self._last] = channel
        self._write(message)
        return channel

    def send(self, kind: Kind, channel: int, payload: bytes | memoryview = b"") -> None:
        """Queue one frame; dropped on a closed connection."""
        if len(payload) <= _JOIN_BELOW:
            self._write(encode(kind, channel, bytes(payload)))
        else:
            self._write(encode_header(kind, channel, len(payload)))
            self._write(payload)

    async def ping(self) -> None:
        """Return when the agent has answered. Raises: SandboxGone, AgentViolation."""
        if self._reason is not None:
            raise self._reason.with_traceback(None)
        token = os.urandom(8)
        answered: asyncio.Future[None] = self._loop.create_future()
        self._pings[token] = answered
        self.send(Kind.PING, 0, token)
        await answered

    async def wait_writable(self) -> None:
        """Return when the transport takes bytes again, or never will."""
        if self.is_writable or self._reason is not None:
            return
        if self._writable is None or self._writable.done():
            self._writable = self._loop.create_future()
        await asyncio.shield(self._writable)

    async def wait_closed(self) -> None:
        """Return when the transport is gone. Cancelling leaves nothing behind."""
        await asyncio.shield(self._closed)

    def abort(self, reason: CoveError) -> None:
        """Close for good; every open call fails with `reason`. Idempotent: the first reason stays."""
        if self._reason is not None:
            return
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()
        self._release_writers()
        _fail(self._hello, reason)
        for answered in self._pings.values():
            _fail(answered, reason)
        self._pings.clear()
        for channel in tuple(self._channels.values()):
            channel.on_lost(reason)
        self._channels.clear()

    def _take_frames(self) -> None:
        """Dispatch what is there, a turn's worth of it. Until the rest is taken, nothing more is read."""
        if self._reason is not None:
            return
        try:
            for frame in self._decoder.frames(_FRAMES_A_TURN):
                self._dispatch(frame)
                if self._reason is not None:
                    return
        except AgentViolation as error:
            self.abort(error)
            return
        transport = self._transport
        if self._decoder.has_frame:
            if transport is not None:
                cast("asyncio.ReadTransport", transport).pause_reading()
                self._is_behind = True
            self._loop.call_soon(self._take_frames)
        elif self._is_behind:
            self._is_behind = False
            cast("asyncio.ReadTransport", transport).resume_reading()

    def _write(self, data: bytes | memoryview) -> None:
        if self._transport is not None and self._reason is None:
            self._transport.write(data)

    def _release_writers(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _dispatch(self, frame: Frame) -> None:
        kind, number, payload = frame
        if number == 0:
            self._dispatch_own(kind, payload)
            return
        channel = self._channels.get(number)
        if channel is None:
            raise violation(f"{kind.name} on channel {number}, which is not open")
        match kind:
            case Kind.DATA | Kind.DATA_ERR | Kind.EOF:
                channel.on_output(kind, payload)
            case Kind.EVENT:
                channel.on_event(payload)
            case Kind.RESULT | Kind.FAIL:
                del self._channels[number]
                try:
                    channel.on_end(kind, payload)
                except AgentViolation as error:
                    channel.on_lost(error)
                    raise
                if not self._channels:
                    self._decoder.relax()
            case Kind.CREDIT if len(payload) == 4:  # noqa: PLR2004 - a u32
                channel.on_credit(int.from_bytes(payload, "big"))
            case _:
                raise violation(f"{kind.name} on channel {number}")

    def _dispatch_own(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.HELLO if not self._hello.done():
                self._hello.set_result(decode(payload, AgentHello))
            case Kind.PONG if (answered := self._pings.pop(payload, None)) is not None:
                if not answered.done():
                    answered.set_result(None)
            case _:
                raise violation(f"{kind.name} on channel 0")


def _fail(future: asyncio.Future[T], reason: CoveError) -> None:
    if not future.done():
        future.set_exception(reason)
        future.exception()  # marks it as seen: nobody may be waiting
