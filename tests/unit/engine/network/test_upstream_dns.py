"""Asking name servers that answer late, wrongly, too much or never. Servers are sockets on the loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.rrset
import pytest

from cove.engine.network.dnswire import Answer, Kind, Rcode
from cove.engine.network.upstream_dns import NameServer, NoAnswer, Upstream, name_servers
from tests_support import free_port

Say = Callable[[dns.message.Message], list[bytes]]


class Here:
    """The test's own namespace."""

    async def socket(self, family: int, kind: int, protocol: int = 0, /) -> socket.socket:
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


@asynccontextmanager
async def server(say: Say, by_tcp: Say | None = None) -> AsyncGenerator[NameServer]:
    """A name server that sends what `say` returns for each query."""

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            for answer in say(dns.message.from_wire(data)):
                self.transport.sendto(answer, addr)  # type: ignore[attr-defined]

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, OSError):
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            for answer in (by_tcp or say)(dns.message.from_wire(await reader.readexactly(length))):
                writer.write(answer)
                await writer.drain()
        writer.close()

    port = free_port()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", port))
    try:
        async with await asyncio.start_server(take, "127.0.0.1", port):
            yield NameServer("127.0.0.1", port)
    finally:
        transport.close()


def honest(query: dns.message.Message, address: str = "11.0.0.1") -> bytes:
    answer = dns.message.make_response(query, recursion_available=True)
    answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", address))
    return answer.to_wire()


def framed(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


def with_id_off_by_one(message: bytes) -> bytes:
    return struct.pack("!H", (message[0] << 8 | message[1]) + 1 & 0xFFFF) + message[2:]


async def ask(*servers: NameServer, **limits: float) -> Answer:
    return await Upstream(servers, Here(), **limits).ask("www.example", Kind.A)


def data(answer: Answer) -> list[bytes]:
    return [record.data for record in answer.records]


async def test_an_answer_comes_back() -> None:
    async with server(lambda query: [honest(query)]) as one:
        assert data(await ask(one)) == [b"\x0b\0\0\x01"]


async def test_answers_to_other_questions_are_passed_over() -> None:
    def say(query: dns.message.Message) -> list[bytes]:
        other = dns.message.make_query("other.example", "A", id=query.id)
        return [with_id_off_by_one(honest(query, "11.6.6.6")), honest(other, "11.6.6.6"), b"x", honest(query)]

    async def only_strangers() -> None:
        async with server(lambda query: [with_id_off_by_one(honest(query))] * 20) as one:
            await ask(one)

    with pytest.raises(NoAnswer):
        await only_strangers()
    async with server(lambda query: say(query)[:2] + say(query)[3:]) as one:
        assert data(await ask(one)) == [b"\x0b\0\0\x01"]


async def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    def cut(query: dns.message.Message) -> list[bytes]:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.TC
        return [answer.to_wire()]

    async with server(cut, lambda query: [framed(honest(query))]) as one:
        assert data(await ask(one)) == [b"\x0b\0\0\x01"]
    async with server(cut, lambda query: [framed(honest(query) + b"\0" * 60000)]) as one:
        with pytest.raises(NoAnswer, match="bytes"):
            await ask(one)
    async with server(cut, lambda query: [framed(honest(query))[:9]]) as one:
        with pytest.raises(NoAnswer):
            await ask(one)


async def test_a_silent_server_is_left_for_the_next() -> None:
    async with server(lambda _: []) as silent, server(lambda query: [honest(query)]) as able:
        assert data(await ask(silent, able, try_s=0.05)) == [b"\x0b\0\0\x01"]
        with pytest.raises(NoAnswer, match="in time"):
            await ask(silent, try_s=0.05)
        with pytest.raises(NoAnswer):
            await ask(silent, limit_s=0.1)


async def test_a_server_that_fails_is_left_for_the_next() -> None:
    def fail(query: dns.message.Message) -> list[bytes]:
        answer = dns.message.make_response(query)
        answer.set_rcode(Rcode.SERVFAIL)
        return [answer.to_wire()]

    async with server(fail) as failing, server(lambda query: [honest(query)]) as able:
        assert data(await ask(failing, able)) == [b"\x0b\0\0\x01"]
        with pytest.raises(NoAnswer, match="rcode 2"):
            await ask(failing)


async def test_nobody_to_ask_is_no_answer() -> None:
    with pytest.raises(NoAnswer):
        await ask()
    with pytest.raises(NoAnswer):
        await ask(NameServer("127.0.0.1", free_port()))


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("9.9.9.9", "9.9.9.9", 53), ("9.9.9.9:5353", "9.9.9.9", 5353), ("2620:fe::fe", "2620:fe::fe", 53),
     ("[2620:fe::fe]:54", "2620:fe::fe", 54), ("[2620:fe::fe]", "2620:fe::fe", 53)],
)  # fmt: skip
def test_name_servers_are_addresses_with_or_without_port(text: str, address: str, port: int) -> None:
    assert NameServer.parse(text) == NameServer(address, port)


@pytest.mark.parametrize("text", ["", "dns.example", "1.2.3.4:x", "1.2.3.4:0", "1.2.3.4:99999"])
def test_what_is_no_name_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        NameServer.parse(text)


def test_the_operators_servers_come_before_those_of_the_machine(tmp_path: Path) -> None:
    assert name_servers(["9.9.9.9"], None) == (NameServer("9.9.9.9"),)
    here = name_servers([], None)
    assert len(here) <= 3
    assert name_servers([], Path("/run/netns/no-such-namespace")) == here
