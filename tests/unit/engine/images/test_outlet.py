"""The proxy of a pull, spoken to as the program inside would. No real network: far hosts resolve to our loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cove.engine.clock import SystemClock
from cove.engine.images.addresses import RegistryRules
from cove.engine.images.outlet import Outlet, Refused

pytestmark = pytest.mark.real  # it listens on the loopback

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def far_side(handler: Handler = echo) -> AsyncGenerator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def proxy(outlet: Outlet) -> AsyncGenerator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with outlet.serving([listener], []):
            yield listener.getsockname()[1]


def outlet(insecure: tuple[str, ...] = (), registries: tuple[str, ...] = ("*",), **addresses: list[str]) -> Outlet:
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        if host not in addresses:
            raise OSError("unknown host")
        return addresses[host]

    found = Outlet(RegistryRules(registries, insecure), SystemClock(), connect_s=0.3, resolver=resolve)
    found.asked = asked  # type: ignore[attr-defined]
    return found


async def ask(port: int, request: bytes) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    return await asyncio.wait_for(reader.readline(), 60), reader, writer


async def test_a_tunnel_to_a_listed_host_carries_bytes_and_counts_them() -> None:
    async with far_side() as port:
        one = outlet(registries=(f"own:{port}",), own=["127.0.0.1"])
        async with proxy(one) as at:
            line, reader, writer = await ask(at, f"CONNECT own:{port} HTTP/1.1\r\nHost: own\r\n\r\n".encode())
            assert b" 200 " in line
            await reader.readline()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
        assert one.bytes == 5
        assert one.has_connected
        assert one.asked == ["own"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:10.0.0.1"])
async def test_a_name_that_resolves_to_a_closed_address_is_refused(address: str) -> None:
    one = outlet(evil=[address])
    async with proxy(one) as at:
        line, _, writer = await ask(at, b"CONNECT evil:443 HTTP/1.1\r\n\r\n")
        writer.close()
    assert b" 403 " in line
    assert "closed" in one.refused
    assert not one.has_connected


async def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    """DNS rebinding: a second question would get another answer, so there is none."""
    answers = [["8.8.8.8"], ["127.0.0.1"]]
    dialled: list[str] = []

    async def resolve(_host: str, _port: int) -> list[str]:
        return answers.pop(0)

    one = Outlet(RegistryRules(("*",), ()), SystemClock(), connect_s=0.3, resolver=resolve)

    async def connected(address: str, _port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        dialled.append(address)
        raise OSError("not really")

    one._connected = connected  # type: ignore[method-assign]
    with pytest.raises(OSError, match="not really"):
        await one.dial("rebinding", 443)
    assert dialled == ["8.8.8.8"]
    with pytest.raises(Refused):
        await one.dial("rebinding", 443)
    assert dialled == ["8.8.8.8"]


async def test_of_several_addresses_only_public_ones_are_tried() -> None:
    one = outlet(mixed=["10.0.0.1", "8.8.8.8", "127.0.0.1"])
    dialled: list[str] = []

    async def connected(address: str, _port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        dialled.append(address)
        raise OSError("not really")

    one._connected = connected  # type: ignore[method-assign]
    with pytest.raises(OSError, match="not really"):
        await one.dial("mixed", 443)
    assert dialled == ["8.8.8.8"]


async def test_an_unknown_host_and_a_closed_port_are_unreachable_not_refused() -> None:
    async with far_side() as port:
        pass
    one = outlet(registries=("own",), own=["127.0.0.1"])
    async with proxy(one) as at:
        line, _, writer = await ask(at, b"CONNECT nowhere:443 HTTP/1.1\r\n\r\n")
        assert b" 504 " in line
        writer.close()
        line, _, writer = await ask(at, f"CONNECT own:{port} HTTP/1.1\r\n\r\n".encode())
        assert b" 504 " in line
        writer.close()
    assert one.unreachable
    assert not one.refused
    assert not one.has_connected


async def test_a_host_that_swallows_connections_is_given_up_after_the_limit() -> None:
    with socket.socket() as full:  # its backlog is full: the kernel drops further SYNs
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        one = outlet(registries=("own",), own=["127.0.0.1"])
        begin = asyncio.get_running_loop().time()
        with pytest.raises(OSError, match="does not answer"):
            await one.dial("own", port)
        assert asyncio.get_running_loop().time() - begin < 2
        for sock in waiting:
            sock.close()


async def test_plain_http_goes_to_listed_hosts_only_and_is_sent_anew() -> None:
    got: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async with far_side(answer) as port:
        one = outlet(insecure=(f"own:{port}",), own=["127.0.0.1"], other=["8.8.8.8"])
        async with proxy(one) as at:
            request = f"GET http://own:{port}/v2/?a=b HTTP/1.1\r\nHost: own\r\nProxy-Connection: keep-alive\r\n\r\n"
            line, _, writer = await ask(at, request.encode())
            assert b" 204 " in line
            writer.close()
            line, _, writer = await ask(at, b"GET http://other/v2/ HTTP/1.1\r\nHost: other\r\n\r\n")
            assert b" 403 " in line
            writer.close()
    assert got == [b"GET /v2/?a=b HTTP/1.1\r\nHost: own\r\nConnection: close\r\n\r\n"]


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n", b"GET /relative HTTP/1.1\r\n\r\n", b"GET ftp://x/ HTTP/1.1\r\n\r\n",
        b"CONNECT x:99999999 HTTP/1.1\r\n\r\n", b"DELETE http://own/ HTTP/1.1\r\n\r\n", b"A" * 40000 + b"\r\n\r\n",
        b"\xff\xfe \x00 x\r\n\r\n", b"GET http://[::1/ HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_is_no_request_gets_no_connection(request_: bytes) -> None:
    one = outlet(own=["127.0.0.1"])
    async with proxy(one) as at:
        line, _, writer = await ask(at, request_)
        writer.close()
    assert not one.has_connected
    assert b" 200 " not in line
