"""A client's connection after an upgrade: raw bytes both ways, with back-pressure, until both sides have ended.

A `Tunnel` takes a connection over (`Exchange.hand_over`); `join` moves its bytes to and from an application.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Protocol, cast

from cove.model.errors import CoveError

log = logging.getLogger(__name__)

HIGH_BYTES: Final = 256 * 1024
"""So much of a client's is held while the application does not read; then the client's kernel has to wait."""

LINGER_S: Final = 10.0
"""How long a client may take to close after the application has."""


class Far(Protocol):
    """The application's end: what a dialled port is."""

    async def __anext__(self) -> bytes:
        """The next bytes. Raises: StopAsyncIteration."""
        ...

    async def write(self, data: bytes) -> None:
        """Send, waiting while the other side does not read."""
        ...

    async def write_eof(self) -> None:
        """Half-close."""
        ...


class Tunnel(asyncio.Protocol):
    """The client's end, or a connection of ours to a service. One that takes nothing for `stall_s` is given up."""

    def __init__(self, stall_s: float) -> None:
        self._transport: asyncio.Transport
        self._stall_s = stall_s
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._has_ended = False
        self.was_reset = False
        self._changed: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._cut: asyncio.TimerHandle | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is ours from here."""
        self._transport = cast("asyncio.Transport", transport)

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone."""
        return self.gone.done()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open and nothing lies unread."""
        return not (self._chunks or self._has_ended or self.is_lost or self._transport.is_closing())

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        self._chunks.append(data)
        self._held += len(data)
        if self._held > HIGH_BYTES:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The client sends no more, and may still read; over TLS there is no such half."""
        self._has_ended = True
        self._wake()
        return self._transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self.was_reset = exc is not None
        self._has_ended = True
        if self._cut is not None:
            self._cut.cancel()
        if not self.gone.done():
            self.gone.set_result(None)
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        """The client does not keep up."""
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """It does again."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    async def read(self) -> bytes:
        """The next bytes of the client; empty: it sends no more."""
        while not self._chunks and not self._has_ended:
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        if not self._chunks:
            return b""
        data = self._chunks.popleft()
        self._held -= len(data)
        if self._held <= HIGH_BYTES and not self._transport.is_closing():
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> bool:
        """Send to the client and wait until it keeps up. False: it is gone, or has not read for too long."""
        if self.is_lost:
            return False
        self._transport.write(data)
        if self._writable is not None:
            try:
                async with asyncio.timeout(self._stall_s):
                    await asyncio.shield(self._writable)
            except TimeoutError:
                self._transport.abort()
                return False
        return not self.is_lost

    def write_eof(self) -> None:
        """Send no more."""
        if not self.is_lost and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def close(self) -> None:
        """End the connection after what is still to be sent, if the client takes that in time."""
        self._transport.close()
        if self._cut is None and not self.is_lost:
            self._cut = asyncio.get_running_loop().call_later(self._stall_s, self._transport.abort)

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)


async def join(tunnel: Tunnel, far: Far) -> None:
    """Move bytes both ways until both sides have ended, or either is gone. Never raises for what happens to a side."""
    try:
        async with asyncio.TaskGroup() as tasks:
            upload = tasks.create_task(_upload(tunnel, far))
            download = tasks.create_task(_download(tunnel, far))
            await asyncio.wait((tunnel.gone, download), return_when=asyncio.FIRST_COMPLETED)
            if not tunnel.is_lost:
                await asyncio.wait((tunnel.gone, upload), timeout=LINGER_S, return_when=asyncio.FIRST_COMPLETED)
            upload.cancel()
            download.cancel()
    except* CoveError as errors:
        # The switch was answered long ago: all that can still be told is the end of the connection.
        log.info("a tunnel was cut: %s", errors.exceptions[0])
    finally:
        tunnel.close()


async def _upload(tunnel: Tunnel, far: Far) -> None:
    while data := await tunnel.read():
        await far.write(data)
    if not tunnel.is_lost:
        await far.write_eof()


async def _download(tunnel: Tunnel, far: Far) -> None:
    while True:
        try:
            data = await far.__anext__()
        except StopAsyncIteration:
            tunnel.write_eof()
            return
        if not await tunnel.write(data):
            return
