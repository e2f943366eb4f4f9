"""Answers of applications, in whatever pieces they come, and those that break the rules."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cove.edge.errors import BadUpstream, UpstreamTimeout
from cove.edge.upstream import HEAD_BYTES, Upstream
from cove.model.errors import Conflict, SandboxError, SandboxGone


class Pieces:
    """A connection that says what it was given, then closes (or raises)."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = list(pieces)

    async def __anext__(self) -> bytes:
        if not self.pieces:
            raise StopAsyncIteration
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def write(self, data: bytes) -> None:
        """Nothing reads it."""


async def _read(*pieces: bytes | Exception, is_head_request: bool = False) -> tuple[int, bytes, bool]:
    upstream = Upstream(Pieces(*pieces), "port 8000", late="wait", is_head_request=is_head_request)
    head = await upstream.head(1.0)
    body = b"".join([piece async for piece in upstream.body()])
    return head.status, body, upstream.is_reusable


def read(*pieces: bytes | Exception, is_head_request: bool = False) -> tuple[int, bytes, bool]:
    return asyncio.run(_read(*pieces, is_head_request=is_head_request))


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "body", "is_reusable"),
    [
        (LENGTH + b"hello", b"hello", True),
        (LENGTH + b"helloHTTP/1.1 200 OK\r\n\r\n", b"hello", False),
        (LENGTH + b"hello\0\0", b"hello", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n", b"abc", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab", b"ab", False),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end", False),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end", False),
        (b"HTTP/1.1 204 No\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not\r\nContent-Length: 7\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + LENGTH + b"hello", b"hello", True),
    ],
)
def test_answers_end_where_their_framing_says(answer: bytes, body: bytes, is_reusable: bool) -> None:  # noqa: FBT001
    assert read(answer)[1:] == (body, is_reusable)
    assert read(*[bytes([one]) for one in answer])[1] == body


def test_an_answer_to_head_has_no_body() -> None:
    assert read(LENGTH, is_head_request=True) == (200, b"", True)
    assert read(LENGTH + b"hello", is_head_request=True) == (200, b"", False)
    assert read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", is_head_request=True) == (200, b"", True)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n  folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x7fb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX Y: a\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: %b\r\n" % (b"a" * 1000) * 80 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
        b"HTTP/1.1 101 Switching\r\n\r\nnothing said",
        LENGTH + b"hel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_proper_answer_is_said_to_be_none(answer: bytes) -> None:
    with pytest.raises(BadUpstream, match="port 8000"):
        read(answer)
    pieces = [answer[at : at + 7] for at in range(0, len(answer), 7)]
    with pytest.raises(BadUpstream):
        read(*pieces)


def test_an_endless_head_is_bounded() -> None:
    piece = b"X: " + b"a" * 4000 + b"\r\n"
    endless = Pieces(b"HTTP/1.1 200 OK\r\n", *[piece] * 1000)
    upstream = Upstream(endless, "port 8000", late="wait", is_head_request=False)
    with pytest.raises(BadUpstream, match=str(HEAD_BYTES)):
        asyncio.run(upstream.head(1.0))
    assert len(endless.pieces) > 900


def test_a_reset_is_an_end_that_must_be_told() -> None:
    with pytest.raises(BadUpstream, match="in the middle"):
        read(b"HTTP/1.1 200 OK\r\n\r\nto the", SandboxError("connection reset"))
    with pytest.raises(SandboxGone):
        read(b"HTTP/1.1 200 OK\r\n\r\nto the", SandboxGone("died"))
    with pytest.raises(Conflict, match="hibernated"):
        read(b"HTTP/1.1 200 OK\r\n\r\nto the", Conflict("the sandbox was hibernated", field="state"))


def test_a_head_that_does_not_come_is_told_in_time_and_an_upload_puts_that_off() -> None:
    class Silent(Pieces):
        async def __anext__(self) -> bytes:
            await asyncio.sleep(60)
            return b""

    async def wait(put_off: int) -> float:
        upstream = Upstream(Silent(), "port 8000", late="wait", is_head_request=False)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(put_off):
            loop.call_later(0.05 * (number + 1), upstream.put_off, 0.1)
        with contextlib.suppress(UpstreamTimeout):
            await upstream.head(0.1)
            pytest.fail("it answered")
        return loop.time() - start

    assert 0.09 < asyncio.run(wait(0)) < 30
    assert 0.29 < asyncio.run(wait(4)) < 30


def test_a_head_that_nobody_takes_is_given_up() -> None:
    class Full(Pieces):
        async def write(self, data: bytes) -> None:
            del data
            await asyncio.Event().wait()

    with pytest.raises(UpstreamTimeout):
        asyncio.run(
            Upstream(Full(), "port 8000", late="wait", is_head_request=False).send_head(b"GET / HTTP/1.1\r\n\r\n", 0.05)
        )
