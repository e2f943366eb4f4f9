"""The client's end of a WebSocket: messages in and out, both with back-pressure. RFC 6455, frames by `websockets`.

Memory is bounded: what arrived and was not received is at most one message beyond `_INBOX_BYTES`, then the connection
is not read; a sender waits while more than the transport's own 64 KiB is under way. A client that floods the loop with
tiny frames is parsed a slice at a time, so that other requests go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Generator
from typing import Final, cast

from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side, State

from cove.edge.errors import ClientGone
from cove.edge.limits import EdgeLimits

_INBOX_BYTES: Final = 256 * 1024
_INBOX_MESSAGES: Final = 256
_SLICE_BYTES: Final = 4096
_SLICE_MOST: Final = 256 * 1024
_FRAMES_AT_ONCE: Final = 256
_REASON_BYTES: Final = 123

_quiet: Final = logging.getLogger("cove.websocket")
_quiet.setLevel(logging.WARNING)  # at debug level the library would log what is typed, passwords too


class Peer(asyncio.Protocol):
    """One open WebSocket. Made by `WebSocket` alone; one task receives, any may send."""

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._wire = Protocol(Side.SERVER, state=State.OPEN, max_size=limits.websocket_message_bytes, logger=_quiet)
        self._transport: asyncio.Transport | None = None
        self._unparsed: deque[bytes] = deque()
        self._slice = _SLICE_BYTES
        self._parsing: asyncio.Handle | None = None
        self._partial: bytearray | None = None
        self._is_text = False
        self._inbox: deque[bytes | str] = deque()
        self._inbox_bytes = 0
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._owed = b""
        self._end: ClientGone | None = None
        self._is_dropping = False
        self._ended = asyncio.Event()
        self._hung_up = asyncio.Event()
        self._is_reading = True
        self._pings = 0
        self._awaited: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether the 101 is out."""
        return self._transport is not None

    # What a session uses.

    async def receive(self) -> bytes | str:
        """The next message. What arrived before the client's end comes first. Raises: ClientGone."""
        while not self._inbox:
            if self._end is not None and not self._unparsed:
                raise self._end
            self._arrived.clear()
            await self._arrived.wait()
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        if self._unparsed and self._parsing is None:
            self._parse()
        return message

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send a binary message, after the client has read enough of what went before. Raises: ClientGone."""
        await self._wait_writable()
        with _gone_if_closed():
            self._wire.send_binary(data)
        self._flush()

    async def send_text(self, text: str) -> None:
        """Send a text message, as `send_bytes`. Raises: ClientGone."""
        await self._wait_writable()
        with _gone_if_closed():
            self._wire.send_text(text.encode())
        self._flush()

    async def close(
        self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "", *, wait_s: float | None = None
    ) -> None:
        """End the WebSocket: say so, and wait a moment for the client to say so too. Whatever still comes is dropped.

        Repeated calls change nothing. Never raises for a client that has gone.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._wire.state is State.OPEN:
            self._wire.send_close(code, _cut(reason))
        self._flush()
        self._end = self._end or ClientGone("the WebSocket is closed")
        self._is_dropping = True
        self._inbox.clear()
        self._inbox_bytes = 0
        self._parse()
        try:
            async with asyncio.timeout(self._limits.websocket_close_s if wait_s is None else wait_s):
                if self._wire.eof_sent and self._wire.close_rcvd is None:
                    # It is still sending: closed now, its kernel would throw away what we said.
                    _half_close(transport)
                    await self._hung_up.wait()
                await self._ended.wait()
                await self._writable.wait()
        except TimeoutError:
            # What the kernel has it delivers by itself. What it does not take, the client does not read.
            if transport.get_write_buffer_size():
                transport.abort()
        transport.close()

    def abort(self) -> None:
        """Cut the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_gone(self) -> None:
        """Return some time after the client has gone: a session that then still goes on is stuck."""
        await self._ended.wait()
        await asyncio.sleep(self._limits.websocket_linger_s)

    # What the connection calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: the 101 is out."""
        self._transport = cast("asyncio.Transport", transport)
        self._limit_dead_peer()
        self._timer = self._loop.call_later(self._limits.websocket_ping_s, self._ping)

    def data_received(self, data: bytes) -> None:
        """Bytes of frames, cut anywhere."""
        self._unparsed.append(data)
        if self._parsing is None:
            self._parse()

    def eof_received(self) -> None:
        """The client sends no more, and the connection is closed for writing too."""
        self._hung_up.set()
        self._stop(ClientGone("the client closed the connection"))

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client has read."""
        self._writable.set()
        if self._owed and self._transport is not None:
            owed, self._owed = self._owed, b""
            self._transport.write(owed)

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone."""
        del exc
        self._hung_up.set()
        self._stop(ClientGone("the client closed the connection"))
        self._writable.set()

    # Reading.

    def _is_full(self) -> bool:
        return self._inbox_bytes >= _INBOX_BYTES or len(self._inbox) >= _INBOX_MESSAGES

    def _parse(self) -> None:
        """Parse what there is until the inbox is full, at most some frames in one turn of the loop."""
        if self._parsing is not None:
            self._parsing.cancel()
            self._parsing = None
        while self._unparsed and not self._is_full():
            data = self._unparsed.popleft()
            if len(data) > self._slice:
                self._unparsed.appendleft(data[self._slice :])
                data = data[: self._slice]
            self._wire.receive_data(data)
            frames = self._take()
            self._flush()
            if frames > _FRAMES_AT_ONCE:
                self._slice = max(self._slice // 2, _SLICE_BYTES // 4)
                if self._unparsed:
                    self._parsing = self._loop.call_soon(self._parse)
                    break
            else:
                self._slice = min(self._slice * 2, _SLICE_MOST)
        self._read(wanted=not self._unparsed)

    def _read(self, *, wanted: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or wanted is self._is_reading:
            return
        self._is_reading = wanted
        if wanted:
            transport.resume_reading()
        else:
            self._awaited = None  # its pong may wait behind what is not read
            transport.pause_reading()

    def _take(self) -> int:
        """Take over what was parsed. Returns how many frames it was."""
        frames = cast("list[Frame]", self._wire.events_received())
        for frame in frames:
            if frame.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                self._take_data(frame)
            elif frame.opcode is Opcode.PONG and frame.data == self._awaited:
                self._awaited = None
            elif frame.opcode is Opcode.CLOSE:
                code = self._wire.close_rcvd.code if self._wire.close_rcvd is not None else CloseCode.NO_STATUS_RCVD
                self._stop(ClientGone(f"the client closed the WebSocket ({int(code)})"))
        if self._wire.parser_exc is not None:
            self._stop(ClientGone("the client broke the WebSocket protocol"))
        return len(frames)

    def _take_data(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        if self._partial is not None or not frame.fin:
            # One growing buffer: a message in a million pieces is no list of a million objects.
            self._partial = self._partial if self._partial is not None else bytearray()
            self._partial += frame.data
            if not frame.fin:
                return
            data, self._partial = bytes(self._partial), None
        else:
            data = bytes(frame.data)
        if self._is_dropping:
            return
        if self._is_text:
            try:
                self._deliver(data.decode())
            except UnicodeDecodeError:
                self._wire.fail(CloseCode.INVALID_DATA, "the text is not valid UTF-8")
                self._stop(ClientGone("the client sent text that is not valid UTF-8"))
        else:
            self._deliver(data)

    def _deliver(self, message: bytes | str) -> None:
        self._inbox.append(message)
        self._inbox_bytes += len(message)
        self._arrived.set()

    # Writing.

    async def _wait_writable(self) -> None:
        if not self._writable.is_set() and self._end is None:
            try:
                async with asyncio.timeout(self._limits.reader_stall_s):
                    await self._writable.wait()
            except TimeoutError:
                self._stop(ClientGone("the client stopped reading"))
                self.abort()
        if self._end is not None:
            raise self._end

    def _flush(self) -> None:
        """Write what the codec has ready: frames of ours, pongs, the answer to a close frame."""
        pieces = [piece for piece in self._wire.data_to_send() if piece]
        if not pieces or self._transport is None or self._transport.is_closing():
            return
        if self._writable.is_set():
            self._transport.write(b"".join(pieces))
        else:
            # Senders wait, so these are answers to the client's own frames, and it does not read: the last one counts
            # (RFC 6455, 5.5.3), so that a flood of pings costs no memory.
            self._owed = pieces[-1]

    def _ping(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._end is not None:
            return
        if self._awaited is not None:
            self._stop(ClientGone("the client does not answer pings"))
            transport.abort()
            return
        self._timer = self._loop.call_later(self._limits.websocket_ping_s, self._ping)
        if self._writable.is_set():  # else there is unread data on its way, and TCP's own limit holds
            self._pings += 1
            payload = b"%d" % self._pings
            self._awaited = payload if self._is_reading else None
            self._wire.send_ping(payload)
            self._flush()

    def _stop(self, end: ClientGone) -> None:
        self._end = self._end or end
        self._ended.set()
        self._arrived.set()
        if self._timer is not None:
            self._timer.cancel()

    def _limit_dead_peer(self) -> None:
        """Bytes that a host does not confirm for so long end the connection: without it TCP tries for 15 minutes."""
        assert self._transport is not None  # noqa: S101 - called once it is there
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.reader_stall_s * 1000))


@contextlib.contextmanager
def _gone_if_closed() -> Generator[None]:
    try:
        yield
    except InvalidState:
        raise ClientGone("the WebSocket is closed") from None


def _half_close(transport: asyncio.Transport) -> None:
    if transport.can_write_eof():
        transport.write_eof()


def _cut(reason: str) -> str:
    return reason.encode()[:_REASON_BYTES].decode(errors="ignore")
