"""Asks the operator's name servers, from the outside namespace. No policy here, no cache: one question, one answer.

Each question goes out from a socket of its own, connected to the server, with a random id: what did not come from that
server to that port with that id for that name is passed over. A truncated answer is asked for again over TCP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from cove.engine.network.dnswire import (
    ANSWER_BYTES,
    QUERY_BYTES,
    Answer,
    Malformed,
    NotOurs,
    Rcode,
    build_query,
    parse_answer,
)

TRY_S: Final = 1.5
"""For one server to answer; then the next one is asked."""

LIMIT_S: Final = 4.5
"""For all of them together. A client's own limit is usually 5 s."""

_ROUNDS: Final = 2
_STRAYS: Final = 16
_SERVERS: Final = 3
_PORT: Final = 53
_USABLE: Final = (Rcode.NOERROR, Rcode.NXDOMAIN)


class NoAnswer(Exception):
    """No name server gave a usable answer in time. The text is for logs."""


class Sockets(Protocol):
    """A namespace that makes sockets (`netns.NetNs`)."""

    async def socket(self, family: int, kind: int, protocol: int = 0, /) -> socket.socket:
        """A non-blocking socket of that namespace. Raises: OSError."""
        ...


class NameServer(Struct, frozen=True):
    """One that we ask."""

    address: str
    port: int = _PORT

    @property
    def family(self) -> int:
        """Of its address."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    @classmethod
    def parse(cls, text: str) -> NameServer:
        """`ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`. Raises: ValueError."""
        host, port = text.strip(), _PORT
        if host.startswith("["):
            host, _, rest = host[1:].partition("]")
            port = int(rest.removeprefix(":")) if rest else _PORT
        elif host.count(":") == 1:
            host, _, rest = host.partition(":")
            port = int(rest)
        if not 0 < port <= 0xFFFF:  # noqa: PLR2004 - ports end there
            raise ValueError(f"{text} has no port")
        return cls(str(ipaddress.ip_address(host)), port)


def name_servers(configured: Sequence[str], outside: Path | None) -> tuple[NameServer, ...]:
    """The operator's name servers, or those of the outside namespace's resolv.conf (`ip-netns(8)`), three at most.

    `outside`: the namespace's file, None: the server's own. Raises: ValueError.
    """
    if configured:
        return tuple(NameServer.parse(text) for text in configured)
    files = [Path("/etc/resolv.conf")]
    if outside is not None:
        files.insert(0, Path("/etc/netns") / outside.name / "resolv.conf")
    for file in files:
        with suppress(OSError, UnicodeDecodeError):
            return _read(file.read_text())
    return ()


def _read(text: str) -> tuple[NameServer, ...]:
    found: list[NameServer] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with suppress(ValueError):
                found.append(NameServer.parse(f"[{words[1]}]" if "%" not in words[1] else ""))
    return tuple(found[:_SERVERS])


class Upstream:
    """The name servers, asked in their order."""

    def __init__(
        self, servers: Sequence[NameServer], outside: Sockets, *, try_s: float = TRY_S, limit_s: float = LIMIT_S
    ) -> None:
        self._servers = tuple(servers)
        self._outside = outside
        self._try_s = try_s
        self._limit_s = limit_s

    async def ask(self, name: str, kind: int) -> Answer:
        """What the first server that is able says of `name` (lower case, no trailing dot). Raises: NoAnswer."""
        last: Answer | None = None
        why = "no name server is configured"
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limit_s):
                for server in self._servers * _ROUNDS:
                    try:
                        async with asyncio.timeout(self._try_s):
                            last = await self._ask(server, name, kind)
                    except (OSError, Malformed, EOFError) as error:  # a TimeoutError is an OSError
                        why = f"{server.address}: {str(error) or 'no answer in time'}"
                        continue
                    if last.rcode in _USABLE:
                        return last
                    why = f"{server.address}: rcode {last.rcode}"
        raise NoAnswer(why)

    async def _ask(self, server: NameServer, name: str, kind: int) -> Answer:
        number = secrets.randbits(16)
        query = build_query(number, name, kind)
        loop = asyncio.get_running_loop()
        sock = await self._outside.socket(server.family, socket.SOCK_DGRAM)
        with sock:
            sock.connect((server.address, server.port))  # nothing is sent: it sets the peer, and a random port
            sock.send(query)
            answer: Answer | None = None
            for _ in range(_STRAYS):
                message = await loop.sock_recv(sock, QUERY_BYTES + 1)
                with suppress(NotOurs):
                    answer = parse_answer(message, number=number, name=name, kind=kind)
                    break
        if answer is None:
            raise Malformed("only answers to other questions")
        return await self._ask_by_tcp(server, name, kind) if answer.is_truncated else answer

    async def _ask_by_tcp(self, server: NameServer, name: str, kind: int) -> Answer:
        number = secrets.randbits(16)
        query = build_query(number, name, kind)
        loop = asyncio.get_running_loop()
        sock = await self._outside.socket(server.family, socket.SOCK_STREAM)
        with sock:
            await loop.sock_connect(sock, (server.address, server.port))
            await loop.sock_sendall(sock, struct.pack("!H", len(query)) + query)
            (length,) = struct.unpack("!H", await _exactly(sock, 2))
            if length > ANSWER_BYTES:
                raise Malformed(f"an answer of {length} bytes")
            answer = parse_answer(await _exactly(sock, length), number=number, name=name, kind=kind)
        if answer.is_truncated:
            raise Malformed("truncated over TCP")
        return answer


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        piece = await loop.sock_recv(sock, count - len(data))
        if not piece:
            raise EOFError("the connection ended")
        data += piece
    return data
