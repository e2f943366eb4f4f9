"""The sandboxes' name server on the wire: UDP and TCP at one address of the router. What it says: `resolver.py`.

Who asks is known by the source address, which the packet filter vouches for. A message of nobody is dropped. What one
sandbox may have in work is bounded, so a flood costs its own answers only; no message ends the listener.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, cast

from cove.engine.network.dnswire import QUERY_BYTES, Rcode, build_refusal
from cove.engine.network.listener import accepting
from cove.engine.network.port import Endpoint, Endpoints
from cove.engine.network.resolver import Resolver
from cove.engine.network.shares import Shares

log = logging.getLogger(__name__)

AT_A_TIME: Final = 128
PER_S: Final = 200.0
BURST: Final = 500.0
"""Questions of one sandbox. An installation of a large project asks some dozen; a crawler, a hundred a second."""

CONNECTIONS: Final = 8
"""Over TCP, of one sandbox at a time; past it a connection is closed at once."""

_IDLE_S: Final = 10.0
_ANSWER_LIMIT_S: Final = 10.0
"""More than an answer can take: all its waits have their own limits."""

_TCP_ANSWER: Final = 0xFFFF
_TCP_QUERIES: Final = 64


@asynccontextmanager
async def serve_dns(
    resolver: Resolver, endpoints: Endpoints, datagrams: socket.socket, listener: socket.socket
) -> AsyncGenerator[None]:
    """Answer on a bound UDP and a listening TCP socket, which are ours from here, until the block ends."""
    questions = Shares(at_a_time=AT_A_TIME, per_s=PER_S, burst=BURST)
    connections = Shares(at_a_time=CONNECTIONS, per_s=PER_S, burst=BURST)
    by_tcp = _Connections(resolver, endpoints, questions, connections)
    async with asyncio.TaskGroup() as tasks, accepting(listener, by_tcp.handle, limit=QUERY_BYTES + 2):
        transport, answering = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(resolver, endpoints, questions, tasks), sock=datagrams
        )
        try:
            yield
        finally:
            transport.close()
            answering.stop()


class _Datagrams(asyncio.DatagramProtocol):
    """Each query is a task of its own: one that waits for a name server holds up none."""

    def __init__(self, resolver: Resolver, endpoints: Endpoints, shares: Shares, tasks: asyncio.TaskGroup) -> None:
        self._resolver = resolver
        self._endpoints = endpoints
        self._shares = shares
        self._tasks = tasks
        self._running: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """One message of some sandbox."""
        endpoint = self._endpoints.by_address(addr[0])
        if endpoint is None or len(data) > QUERY_BYTES or not self._shares.take(endpoint.box):
            return  # dropped: the cheapest answer to a flood, and clients ask again
        task = self._tasks.create_task(self._answer(endpoint, data, addr))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def error_received(self, exc: Exception) -> None:
        """An answer could not be delivered: whoever asked is gone."""

    def stop(self) -> None:
        """Answer no more."""
        for task in self._running:
            task.cancel()

    async def _answer(self, endpoint: Endpoint, data: bytes, addr: tuple[str, int]) -> None:
        try:
            answer = await _answer_to(self._resolver, endpoint, data, 0)
            if answer is not None and not self._transport.is_closing():
                self._transport.sendto(answer, addr)
        finally:
            self._shares.give(endpoint.box)


class _Connections:
    """Queries over TCP, one after the other on each connection."""

    def __init__(self, resolver: Resolver, endpoints: Endpoints, questions: Shares, connections: Shares) -> None:
        self._resolver = resolver
        self._endpoints = endpoints
        self._questions = questions
        self._connections = connections

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One connection (`listener.Handle`)."""
        address: str = writer.get_extra_info("peername", ("", 0))[0]
        endpoint = self._endpoints.by_address(address)
        if endpoint is None:
            return False
        with self._connections.one(endpoint.box) as has_one:
            for _ in range(_TCP_QUERIES if has_one else 0):
                endpoint = self._endpoints.by_address(address)  # anew: its policy may have changed meanwhile
                if endpoint is None or not await self._next(endpoint, reader, writer):
                    return False
        return has_one

    async def _next(self, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(_IDLE_S):
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            if length > QUERY_BYTES:
                return False
            data = await reader.readexactly(length)
        with self._questions.one(endpoint.box) as has_one:
            answer = await _answer_to(self._resolver, endpoint, data, _TCP_ANSWER) if has_one else None
        if answer is None:
            return False
        writer.write(struct.pack("!H", len(answer)) + answer)
        async with asyncio.timeout(_IDLE_S):
            await writer.drain()
        return True


async def _answer_to(resolver: Resolver, endpoint: Endpoint, data: bytes, limit: int) -> bytes | None:
    """The outermost frame of one question: what goes wrong in it is its own."""
    try:
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            return await resolver.answer(endpoint, data, limit=limit)
    except Exception:  # the listener goes on whatever one question does
        log.exception("a question of a sandbox could not be answered", extra={"sandbox": endpoint.box})
        return build_refusal(data, Rcode.SERVFAIL)
