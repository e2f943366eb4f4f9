"""The server's own GETs of addresses that its users name: as `webpost.py`, the address that is dialled was checked.

No redirect is followed: whoever asks gets its target, checks that as the first one, and asks again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from cove.engine.webpost import World, connect
from cove.model.closed import ClosedRanges

_HEAD_LINES: Final = 200
_PIECE_BYTES: Final = 64 * 1024
_STATUS_DIGITS: Final = 3


class Got(Struct, frozen=True, kw_only=True):
    """An answer. `location`: where it points. `body` has one byte more than was allowed, at most."""

    status: int
    location: str | None
    body: bytes


Getter = Callable[[str, int], Awaitable[Got]]


class WebGet:
    """Sends GETs. `tls` verifies certificates."""

    def __init__(self, world: World, closed: Callable[[], ClosedRanges], tls: ssl.SSLContext) -> None:
        self._world = world
        self._closed = closed
        self._tls = tls

    async def get(self, url: str, most_bytes: int) -> Got:
        """Ask for `url`, and read a little more than `most_bytes`. Has no time limit of its own.

        Raises: PostRefused (all its addresses are closed), OSError (SSLError; it is no HTTP).
        """
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        tls = self._tls if parts.scheme == "https" else None
        reader, writer = await connect(self._world, self._closed(), parts.hostname or "", port, tls)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            host = parts.netloc.rpartition("@")[2]
            lines = (f"GET {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity", "Connection: close")
            writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
            await writer.drain()
            return await _read(reader, most_bytes)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise OSError("the answer is no HTTP") from error
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, most_bytes: int) -> Got:
    version, _, rest = (await reader.readuntil(b"\r\n")).partition(b" ")
    digits = rest[:_STATUS_DIGITS]
    if not version.startswith(b"HTTP/1.") or not digits.isdigit() or len(digits) != _STATUS_DIGITS:
        raise ValueError("no status line")
    headers: dict[bytes, bytes] = {}
    for _ in range(_HEAD_LINES):
        line = (await reader.readuntil(b"\r\n")).rstrip(b"\r\n")
        if not line:
            break
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    else:
        raise ValueError("too many header lines")
    location = headers.get(b"location")
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = await _chunks(reader, most_bytes)
    else:
        length = headers.get(b"content-length", b"")
        body = await _bytes(reader, int(length) if length.isdigit() else None, most_bytes)
    return Got(status=int(digits), location=None if location is None else location.decode("latin-1"), body=body)


async def _bytes(reader: asyncio.StreamReader, length: int | None, most_bytes: int) -> bytes:
    """`length` None: to the end of the connection. Raises: IncompleteReadError."""
    found = bytearray()
    wanted = most_bytes + 1 if length is None else min(length, most_bytes + 1)
    while len(found) < wanted and (piece := await reader.read(min(wanted - len(found), _PIECE_BYTES))):
        found += piece
    if length is not None and len(found) < wanted:
        raise asyncio.IncompleteReadError(bytes(found[:100]), length)
    return bytes(found)


async def _chunks(reader: asyncio.StreamReader, most_bytes: int) -> bytes:
    found = bytearray()
    while len(found) <= most_bytes:
        size = int((await reader.readuntil(b"\r\n")).partition(b";")[0].strip(), 16)
        if size <= 0:
            break
        found += await _bytes(reader, size, most_bytes)
        if len(found) > most_bytes:
            break
        await reader.readuntil(b"\r\n")
    return bytes(found[: most_bytes + 1])
