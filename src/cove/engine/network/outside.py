"""How the server itself reaches the world for a sandbox: names and connections in the outside namespace.

It checks no address: whoever dials asks `model/closed.py` first, for each address.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

CONNECT_S: Final = 5.0
"""For one address; a service that has several is tried at the next one then."""

_USER_TIMEOUT_MS: Final = 60_000


class Sockets(Protocol):
    """A namespace that makes sockets (`netns.NetNs`)."""

    async def socket(self, family: int, kind: int, protocol: int = 0, /) -> socket.socket:
        """A non-blocking socket of that namespace. Raises: OSError."""
        ...


class Outside:
    """The world, as seen from the outside namespace. `resolver` gives the IPv4 addresses of a name."""

    def __init__(self, sockets: Sockets, resolver: Callable[[str], Awaitable[list[str]]]) -> None:
        self._sockets = sockets
        self._resolver = resolver

    async def resolve(self, host: str) -> list[str]:
        """The IPv4 addresses of a name, without doubles. Raises: OSError."""
        return list(dict.fromkeys(await self._resolver(host)))

    async def connect(self, address: str, port: int) -> socket.socket:
        """A connected non-blocking socket. Raises: OSError (TimeoutError)."""
        sock = await self._sockets.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except BaseException:
            sock.close()
            raise
        return sock
