"""Bytes both ways through one SSH channel, with the back-pressure of both ends. Knows no sandbox."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

HELD_BYTES: Final = 256 * 1024
"""What has come in and was not read yet, beside the channel's window: past it the client is told to wait."""

WRITE_HIGH_BYTES: Final = 256 * 1024

STDERR: Final = 1
"""SSH_EXTENDED_DATA_STDERR, RFC 4254 section 5.2."""


class Wire(Protocol):
    """What is used of asyncssh's channels."""

    def write(self, data: bytes, datatype: int | None = None) -> None: ...  # noqa: D102 - asyncssh's own

    def write_eof(self) -> None: ...  # noqa: D102

    def pause_reading(self) -> None: ...  # noqa: D102

    def resume_reading(self) -> None: ...  # noqa: D102

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102

    def is_closing(self) -> bool: ...  # noqa: D102


async def _at_once() -> None:
    """Nothing to wait for."""


class Duplex:
    """The session side of a channel: asyncssh calls `on_*`, one task reads and one writes.

    `room` returns when the connection that carries the channel has room.
    """

    def __init__(self, room: Callable[[], Awaitable[None]] = _at_once) -> None:
        self._room = room
        self._wire: Wire | None = None
        self._came: deque[bytes] = deque()
        self._held = 0
        self._has_eof = False
        self._is_paused = False
        self._is_lost = False
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    # Called by asyncssh.

    def on_made(self, wire: Wire) -> None:
        """The channel is open."""
        self._wire = wire
        wire.set_write_buffer_limits(WRITE_HIGH_BYTES)

    def on_data(self, data: bytes) -> None:
        """Bytes from the client."""
        self._came.append(data)
        self._held += len(data)
        if self._held >= HELD_BYTES and not self._is_paused and self._wire is not None:
            self._is_paused = True
            self._wire.pause_reading()
        self._arrived.set()

    def on_eof(self) -> None:
        """The client sends no more."""
        self._has_eof = True
        self._arrived.set()

    def on_writable(self, *, is_writable: bool) -> None:
        """The channel takes bytes, or should be left alone."""
        if is_writable:
            self._writable.set()
        else:
            self._writable.clear()

    def on_lost(self) -> None:
        """The channel is gone."""
        self._is_lost = self._has_eof = True
        self._came.clear()
        self._arrived.set()
        self._writable.set()

    # Called by the tasks.

    @property
    def is_lost(self) -> bool:
        """Whether nobody is there any more."""
        return self._is_lost

    async def read(self) -> bytes | None:
        """The next bytes from the client; None: it sends no more. Cancelling loses nothing."""
        while not self._came:
            if self._has_eof:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        data = self._came.popleft()
        self._held -= len(data)
        if self._is_paused and self._held < HELD_BYTES // 2 and not self._is_lost and self._wire is not None:
            self._is_paused = False
            self._wire.resume_reading()
        return data

    async def write(self, data: bytes, *, to_stderr: bool = False) -> None:
        """Send, and wait while the client does not read. Dropped when nobody is there."""
        await self._writable.wait()
        await self._room()
        if self._wire is None or self._is_lost or self._wire.is_closing():
            return
        with contextlib.suppress(BrokenPipeError, OSError):
            self._wire.write(data, STDERR if to_stderr else None)

    def write_eof(self) -> None:
        """Send no more."""
        if self._wire is not None and not self._is_lost:
            with contextlib.suppress(BrokenPipeError, OSError):
                self._wire.write_eof()

    def close(self) -> None:
        """Close the channel after what was written."""
        if self._wire is not None and not self._is_lost:
            self._wire.close()
