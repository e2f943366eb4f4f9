"""WebSockets that hold, flood, stall, lie or vanish: in this process, over loopback, with short limits."""

# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import websockets
from msgspec import Struct

from cove.core.ratelimits import RateLimits, RateSettings
from cove.dialects.native import errors
from cove.edge.auth import LOCAL_MARK
from cove.edge.dialect import Dialect
from cove.edge.front import Front
from cove.edge.limits import EdgeLimits
from cove.edge.metrics import Metrics
from cove.edge.ops import Json, Op, ServerFacts, Services
from cove.edge.stopping import Stopping
from cove.edge.websocket import WebSocket
from cove.engine.clock import SystemClock
from cove.model.errors import BadRequest, CapacityExceeded, Conflict, SandboxGone, Unauthorized
from cove.server.listen import LocalOperator, _listener
from waiting_support import comes_true

LIMITS = EdgeLimits(
    json_body_bytes=1000,
    reader_stall_s=0.6,
    connections=8,
    head_bytes=4096,
    head_s=0.3,
    idle_connection_s=1,
    stop_grace_s=1,
    websocket_message_bytes=100_000,
    websocket_ping_s=0.2,
    websocket_close_s=0.4,
    websocket_linger_s=0.3,
)
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n" % KEY.encode()
)
MASK = bytes(4)


class Room(Struct):
    """What happened in sessions, and the sources that are open."""

    open: int = 0
    opened: int = 0
    cancelled: int = 0
    sent: int = 0
    received: int = 0


async def echo(peer, room):
    while True:
        message = await peer.receive()
        room.received += len(message)
        if isinstance(message, bytes):
            await peer.send_bytes(message)
        else:
            await peer.send_text(message)


async def flood(peer, room):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(peer.receive())
        while True:
            await peer.send_bytes(b"x" * 65536)
            room.sent += 65536


async def deaf(peer, room):
    """Stuck in something else than its client."""
    await peer.receive()
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        room.cancelled += 1
        raise


async def slow(peer, room):
    while True:
        room.received += len(await peer.receive())
        await asyncio.sleep(0.05)


async def done(peer, room):
    await peer.send_text("bye")
    await peer.send_bytes(b"y" * 300_000)


def failing(error):
    async def session(peer, room):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(peer.receive())
            await asyncio.sleep(0.01)
            raise error

    return session


SESSIONS = {
    "echo": echo,
    "flood": flood,
    "deaf": deaf,
    "slow": slow,
    "done": done,
    "gone": failing(SandboxGone("it died", internal="/a/secret/path")),
    "full": failing(CapacityExceeded("no room", retry_after_s=1)),
    "wrong": failing(BadRequest("no such frame", field="message")),
    "boom": failing(RuntimeError("a secret")),
}


@asynccontextmanager
async def source(room, name):
    if name == "refused":
        raise Conflict("nothing listens on port 1")
    if name == "stuck":
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            room.cancelled += 1
            raise
    room.open += 1
    room.opened += 1
    try:
        yield room
    finally:
        room.open -= 1


def application(room):
    async def connect(call):
        name = call.path["name"]
        return WebSocket(source(room, name), SESSIONS.get(name, echo))

    async def mine(call):
        del call
        return WebSocket(source(room, "mine"), echo)

    async def plain(call):
        return Json({"n": sum([len(piece) async for piece in call.chunks()])})

    def op(method, path, handler, **more):
        return Op(method=method, path=path, handler=handler, summary=path, tag="t", **more)

    def find(key):
        if key != "the-key":
            raise Unauthorized("nobody knows this key")
        return SimpleNamespace(key_id="k", name="k", dialect=None)

    ops = (
        op("GET", "/ws/{name}", connect, websocket=True, public=True),
        op("GET", "/mine", mine, websocket=True),
        op("POST", "/plain", plain, public=True, upload=True),
        op("GET", "/plain", plain, public=True, upload=True),
    )
    dialect = Dialect(name="t", prefix="/t", ops=ops, errors=errors.TABLE)
    rates = RateLimits(RateSettings(), SimpleNamespace(has_rates=False), SystemClock())  # type: ignore[arg-type]
    core = SimpleNamespace(keys=SimpleNamespace(authenticate=find), rate_limits=rates)
    metrics = Metrics()
    stopping = Stopping()
    services = Services(core=core, control=None, metrics=metrics, facts=ServerFacts(version="0"))
    return Front((dialect,), services, limits=LIMITS, stopping=stopping), stopping, metrics


@asynccontextmanager
async def serving(wrap=lambda front: front):
    room = Room()
    front, stopping, metrics = application(room)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    listener = _listener(wrap(front), LIMITS, local_only=False, ssl_certfile=None, ssl_keyfile=None)
    task = asyncio.create_task(listener.serve(sockets=[sock]))
    while not listener.started:
        await asyncio.sleep(0.01)
    try:
        yield SimpleNamespace(
            port=port, room=room, stopping=stopping, metrics=metrics, url=f"ws://127.0.0.1:{port}/t", state=listener
        )
        await comes_true(lambda: room.open == 0)
    finally:
        listener.should_exit = True
        stopping.stop()
        await asyncio.wait_for(task, 60)
    assert not listener.server_state.connections
    assert metrics.in_flight._value.get() == 0


async def talk(port, *pieces, wait=60.0):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(pieces))
    try:
        return await asyncio.wait_for(reader.read(), wait)
    finally:
        writer.close()


async def opened(port, name, *first):
    """A raw WebSocket: the head of the answer is read and right."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /t/ws/%b HTTP/1.1\r\n%b\r\n" % (name.encode(), UPGRADE) + b"".join(first))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert b"x-request-id: req_" in head
    return reader, writer


def frame(opcode, data=b"", *, fin=True, masked=True):
    size = len(data)
    head = bytes([opcode | (0x80 if fin else 0)])
    mark = 0x80 if masked else 0
    if size < 126:
        head += bytes([size | mark])
    elif size < 65536:
        head += bytes([126 | mark]) + struct.pack("!H", size)
    else:
        head += bytes([127 | mark]) + struct.pack("!Q", size)
    return head + (MASK if masked else b"") + data


async def closing(reader):
    """The code of the close frame, which ends the connection; what came before it is passed over."""
    data = await asyncio.wait_for(reader.read(), 60)
    while data:
        opcode, size = data[0] & 15, data[1]
        at = 2
        if size == 126:
            size, at = struct.unpack("!H", data[2:4])[0], 4
        elif size == 127:
            size, at = struct.unpack("!Q", data[2:10])[0], 10
        if opcode == 8:
            assert len(data) == at + size, "something after the close frame"
            return struct.unpack("!H", data[at : at + 2])[0]
        data = data[at + size :]
    return None


async def test_messages_go_both_ways_as_they_were_sent():
    async with serving() as server, websockets.connect(f"{server.url}/ws/echo") as client:
        for message in ("", "text ü", b"", b"\0\xff", os.urandom(99_000), "€" * 30_000):
            await client.send(message)
            assert await client.recv() == message
        await client.send([b"in ", b"three ", b"pieces"])
        assert await client.recv() == b"in three pieces"
        pong = await client.ping()
        await asyncio.wait_for(pong, 60)


async def test_a_session_that_is_done_closes_with_1000_after_all_it_sent():
    async with serving() as server:
        client = await websockets.connect(f"{server.url}/ws/done")
        assert [len(message) async for message in client] == [3, 300_000]
        assert client.close_code == 1000


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [("gone", 1011, "sandbox-gone"), ("full", 1013, "capacity"), ("wrong", 1008, "bad-request")],
)
async def test_a_session_that_fails_says_why(name, code, word):
    async with serving() as server, websockets.connect(f"{server.url}/ws/{name}") as client:
        said = json.loads(await client.recv())
        assert (said["type"], said["code"]) == ("error", word)
        assert said["request_id"].startswith("req_")
        assert "secret" not in json.dumps(said)
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (code, word)


async def test_a_failure_of_ours_tells_a_request_id_and_nothing_else():
    async with serving() as server, websockets.connect(f"{server.url}/ws/boom") as client:
        said = json.loads(await client.recv())
        assert said["code"] == "engine-failure"
        assert "secret" not in json.dumps(said)


async def test_a_refusal_before_the_handshake_is_plain_http_and_the_connection_goes_on():
    async with serving() as server:
        refused = b"GET /t/ws/refused HTTP/1.1\r\n%b\r\n" % UPGRADE
        last = b"GET /t/plain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await talk(server.port, refused, last)
        assert answer.startswith(b"HTTP/1.1 409 ")
        assert b"application/problem+json" in answer
        assert b"nothing listens" in answer
        assert answer.endswith(b'{"n":0}')


@pytest.mark.parametrize(
    "head",
    [
        b"Host: x\r\n",
        b"Host: x\r\nUpgrade: websocket\r\n",
        b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
        UPGRADE.replace(b"Version: 13", b"Version: 8"),
        UPGRADE + b"Content-Length: 5\r\n",
    ],
)
async def test_what_is_no_websocket_is_answered_426(head):
    async with serving() as server:
        answer = await talk(server.port, b"GET /t/ws/echo HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n12345")
        assert b" 426 " in answer
        assert b"upgrade: websocket\r\n" in answer
        assert b'"code":"upgrade-required"' in answer
        assert server.room.opened == 0


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 24, KEY.encode() * 2])
async def test_a_bad_key_of_the_handshake_is_answered_400(key):
    async with serving() as server:
        head = UPGRADE.replace(KEY.encode(), key) + b"Connection: close\r\n"
        assert b" 400 " in await talk(server.port, b"GET /t/ws/echo HTTP/1.1\r\n%b\r\n" % head)


async def test_an_upgrade_where_there_is_no_websocket_is_a_plain_request():
    async with serving() as server:
        unknown = await talk(server.port, b"GET /t/none HTTP/1.1\r\nConnection: close\r\n%b\r\n" % UPGRADE)
        assert b" 404 " in unknown
        h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
        body = b"POST /t/plain HTTP/1.1\r\nHost: x\r\n%bContent-Length: 37\r\n\r\n" % h2c
        # The body looks like a request: taken for one, it would be answered.
        inner = b"GET /t/plain HTTP/1.1\r\nHost: x\r\n\r\n   "
        last = b"GET /t/plain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await talk(server.port, body, inner, last)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert b'{"n":37}' in answer


async def test_connect_is_refused():
    async with serving() as server:
        assert b" 400 " in await talk(server.port, b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_a_key_is_asked_for_as_over_http():
    async with serving() as server:
        for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401)):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(f"{server.url}/mine", additional_headers=headers)
            assert refused.value.response.status_code == status
        async with websockets.connect(f"{server.url}/mine", additional_headers={"X-API-Key": "the-key"}) as client:
            await client.send("hello")
            assert await client.recv() == "hello"


async def test_a_page_of_another_origin_needs_a_key_that_it_knows_itself():
    async with serving(LocalOperator) as server:
        async with websockets.connect(f"{server.url}/mine", origin=f"http://127.0.0.1:{server.port}"):
            pass
        for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port}.evil.example", "http://["):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(f"{server.url}/mine", origin=origin)
            assert refused.value.response.status_code == 401
        headers = {"X-API-Key": "the-key"}
        async with websockets.connect(f"{server.url}/mine", origin="http://evil.example", additional_headers=headers):
            pass
    assert LOCAL_MARK


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(2, b"x", masked=False), 1002),
        (frame(3, b"x"), 1002),
        (frame(0, b"x"), 1002),
        (bytes([0xC2]) + frame(2, b"x")[1:], 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(9, b"x", fin=False), 1002),
        (frame(1, b"a", fin=False) + frame(1, b"b"), 1002),
        (frame(8, b"\x00"), 1002),
        (frame(8, struct.pack("!H", 1005)), 1002),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(1, "ü".encode()[:1], fin=False) + frame(0, b"x"), 1007),
        (frame(8, struct.pack("!H", 1000) + b"\xff"), 1007),
        (frame(2, b"x" * 100_001), 1009),
        (bytes([0x82, 0xFF]) + struct.pack("!Q", 2**63 - 1) + MASK, 1009),
        (bytes([0x82, 0xFF]) + struct.pack("!Q", 2**64 - 1) + MASK, 1009),
        (frame(2, b"x" * 60_000, fin=False) + frame(0, b"x" * 40_001), 1009),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_told_and_closed(sent, code):
    async with serving() as server:
        reader, writer = await opened(server.port, "echo")
        writer.write(sent)
        assert await closing(reader) == code
        writer.close()


async def test_frames_that_come_with_the_head_or_byte_by_byte_are_one_stream():
    async with serving() as server:
        reader, writer = await opened(server.port, "echo", frame(2, b"early"))
        assert await asyncio.wait_for(reader.readexactly(7), 60) == b"\x82\x05early"
        for byte in frame(2, b"slow", fin=False) + frame(9, b"?") + frame(0, b"ly"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.001)
        assert await asyncio.wait_for(reader.readexactly(11), 60) == b"\x8a\x01?\x82\x06slowly"
        writer.write(frame(8, struct.pack("!H", 1000)))
        assert await closing(reader) == 1000
        writer.close()


async def test_a_million_empty_pieces_cost_neither_memory_nor_the_loop():
    async with serving() as server:
        reader, writer = await opened(server.port, "echo")
        writer.write(frame(2, b"a", fin=False))
        took: list[float] = []
        for _ in range(20):
            writer.write(frame(0, b"", fin=False) * 10_000)
            before = time.perf_counter()
            assert b"200" in await talk(server.port, b"GET /t/plain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            took.append(time.perf_counter() - before)
        writer.write(frame(0, b"z"))
        while (data := await asyncio.wait_for(reader.readexactly(2), 60))[0] & 15 in {9, 10}:
            await reader.readexactly(data[1])
        assert data == b"\x82\x02"
        assert min(took) < 0.5  # the loop turns; how soon we are asked again is the machine's business
        writer.close()


async def test_a_flood_of_pings_without_reading_holds_one_pong():
    async with serving() as server:
        _, writer = await opened(server.port, "flood")
        writer.transport.pause_reading()
        await comes_true(lambda: server.room.sent > 65536)
        connection = next(iter(server.state.server_state.connections))
        before = connection.transport.get_write_buffer_size()
        for _ in range(50):
            writer.write(frame(9, b"x" * 125) * 1000)
        await asyncio.sleep(0.3)
        assert connection.transport.get_write_buffer_size() <= before + 70_000
        writer.close()


async def test_a_reader_that_never_reads_holds_one_buffer_and_is_cut():
    async with serving() as server:
        _, writer = await opened(server.port, "flood")
        writer.transport.pause_reading()
        await comes_true(lambda: server.room.opened == 1)
        await comes_true(lambda: server.room.open == 0)
        assert server.room.sent < 32 * 1024 * 1024
        writer.close()


async def test_a_reader_of_single_bytes_makes_the_session_wait():
    async with serving() as server:
        reader, writer = await opened(server.port, "flood")
        writer.transport.set_write_buffer_limits(0)
        reader._limit = 1
        for _ in range(20):
            await reader.read(1)
            await asyncio.sleep(0.01)
        assert server.room.sent < 32 * 1024 * 1024
        writer.close()


async def test_a_writer_faster_than_the_session_is_not_read():
    async with serving() as server:
        _, writer = await opened(server.port, "slow")
        writer.write(frame(2, b"x" * 50_000) * 2000)
        await asyncio.sleep(0.5)
        assert server.room.received < 20 * 50_000
        assert writer.transport.get_write_buffer_size() > 50_000_000
        await asyncio.sleep(0.5)
        assert server.room.open == 1, "a client whose input waits here is not gone"
        writer.transport.abort()


async def test_what_was_sent_before_the_end_is_received_before_it():
    async with serving() as server:
        _, writer = await opened(server.port, "echo")
        writer.write(frame(2, b"x" * 20_000) * 4)
        writer.write_eof()
        await comes_true(lambda: server.room.open == 0)
        assert server.room.received in {20_000, 80_000}  # its echo may fail after the first
        writer.close()


@pytest.mark.parametrize("how", ["abort", "close", "half a frame", "close frame"])
async def test_a_client_that_vanishes_frees_what_its_session_held(how):
    async with serving() as server:
        _, writer = await opened(server.port, "deaf")
        writer.write(frame(1, b"hello"))
        await asyncio.sleep(0.05)
        if how == "half a frame":
            writer.write(frame(2, b"x" * 50_000)[:30_000])
        if how == "close frame":
            writer.write(frame(8))
        elif how == "abort":
            writer.transport.abort()
        else:
            writer.close()
        await comes_true(lambda: server.room.open == 0)
        assert server.room.cancelled == 1
        writer.close()


async def test_a_client_that_answers_no_ping_is_gone():
    async with serving() as server:
        reader, writer = await opened(server.port, "echo")
        await comes_true(lambda: server.room.open == 0)
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.wait_for(reader.read(100), 60):
                pass
        writer.close()


async def test_a_client_that_never_closes_is_cut_after_the_close_frame():
    async with serving() as server:
        reader, writer = await opened(server.port, "done")
        writer.write(frame(1, b"still here") * 100)
        data = await asyncio.wait_for(reader.read(), 60)
        assert data.endswith(b"\x88\x02\x03\xe8")
        writer.close()


async def test_a_stopping_server_closes_with_1012():
    async with serving() as server:
        clients = [await websockets.connect(f"{server.url}/ws/{name}") for name in ("echo", "deaf", "slow")]
        reader, writer = await opened(server.port, "flood")
        writer.transport.pause_reading()
        server.stopping.stop()
        for client in clients:
            await asyncio.wait_for(client.wait_closed(), 60)
            assert client.close_code == 1012
        await comes_true(lambda: server.room.open == 0)
        async with websockets.connect(f"{server.url}/ws/echo") as late:
            await late.wait_closed()
            assert late.close_code == 1012
        del reader
        writer.close()


async def test_a_client_that_goes_while_the_source_is_opened_ends_that():
    async with serving() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /t/ws/stuck HTTP/1.1\r\n%b\r\n" % UPGRADE)
        await asyncio.sleep(0.1)
        writer.write(frame(2, b"x" * 1000) * 100)  # what comes early is held, and bounded
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await comes_true(lambda: server.room.cancelled == 1)


async def test_websockets_count_as_connections():
    async with serving() as server:
        held = [await websockets.connect(f"{server.url}/ws/echo") for _ in range(LIMITS.connections)]
        assert b" 503 " in await talk(server.port)
        for client in held:
            await client.close()
        assert b" 404 " in await talk(server.port, b"GET /t/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


async def test_a_handshake_that_never_ends_is_answered_408():
    async with serving() as server:
        assert b" 408 " in await talk(server.port, b"GET /t/ws/echo HTTP/1.1\r\n" + UPGRADE)
