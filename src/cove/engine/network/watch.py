"""Tells when the machine's own addresses may have changed (rtnetlink(7), multicast groups). It does not say how."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from cove.engine.network.netns import NetNs

_ADDRESSES_4: Final = 0x10
_ROUTES_4: Final = 0x40
_ADDRESSES_6: Final = 0x100
_BUFFER: Final = 64 * 1024
_SETTLE_S: Final = 0.05
"""Changes come in bursts: one look is enough for all that come within."""


@asynccontextmanager
async def address_changes(space: NetNs) -> AsyncGenerator[AsyncIterator[None]]:
    """Listen from now on; the iterator gives one turn after each burst of changes. Raises: OSError."""
    listening = await space.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    with listening:
        listening.bind((0, _ADDRESSES_4 | _ROUTES_4 | _ADDRESSES_6))
        yield _turns(listening)


async def _turns(listening: socket.socket) -> AsyncIterator[None]:
    while True:
        await _one(listening)
        await asyncio.sleep(_SETTLE_S)
        _drain(listening)
        yield


async def _one(listening: socket.socket) -> None:
    try:
        await asyncio.get_running_loop().sock_recv(listening, _BUFFER)
    except OSError as error:
        # More came than the socket holds: what was lost is a change too.
        if error.errno != errno.ENOBUFS:
            raise


def _drain(listening: socket.socket) -> None:
    try:
        while listening.recv(_BUFFER):
            continue
    except BlockingIOError:
        return
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
