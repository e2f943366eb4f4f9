"""The server's own POSTs to addresses that its users name: one resolution, one checked address, no redirect.

The name is resolved once, every address is checked, and what was checked is dialled, so an answer that changes in
between changes nothing. TLS names the host of the URL. Nothing of the answer is kept but its status.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import AddressValueError, IPv4Address
from typing import Final, Protocol
from urllib.parse import urlsplit

from cove.model.closed import ClosedRanges

POST_S: Final = 10.0
HEAD_BYTES: Final = 16 * 1024
ADDRESSES: Final = 4
"""Addresses of one name that are tried."""


class PostRefused(Exception):
    """The address may not be reached; the text is for the hook's owner."""


class World(Protocol):
    """Names and connections as the server has them (`engine/network/outside.py`)."""

    async def resolve(self, host: str) -> list[str]:
        """The IPv4 addresses of a name. Raises: OSError."""
        ...

    async def connect(self, address: str, port: int) -> socket.socket:
        """A connected non-blocking socket. Raises: OSError."""
        ...


class OwnWorld:
    """The server's own namespace and resolver."""

    async def resolve(self, host: str) -> list[str]:
        """The IPv4 addresses of a name, by the machine's own resolver. Raises: OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def connect(self, address: str, port: int) -> socket.socket:
        """A connected non-blocking socket. Raises: OSError."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except BaseException:
            sock.close()
            raise
        return sock


class WebPost:
    """Sends POSTs. `tls` verifies certificates; None: those of the system."""

    def __init__(self, world: World, closed: Callable[[], ClosedRanges], tls: ssl.SSLContext | None = None) -> None:
        self._world = world
        self._closed = closed
        self._tls = tls or ssl.create_default_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send one POST; returns the status of the answer. Raises: PostRefused, OSError (TimeoutError, SSLError)."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        async with asyncio.timeout(POST_S):
            tls = self._tls if parts.scheme == "https" else None
            reader, writer = await connect(self._world, self._closed(), host, port, tls)
            try:
                writer.write(_request(parts.path, parts.query, parts.netloc, headers, body))
                await writer.drain()
                return await _status(reader)
            finally:
                writer.close()


async def connect(
    world: World, closed: ClosedRanges, host: str, port: int, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to an address that was checked. Raises: PostRefused, OSError (SSLError)."""
    sock = await _dial(world, closed, host, port)
    try:
        return await asyncio.open_connection(
            sock=sock, limit=HEAD_BYTES, ssl=tls, server_hostname=host if tls is not None else None
        )
    except BaseException:
        sock.close()
        raise


async def _dial(world: World, closed: ClosedRanges, host: str, port: int) -> socket.socket:
    addresses = [host] if _is_address(host) else await world.resolve(host)
    found = [address for address in addresses if closed.why(address, port) is None][:ADDRESSES]
    if not found:
        why = next((words for one in addresses if (words := closed.why(one, port)) is not None), "it has no address")
        raise PostRefused(f"{host} may not be reached: {why}")
    for address in found[:-1]:
        try:
            return await world.connect(address, port)
        except OSError:
            continue
    return await world.connect(found[-1], port)


def _is_address(host: str) -> bool:
    try:
        IPv4Address(host)
    except AddressValueError:
        return ":" in host
    return True


def _request(path: str, query: str, netloc: str, headers: Mapping[str, str], body: bytes) -> bytes:
    target = (path or "/") + (f"?{query}" if query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {netloc}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def _status(reader: asyncio.StreamReader) -> int:
    """Raises: OSError (it is no HTTP)."""
    try:
        line = await reader.readuntil(b"\r\n")
        version, status = line.split(b" ", 2)[:2]
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise OSError("the answer is no HTTP") from error
    if not version.startswith(b"HTTP/1.") or len(status.strip()) != 3 or not status.strip().isdigit():  # noqa: PLR2004
        raise OSError("the answer is no HTTP")
    return int(status)


Poster = Callable[[str, Mapping[str, str], bytes], Awaitable[int]]
"""`WebPost.post`."""
