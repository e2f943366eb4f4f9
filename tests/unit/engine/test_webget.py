"""The server's own GETs: what an answer may be, and that what is closed is not dialled."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from cove.engine.webget import Got, WebGet
from cove.engine.webpost import OwnWorld, PostRefused
from cove.model.closed import ClosedRanges, Opening


@asynccontextmanager
async def answering(answer: bytes) -> AsyncGenerator[tuple[str, list[bytes]]]:
    """A server on the loopback address that says `answer` to whatever comes."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/a?b=c", asked


def getter(*opened: Opening) -> WebGet:
    return WebGet(OwnWorld(), lambda: ClosedRanges(opened), ssl.create_default_context())


class Nothing(ClosedRanges):
    """Nothing is closed."""

    def why(self, address: str, port: int | None = None) -> str | None:
        del address, port
        return None


async def got(answer: bytes, most: int = 100) -> Got:
    async with answering(answer) as (url, asked):
        found = await WebGet(OwnWorld(), Nothing, ssl.create_default_context()).get(url, most)
        assert asked[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")
        return found


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", b"abc"),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 204\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_bodies(answer: bytes, body: bytes) -> None:
    found = await got(answer)
    assert (found.body, found.location) == (body, None)


async def test_a_redirect_is_told_and_not_followed() -> None:
    found = await got(b"HTTP/1.1 302 Found\r\nLocation: https://example.com/\r\nContent-Length: 0\r\n\r\n")
    assert (found.status, found.location) == (302, "https://example.com/")


async def test_no_more_is_read_than_asked_for() -> None:
    endless = b"x" * 1_000_000
    assert len((await got(b"HTTP/1.1 200 OK\r\n\r\n" + endless, 10)).body) == 11
    assert len((await got(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + endless, 10)).body) == 11
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nF4240\r\n" + endless + b"\r\n0\r\n\r\n"
    assert len((await got(chunked, 10)).body) == 11


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_an_error(answer: bytes) -> None:
    with pytest.raises(OSError, match="no HTTP"):
        await got(answer)


async def test_what_is_closed_is_not_dialled() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as (url, asked):
        with pytest.raises(PostRefused):
            await getter().get(url, 10)
        assert asked == []
