"""The name server on the wire: UDP and TCP on the loopback address, with a resolver that only counts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from cove.engine.network.dns_server import AT_A_TIME, BURST, CONNECTIONS, serve_dns
from cove.engine.network.listener import bound
from cove.engine.network.port import Endpoint
from cove.engine.network.shares import Shares
from tests_support import free_port

ENDPOINT = Endpoint(box="b1", address="127.0.0.1", index=1)


class Echo:
    """Answers with the query, after `gate`; fails for what starts with `!`."""

    def __init__(self) -> None:
        self.gate: asyncio.Event | None = None
        self.working = 0
        self.most = 0

    async def answer(self, endpoint: Endpoint, message: bytes, *, limit: int = 0) -> bytes | None:  # noqa: ARG002
        if message.startswith(b"!"):
            raise RuntimeError(message)
        self.working += 1
        self.most = max(self.most, self.working)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.working -= 1
        return message


class Known:
    def __init__(self) -> None:
        self.endpoint: Endpoint | None = ENDPOINT

    def by_address(self, address: str) -> Endpoint | None:
        return self.endpoint if address == "127.0.0.1" else None

    def by_box(self, box: str) -> Endpoint | None:  # noqa: ARG002
        return self.endpoint


@asynccontextmanager
async def serving(echo: Echo, known: Known) -> AsyncGenerator[int]:
    port = free_port()
    datagrams = bound(_socket(socket.SOCK_DGRAM), "127.0.0.1", port)
    listener = bound(_socket(socket.SOCK_STREAM), "127.0.0.1", port)
    async with serve_dns(echo, known, datagrams, listener):  # type: ignore[arg-type]
        yield port


def _socket(kind: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.setblocking(False)
    return made


class Client(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        self.got.put_nowait(data)

    async def next(self) -> bytes:
        async with asyncio.timeout(60):
            return await self.got.get()


@asynccontextmanager
async def client(port: int) -> AsyncGenerator[tuple[asyncio.DatagramTransport, Client]]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", port))
    try:
        yield transport, protocol
    finally:
        transport.close()


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_failure_is_its_questions_own(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Echo(), Known()) as port, client(port) as (transport, protocol):
        transport.sendto(b"!" + b"\0" * 11)
        assert (await protocol.next())[3] & 0xF == 2
        transport.sendto(b"hello, name server")
        assert await protocol.next() == b"hello, name server"
    assert "could not be answered" in caplog.text


async def test_who_is_nobody_hears_nothing() -> None:
    known = Known()
    async with serving(Echo(), known) as port, client(port) as (transport, protocol):
        known.endpoint = None
        transport.sendto(b"who am I")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            assert await reader.read() == b"nothing"
        await closed(writer)
        assert protocol.got.empty()


async def test_a_flood_is_bounded_and_does_not_end_the_listener() -> None:
    echo = Echo()
    echo.gate = asyncio.Event()
    async with serving(echo, Known()) as port, client(port) as (transport, protocol):
        for _ in range(2 * int(BURST)):
            transport.sendto(b"flood")
        while echo.working < AT_A_TIME:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        echo.gate.set()
        for _ in range(AT_A_TIME):
            await protocol.next()
        assert echo.most == AT_A_TIME


async def test_queries_over_tcp_come_one_after_the_other() -> None:
    async with serving(Echo(), Known()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for text in (b"one", b"two"):
            writer.write(struct.pack("!H", len(text)) + text)
            assert await reader.readexactly(2 + len(text)) == struct.pack("!H", len(text)) + text
        writer.write(struct.pack("!H", 40000))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await closed(writer)


async def test_one_connection_too_many_is_closed() -> None:
    async with serving(Echo(), Known()) as port:
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS + 1)]
        with pytest.raises(ConnectionResetError):
            assert await pairs[-1][0].read() == b"nothing"
        for _, writer in pairs:
            await closed(writer)


def test_a_share_fills_up_again() -> None:
    now = 0.0
    shares = Shares(at_a_time=100, per_s=10, burst=5, clock=lambda: now)
    assert [shares.take("a") for _ in range(6)] == [True] * 5 + [False]
    assert shares.take("b")
    now = 0.1
    assert [shares.take("a") for _ in range(2)] == [True, False]


def test_a_share_is_for_so_many_at_a_time() -> None:
    shares = Shares(at_a_time=2, per_s=1000, burst=1000)
    with shares.one("a") as first, shares.one("a") as second, shares.one("a") as third:
        assert (first, second, third) == (True, True, False)
    with shares.one("a") as again:
        assert again
