"""How much waits for one client, over all of its channels: asyncssh itself counts only what their windows hold.

A client says how large its windows are, and may then read nothing, or begin a key exchange and never finish it. Whoever
sends waits here too; answers to the client's own packets cannot wait, so too many of those end the connection.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import asyncssh

HIGH_BYTES: Final = 512 * 1024
"""So much may wait for the client's kernel; whoever sends more waits."""

MOST_BYTES: Final = 8 * 1024 * 1024
MOST_DEFERRED: Final = 4096
"""Packets that wait for the end of a key exchange."""

EXCHANGE_S: Final = 0.02
"""How often it is asked whether a key exchange has ended: there is one for each GiB."""


class Backlog:
    """Of one connection. asyncssh ignores what the transport says of its buffer, so its callbacks are taken over."""

    def __init__(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn = cast("Any", conn)  # the members that are used here are in none of its types
        self._transport = self._conn._transport  # noqa: SLF001 - as above
        self._take = self._conn._recv_data  # noqa: SLF001 - as above; uvloop has bound `data_received` already
        self._is_full = False
        self._is_lost = False
        self._changed = asyncio.Event()
        self._transport.set_write_buffer_limits(HIGH_BYTES)
        self._conn.pause_writing = self._pause
        self._conn.resume_writing = self._resume
        self._conn._recv_data = self._received  # noqa: SLF001 - as above

    async def wait(self) -> None:
        """Return when there is room, or nobody to send to."""
        while not self._is_lost:
            if self._is_full:
                self._changed.clear()
                await self._changed.wait()
            elif self._conn._deferred_packets:  # noqa: SLF001 - as above
                await asyncio.sleep(EXCHANGE_S)
            else:
                return

    def lose(self) -> None:
        """The connection is gone."""
        self._is_lost = True
        self._changed.set()

    def _pause(self) -> None:
        self._is_full = True

    def _resume(self) -> None:
        self._is_full = False
        self._changed.set()

    def _received(self) -> None:
        self._take()
        waiting = self._transport.get_write_buffer_size()
        if waiting > MOST_BYTES or len(self._conn._deferred_packets) > MOST_DEFERRED:  # noqa: SLF001 - as above
            self._conn.abort()
