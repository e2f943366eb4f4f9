"""One side of a proxied connection, and two of them joined: bytes both ways at the slower side's speed, in flat memory.

Until it is joined, a `Wire` holds what arrives, up to `HELD_BYTES`, for whoever reads what the client wants. Joined,
each piece goes from one kernel buffer to the other; while one side does not take, the other is not read.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, cast

HELD_BYTES: Final = 64 * 1024
IDLE_S: Final = 3600.0
"""A connection on which nothing was said for so long, in neither direction, is cut."""

STALL_S: Final = 300.0
"""The same where one side does not take what waits for it, or has ended its half."""

_LOOK_S: Final = 30.0
_RESET: Final = struct.pack("ii", 1, 0)


class Check(Protocol):
    """Looks at the first bytes that pass, and holds back what it has not seen enough of."""

    is_over: bool
    """It has seen enough: all passes from here on."""

    def feed(self, data: bytes) -> bytes:
        """What may pass now. Raises: whatever ends the connection."""
        ...


class Wire(asyncio.Protocol):
    """One connection. Bytes are read by one task at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.heard_at = time.monotonic()
        self._held = bytearray()
        self._was_cut = False
        self._changed: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._onward: Wire | None = None
        self._check: Check | None = None
        self.breach: Exception | None = None
        """What the check of joined bytes raised; both sides are cut then."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is ours."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HELD_BYTES)

    def data_received(self, data: bytes) -> None:
        """Bytes of this side."""
        self.heard_at = time.monotonic()
        if self._onward is not None:
            self._pass(data, self._onward)
            return
        self._held += data
        if len(self._held) >= HELD_BYTES:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """This side sends no more, and may still read."""
        self._end()
        if self._onward is not None:
            self._onward.send_eof()
        self._wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """This side is gone; `exc`: not by an orderly end."""
        self._was_cut = self._was_cut or exc is not None or not self.has_ended
        self._end()
        if not self.gone.done():
            self.gone.set_result(None)
        if self._onward is not None and self._was_cut:
            self._onward.reset()
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        """This side does not keep up."""
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()
        if self._onward is not None and not self._onward.is_lost:
            self._onward.transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again, or never will."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        if self._onward is not None and not self._onward.is_lost:
            self._onward.transport.resume_reading()

    @property
    def is_lost(self) -> bool:
        """Whether it is gone."""
        return self.gone.done()

    @property
    def has_ended(self) -> bool:
        """Whether this side sends no more."""
        return self.ended.done()

    @property
    def held(self) -> bytes:
        """What has arrived and nobody took yet."""
        return bytes(self._held)

    async def wait_more(self, held: int = 0) -> bool:
        """Wait until more than `held` bytes are held; False: no more will come, or no more is held."""
        while len(self._held) <= held:
            if self.has_ended or len(self._held) >= HELD_BYTES:
                return False
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        return True

    async def read(self, limit_s: float) -> bytes:
        """What has arrived, at least a byte; empty: the side has ended. Raises: TimeoutError, ConnectionError (cut)."""
        async with asyncio.timeout(limit_s):
            await self.wait_more()
        if not self._held and self._was_cut:
            raise ConnectionResetError("the other side was cut")
        data, self._held = bytes(self._held), bytearray()
        if not self.transport.is_closing():
            self.transport.resume_reading()
        return data

    def unread(self, data: bytes) -> None:
        """Put back what was read, to be read first."""
        self._held[:0] = data

    def send(self, data: bytes) -> None:
        """Send without waiting: what does not fit is held, and `pause_writing` says so."""
        if not self.transport.is_closing():
            self.transport.write(data)

    async def write(self, data: bytes) -> None:
        """Send, and wait until this side keeps up. Raises: ConnectionError, TimeoutError (it takes nothing)."""
        if self.is_lost or self.transport.is_closing():
            raise ConnectionResetError("the other side is gone")
        self.transport.write(data)
        if self._writable is not None:
            async with asyncio.timeout(STALL_S):
                await asyncio.shield(self._writable)

    def send_eof(self) -> None:
        """Send no more, after what waits."""
        if not self.transport.is_closing() and self.transport.can_write_eof():
            with suppress(OSError, RuntimeError):
                self.transport.write_eof()

    def reset(self) -> None:
        """End at once, and let this side see that it was cut."""
        self._was_cut = True
        if self.is_lost:
            return
        with suppress(OSError, AttributeError):
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    async def finish(self) -> None:
        """End in an orderly way: send what waits, say that nothing follows, wait a moment for this side to end too."""
        self.send_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                self._held.clear()
                self.transport.resume_reading()
                await self.gone_or_ended()
        self.transport.close()

    async def gone_or_ended(self) -> None:
        """Wait until this side sends no more; what it still sends is thrown away."""
        while not self.has_ended:
            self._held.clear()
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    def begin(self, onward: Wire, check: Check | None = None) -> None:
        """From here on what arrives goes to `onward`, what is held first, as far as `check` lets it."""
        self._onward = onward
        self._check = check
        if self._held:
            data = bytes(self._held)
            self._held.clear()
            self._pass(data, onward)
        if self.has_ended:
            onward.send_eof()
        elif not self.is_lost and onward.keeps_up:
            self.transport.resume_reading()

    @property
    def keeps_up(self) -> bool:
        """Whether this side takes what is sent to it."""
        return self._writable is None

    def _pass(self, data: bytes, onward: Wire) -> None:
        if self._check is not None:
            try:
                data = self._check.feed(data)
            except Exception as error:  # noqa: BLE001 - whatever it is: nothing more passes, and `join` raises it
                self.breach = error
                onward.reset()
                self.reset()
                return
            if self._check.is_over:
                self._check = None
        if data:
            onward.send(data)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None


async def join(
    near: Wire, far: Wire, check: Check | None = None, *, clock: Callable[[], float] = time.monotonic
) -> None:
    """Carry bytes both ways until both sides have ended, one is cut, or both are silent too long: both are over then.

    Cancelling cuts both. Raises: what `check` raises.
    """
    near.begin(far, check)
    far.begin(near)
    try:
        while True:
            done, _ = await asyncio.wait((near.ended, far.ended), timeout=_LOOK_S)
            if len(done) == 2:  # noqa: PLR2004 - both
                break
            quiet_s = clock() - max(near.heard_at, far.heard_at)
            is_half = bool(done) or not (near.keeps_up and far.keeps_up)
            if quiet_s > (STALL_S if is_half else IDLE_S):
                break
        if near.has_ended and far.has_ended:
            near.transport.close()
            far.transport.close()
            await asyncio.wait((near.gone, far.gone), timeout=STALL_S)
    finally:
        near.reset()
        far.reset()
    if near.breach is not None:
        raise near.breach
