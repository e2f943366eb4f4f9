"""Connections that hold, flood, stall or cut: in this process, over loopback, with limits short enough to wait for."""


# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202, ANN204, C901 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from cove.dialects.native import errors
from cove.edge.dialect import Dialect
from cove.edge.download import Download
from cove.edge.front import Front
from cove.edge.limits import EdgeLimits
from cove.edge.metrics import Metrics
from cove.edge.ops import Json, Op, ServerFacts, Services
from cove.edge.sse import Events, event
from cove.edge.stopping import Stopping
from cove.server.listen import _listener
from waiting_support import comes_true

LIMITS = EdgeLimits(
    json_body_bytes=1000,
    body_stall_s=0.3,
    reader_stall_s=0.5,
    ping_s=0.15,
    connections=8,
    head_bytes=4096,
    head_s=0.3,
    idle_connection_s=1,
    stop_grace_s=1,
)


class Tracks:
    """What happened to handlers."""

    def __init__(self):
        self.cancelled = 0
        self.taken = 0
        self.closed = 0


def app(tracks):
    async def echo(call):
        return Json({"n": len(call.raw_body)})

    async def slow(call):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            tracks.cancelled += 1
            raise
        return Json({})

    async def take(call):
        async for piece in call.chunks():
            tracks.taken += len(piece)
        return Json({"n": tracks.taken})

    @asynccontextmanager
    async def open_at(offset, length):
        async def pieces():
            while True:
                tracks.taken += 65536
                yield b"x" * 65536

        try:
            yield pieces(), None
        finally:
            tracks.closed += 1

    async def download(call):
        return Download(open_at, None, [])

    async def boom(call):
        raise RuntimeError("a secret")

    @asynccontextmanager
    async def source():
        async def values():
            yield b"one"
            await asyncio.sleep(30)

        try:
            yield values()
        finally:
            tracks.closed += 1

    async def stream(call):
        return Events(source(), lambda data: event(b"data", data))

    async def flood(call):
        @asynccontextmanager
        async def endless():
            async def values():
                while True:
                    tracks.taken += 65536
                    yield b"x" * 65536

            try:
                yield values()
            finally:
                tracks.closed += 1

        return Events(endless(), lambda data: event(b"data", data))

    def op(method, path, handler, **more):
        return Op(method=method, path=path, handler=handler, summary=path, tag="t", public=True, **more)

    dialect = Dialect(
        name="t",
        prefix="/t",
        ops=(
            op("POST", "/echo", echo, body=None),
            op("POST", "/slow", slow, watched=True),
            op("PUT", "/take", take, upload=True),
            op("GET", "/stream", stream),
            op("GET", "/flood", flood),
            op("GET", "/download", download),
            op("GET", "/boom", boom),
        ),
        errors=errors.TABLE,
    )
    services = Services(core=SimpleNamespace(), control=None, metrics=Metrics(), facts=ServerFacts(version="0"))
    stopping = Stopping()
    return Front((dialect,), services, limits=LIMITS, stopping=stopping), stopping


@asynccontextmanager
async def serving():
    tracks = Tracks()
    front, stopping = app(tracks)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    listener = _listener(front, LIMITS, local_only=False, ssl_certfile=None, ssl_keyfile=None)
    task = asyncio.create_task(listener.serve(sockets=[sock]))
    while not listener.started:
        await asyncio.sleep(0.01)
    try:
        yield SimpleNamespace(port=port, tracks=tracks, stopping=stopping)
    finally:
        listener.should_exit = True
        stopping.stop()
        await asyncio.wait_for(task, 60)


async def talk(port, *pieces, wait=60.0):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), wait)
    finally:
        writer.close()


async def test_a_head_that_never_ends_is_answered_408():
    async with serving() as server:
        assert b" 408 " in await talk(server.port, b"GET /t/boom HTTP/1.1\r\nHost: x\r\n")
        assert b" 408 " in await talk(server.port)
        assert b" 408 " in await talk(server.port, b"\r\n\r\n")


async def test_a_head_that_is_too_large_is_answered_431():
    async with serving() as server:
        answer = await talk(server.port, b"GET /t/boom HTTP/1.1\r\nA: " + b"x" * 8000)
        assert b" 431 " in answer


async def test_what_is_no_http_is_answered_400():
    async with serving() as server:
        assert b" 400 " in await talk(server.port, b"\x16\x03\x01 hello\r\n\r\n")
        assert b" 400 " in await talk(
            server.port, b"POST /t/echo HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )


async def test_a_body_that_stalls_is_answered_408_and_closed():
    async with serving() as server:
        head = b"POST /t/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        assert b" 408 " in await talk(server.port, head, b"{")
        assert b" 408 " in await talk(server.port, head.replace(b"POST /t/echo", b"PUT /t/take"), b"{")


async def test_connections_beyond_the_limit_get_503_at_once():
    async with serving() as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(LIMITS.connections)]
        assert b" 503 " in await talk(server.port)
        for _, writer in held:
            writer.close()


async def test_a_client_that_goes_away_cancels_a_watched_operation():
    async with serving() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /t/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.close()
        await comes_true(lambda: server.tracks.cancelled == 1)


async def test_a_silent_stream_has_pings_and_its_source_is_closed_with_it():
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /t/stream HTTP/1.1\r\nHost: x\r\n\r\n")
        found = b""
        while found.count(b": ping") < 2:
            found += await asyncio.wait_for(reader.read(1000), 60)
        assert b"data: one" in found
        writer.close()
        await comes_true(lambda: server.tracks.closed == 1)


async def test_a_reader_that_never_reads_holds_one_buffer_and_is_cut():
    async with serving() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.transport.pause_reading()
        writer.write(b"GET /t/flood HTTP/1.1\r\nHost: x\r\n\r\n")
        await comes_true(lambda: server.tracks.closed == 1)
        assert server.tracks.taken < 32 * 1024 * 1024
        writer.close()


async def test_a_download_whose_client_went_away_is_read_no_further():
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /t/download HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.read(1000)
        writer.transport.abort()
        await comes_true(lambda: server.tracks.closed == 1)


async def test_a_stopping_server_ends_long_requests_with_a_reason():
    async with serving() as server:
        slow = asyncio.create_task(
            talk(server.port, b"POST /t/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        )
        stream = asyncio.create_task(
            talk(server.port, b"GET /t/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        )
        await asyncio.sleep(0.2)
        server.stopping.stop()
        assert b"server-stopping" in await slow
        assert b"event: error" in await stream


async def test_a_failure_of_ours_tells_a_request_id_and_nothing_else():
    async with serving() as server:
        answer = await talk(server.port, b"GET /t/boom HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 500 " in answer
        assert b"secret" not in answer
        assert b"req_" in answer


async def test_pipelined_requests_are_answered_in_order():
    one = b"POST /t/echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
    async with serving() as server:
        last = one.replace(b"Host: x", b"Host: x\r\nConnection: close")
        answer = await talk(server.port, one % (2, b"{}"), last % (4, b"{  }"))
        assert answer.index(b'{"n":2}') < answer.index(b'{"n":4}')


@pytest.mark.parametrize("size", [1001, 10**9, 10**30])
async def test_an_announced_body_over_the_limit_is_refused_before_it_comes(size):
    async with serving() as server:
        head = b"POST /t/echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
        answer = await talk(server.port, head)
        assert b" 413 " in answer or b" 400 " in answer
