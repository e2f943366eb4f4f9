"""One byte stream to an agent: frames in, frames out, calls told apart by channel. An asyncio protocol.

It reads always (the volume is bounded by credit), so neither side can block the other; it stops its own writers while
the transport's buffer is full. The first breach closes it for good, with the same error for every open call.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Final, TypeVar, cast

import msgspec

from cove.agentlink.channel import Channel, Refusal, Sink
from cove.agentlink.frames import MAX_PAYLOAD_BYTES, Decoder, Frame, Kind, encode, encode_header
from cove.agentlink.limits import Limits
from cove.agentlink.wire import AgentHello, QuiesceReply, decode, violation
from cove.model.errors import AgentTimeout, AgentViolation, Conflict, CoveError, SandboxGone, TooLarge

T = TypeVar("T")

PROTOCOL: Final = 1
_MAX_CHANNELS: Final = 1024
_WRITE_BUFFER: Final = 1024 * 1024
_JOIN_BELOW: Final = 16 * 1024
"""Header and payload up to this size leave in one write; above it the copy would cost more than a second write."""

_MAX_HELD_BYTES: Final = 4 * 1024 * 1024
"""Calls made while it is suspended wait here; beyond it a further one is refused."""

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
        self._held: list[tuple[int, bytes]] | None = None  # frames by channel, from `suspend` to the end of `resume`
        self._held_calls: set[int] = set()
        self._held_bytes = 0
        self._leaving = 0  # the call that suspends
        self._session: str | None = None  # the token, from the agent's answer to it on
        self._parted: asyncio.Future[None] | None = None  # the end of the stream that is left behind
        self.is_writable = True
        self.limits = Limits()

    @property
    def is_closed(self) -> bool:
        """Whether it can carry no more calls."""
        return self._reason is not None

    @property
    def is_made(self) -> bool:
        """Whether a transport has taken over the socket."""
        return self._transport is not None

    @property
    def is_suspended(self) -> bool:
        """Whether its calls wait for another stream."""
        return self._held is not None and self._reason is None

    @property
    def has_calls(self) -> bool:
        """Whether a call is open."""
        return bool(self._channels)

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
        if self._session is not None and self._parted is not None and self._decoder.is_between_frames:
            self._transport = None
            self._parted.set_result(None)
            return
        self.abort(SandboxGone("the sandbox is gone", internal=f"agent connection closed: {exc!r}"))
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """The transport takes bytes again."""
        if self._held is not None:
            return
        self.is_writable = True
        self._release_writers()
        for channel in tuple(self._channels.values()):
            channel.on_writable()

    # Our side.

    async def greet(self) -> AgentHello:
        """Exchange HELLO. Raises: AgentViolation (none, or no common protocol), SandboxGone."""
        return await self._greet(None)

    async def connect(self, sock: socket.socket) -> None:
        """Take over a connected, non-blocking socket. Raises: OSError."""
        opening = self._loop.create_unix_connection if sock.family == socket.AF_UNIX else self._loop.create_connection
        await opening(lambda: self, sock=sock)

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
        if self._held is not None and self._held_bytes + len(payload) > _MAX_HELD_BYTES:
            raise Conflict("too many calls wait for this sandbox, which is being kept on the disk")
        self._last += 1
        channel = Channel(self, self._last, takes_output=takes_output, sink=sink)
        message = encode(Kind.CALL, self._last, payload)
        self._channels[self._last] = channel
        if self._held is not None:
            self._held_calls.add(self._last)
        self._put(self._last, message)
        return channel

    def send(self, kind: Kind, channel: int, payload: bytes | memoryview = b"") -> None:
        """Queue one frame; dropped on a closed connection."""
        if self._held is not None or len(payload) <= _JOIN_BELOW:
            if kind is Kind.CANCEL and channel in self._held_calls:
                self._take_back(channel)
            else:
                self._put(channel, encode(kind, channel, bytes(payload)))
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

    async def suspend(self, timeout_s: float, *, keeps: bool) -> None:
        """Leave the stream with all calls open; they go on with `resume`. On failure they have ended, or go on here.

        Raises: AgentTimeout, SandboxGone, AgentViolation, Refusal.
        """
        if self._held is not None:
            raise Conflict("the sandbox is being kept on the disk already")
        channel = self.open({"op": "quiesce", "keep": keeps})
        # It is the last that goes out: what we write from now on waits.
        self._held, self.is_writable = [], False
        self._leaving = self._last
        self._parted = self._loop.create_future()
        self.limits.stop()
        try:
            async with asyncio.timeout(timeout_s):
                await channel.result(None)
                await self._parted
        except Refusal:
            self._go_on()
            raise
        except TimeoutError as error:
            late = AgentTimeout("the sandbox did not answer in time", internal="quiesce")
            self.abort(late)
            raise late from error
        except asyncio.CancelledError:
            self.abort(SandboxGone("the sandbox is gone", internal="canceled while it was being suspended"))
            raise
        if self._reason is not None:
            raise self._reason.with_traceback(None)

    async def resume(self, sock: socket.socket, timeout_s: float) -> None:
        """Take the calls up on a connected socket, which is ours from here. On failure they have all ended.

        Raises: AgentTimeout, SandboxGone, AgentViolation.
        """
        if self._reason is not None or self._session is None:
            sock.close()
            raise self._reason.with_traceback(None) if self._reason else Conflict("the sandbox is not suspended")
        is_made = False
        self._hello, self._decoder, self._parted = self._loop.create_future(), Decoder(), None
        try:
            async with asyncio.timeout(timeout_s):
                await self.connect(sock)
                is_made = True
                await self._greet(self._session)
                answered = self._loop.create_future()
                token = os.urandom(8)
                self._pings[token] = answered
                self._write(encode(Kind.PING, 0, token))
                self._session = None
                self._go_on()
                await answered  # an agent that does not know the session closes instead
        except BaseException as error:
            gone = SandboxGone("the sandbox is gone", internal=f"its session was not taken up: {error!r}")
            self.abort(gone)
            if not is_made:
                sock.close()
            if isinstance(error, TimeoutError):
                raise AgentTimeout("the sandbox did not answer in time", internal="resume") from error
            if isinstance(error, OSError):
                raise gone from error
            raise

    def abort(self, reason: CoveError) -> None:
        """Close for good; every open call fails with `reason`. Idempotent: the first reason stays."""
        if self._reason is not None:
            return
        self._reason = reason
        self._held = None
        if self._transport is not None:
            self._transport.abort()
        elif not self._closed.done():
            self._closed.set_result(None)
        if self._parted is not None and not self._parted.done():
            self._parted.set_result(None)
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

    async def _greet(self, session: str | None) -> AgentHello:
        hello = await self._hello
        if hello.protocol != PROTOCOL:
            raise violation(f"the agent speaks protocol {hello.protocol}")
        ours: dict[str, object] = {"protocol": PROTOCOL}
        if session:
            ours["resume"] = session
        self._write(encode(Kind.HELLO, 0, msgspec.json.encode(ours)))
        return hello

    def _put(self, channel: int, frame: bytes) -> None:
        """Write a frame, or keep it until the session goes on."""
        if self._held is None:
            self._write(frame)
        elif self._reason is None:
            self._held.append((channel, frame))
            self._held_bytes += len(frame)

    def _take_back(self, channel: int) -> None:
        """Forget a call that the agent has not seen."""
        held = self._held or []
        self._held = [one for one in held if one[0] != channel]
        self._held_bytes = sum(len(frame) for _, frame in self._held)
        self._held_calls.discard(channel)
        self._channels.pop(channel, None)

    def _go_on(self) -> None:
        """Write what was held, and let everybody write again."""
        held, self._held = self._held or [], None
        self._held_calls.clear()
        self._held_bytes = 0
        for _, frame in held:
            self._write(frame)
        self.limits.go_on()
        self.is_writable = True
        self._release_writers()
        for channel in tuple(self._channels.values()):
            channel.on_writable()

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
        if self._session is not None:
            raise violation(f"{kind.name} behind the end of a session's stream")
        channel = self._channels.get(number)
        if channel is None:
            raise violation(f"{kind.name} on channel {number}, which is not open")
        match kind:
            case Kind.DATA | Kind.DATA_ERR | Kind.EOF:
                channel.on_output(kind, payload)
            case Kind.EVENT:
                channel.on_event(payload)
            case Kind.RESULT | Kind.FAIL:
                self._end(number, channel, kind, payload)
            case Kind.CREDIT if len(payload) == 4:  # noqa: PLR2004 - a u32
                channel.on_credit(int.from_bytes(payload, "big"))
            case _:
                raise violation(f"{kind.name} on channel {number}")

    def _end(self, number: int, channel: Channel, kind: Kind, payload: bytes) -> None:
        del self._channels[number]
        try:
            channel.on_end(kind, payload)
            if number == self._leaving and kind is Kind.RESULT:
                self._session = decode(payload, QuiesceReply).session
        except AgentViolation as error:
            channel.on_lost(error)
            raise
        if not self._channels:
            self._decoder.relax()

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
