"""Tells when something of a namespace may have changed, by the kernel's own messages. It does not say what.

rtnetlink(7) and nfnetlink have groups that a socket can listen to.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from cove.engine.network.netns import NetNs

Changes = AsyncIterator[None]
"""One turn after each burst of changes."""

_NETFILTER: Final = 12
_LINKS: Final = 0x1
_ADDRESSES_4: Final = 0x10
_ROUTES_4: Final = 0x40
_ADDRESSES_6: Final = 0x100
_RULES: Final = 0x40
_BUFFER: Final = 64 * 1024
_SETTLE_S: Final = 0.05
"""Changes come in bursts: one look is enough for all that come within."""


@asynccontextmanager
async def address_changes(space: NetNs) -> AsyncGenerator[Changes]:
    """Of addresses and routes, from now on. Raises: OSError."""
    async with _listening(space, socket.NETLINK_ROUTE, _ADDRESSES_4 | _ROUTES_4 | _ADDRESSES_6) as changes:
        yield changes


@asynccontextmanager
async def link_changes(space: NetNs) -> AsyncGenerator[Changes]:
    """Of interfaces and their addresses, from now on. Raises: OSError."""
    async with _listening(space, socket.NETLINK_ROUTE, _LINKS | _ADDRESSES_4) as changes:
        yield changes


@asynccontextmanager
async def rule_changes(space: NetNs) -> AsyncGenerator[Changes]:
    """Of packet rules, from now on. Raises: OSError."""
    async with _listening(space, _NETFILTER, _RULES) as changes:
        yield changes


@asynccontextmanager
async def _listening(space: NetNs, protocol: int, groups: int) -> AsyncGenerator[Changes]:
    listening = await space.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    with listening:
        listening.bind((0, groups))
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
