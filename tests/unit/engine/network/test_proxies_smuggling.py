"""Requests put together at random from what smuggling is made of: what passes is read alike by llhttp."""

from __future__ import annotations

import asyncio
import contextlib
import random

import httptools
import pytest

from proxies_support import World, policy, world_of

LINES = (
    b"GET / HTTP/1.1\r\n", b"POST /a HTTP/1.1\r\n", b"GET /evil HTTP/1.1\r\n", b"GET http://evil.example/ HTTP/1.1\r\n",
    b"POST / HTTP/1.0\r\n", b"Host: good.example\r\n", b"Host: evil.example\r\n", b"hOsT:good.example\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: +5\r\n", b"content-length:5, 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"X: y\r\n", b" Host: evil.example\r\n", b"Connection: host, close\r\n", b"Connection: keep-alive\r\n",
    b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b"hello",
    b"5\r\nhello\r\n", b"0\r\n\r\n", b'5;x="\r\n', b"0\r\nHost: evil.example\r\n\r\n",
    b"GET /evil HTTP/1.1\r\nHost: evil.example\r\n\r\n",
)  # fmt: skip
HONEST = (
    b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: good.example\r\n",
)
SAMPLES = 900


class Server:
    """What llhttp makes of one connection."""

    def __init__(self, writer: asyncio.StreamWriter, hosts: list[tuple[bytes, bytes]]) -> None:
        self._writer = writer
        self._hosts = hosts
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self._hosts.append((self._target, value))

    def on_message_complete(self) -> None:
        self._target = b""
        self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def sample(chance: random.Random) -> bytes:
    """Honest requests and pieces in any order, one of them sometimes broken in the middle."""
    pieces = [
        chance.choice(HONEST) if chance.random() < 0.6 else b"".join(chance.choices(LINES, k=chance.randint(1, 4)))
        for _ in range(chance.randint(1, 4))
    ]
    data = b"".join(pieces)
    if chance.random() < 0.3:
        at = chance.randrange(len(data))
        data = data[:at] + chance.choice(LINES) + data[at + chance.randint(0, 2) :]
    return data


@pytest.mark.parametrize("seed", range(3))
async def test_what_passes_is_read_alike_by_another_parser(seed: int) -> None:
    hosts: list[tuple[bytes, bytes]] = []
    odd: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = httptools.HttpRequestParser(Server(writer, hosts))
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                try:
                    parser.feed_data(data)
                except (httptools.HttpParserUpgrade, httptools.HttpParserInvalidMethodError):
                    break  # llhttp knows a list of methods; any word is one
                except httptools.HttpParserError:
                    odd.append(data)
                    break
        writer.close()

    chance = random.Random(seed)  # noqa: S311 - the same ones each time
    async with world_of(serve) as world:
        world.policy = policy("good.example")
        for _ in range(SAMPLES // 3):
            data = sample(chance)
            await _say(world, data)
            assert not odd, data
            assert all(host.lower() == b"good.example" and not url.startswith(b"http") for url, host in hosts), data
        assert len(hosts) > SAMPLES // 6, "hardly anything passed: nothing was proved"


async def _say(world: World, data: bytes) -> None:
    reader, writer = await world.client(data)
    writer.write_eof()
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            await reader.read()
    writer.close()
