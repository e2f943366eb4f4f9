"""WebSockets into real sandboxes that vanish, stall, drip or never close: what they hold comes back."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import tcp_app
from tests_support import NewServer, RunningServer
from waiting_support import until

pytestmark = pytest.mark.real

PORT = 7000
READERS = 20
HANDSHAKE = (
    "GET /api/v1/sandboxes/{box}/ports/{port}/tcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def sandbox(server: RunningServer) -> Iterator[str]:
    with server.client() as client:
        made = client.post("/sandboxes", json={"idle_timeout_s": 2}).json()
        command = {"command": ["python3", "-c", tcp_app.SOURCE, str(PORT)]}
        client.post(f"/sandboxes/{made['id']}/commands", json=command)
        yield made["id"]
        client.delete(f"/sandboxes/{made['id']}")


def opened(server: RunningServer, box: str, first: bytes = b"") -> socket.socket:
    """A raw WebSocket to the sandbox's server; its head is read, and `first` is sent as a message."""
    deadline = time.monotonic() + 60
    while True:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(HANDSHAKE.format(box=box, port=PORT, key=server.key).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = sock.recv(1)
            assert byte, head
            head += byte
        if head.startswith(b"HTTP/1.1 101 "):
            sock.sendall(message(first))
            return sock
        assert b" 409 " in head, head  # the server inside is not up yet
        assert time.monotonic() < deadline
        sock.close()
        time.sleep(0.05)


def message(data: bytes, opcode: int = 2) -> bytes:
    head = bytes([0x80 | opcode])
    head += bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + struct.pack("!H", len(data))
    return head + bytes(4) + data


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def state(client: httpx2.Client, box: str) -> str:
    return str(client.get(f"/sandboxes/{box}").json()["state"])


def rss_kib(server: RunningServer) -> int:
    assert server.process is not None
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def test_clients_that_vanish_or_never_close_keep_no_sandbox_awake(server: RunningServer, sandbox: str) -> None:
    with server.client() as client:
        held: list[socket.socket] = []
        for first in (b"echo\n", b"hold\n", b"give 1073741824\n"):
            whole = message(b"x" * 60_000)
            for ending in (b"", whole[:2], whole[:30_000], message(b"", 8), message(b"", 9) * 50):
                sock = opened(server, sandbox, first)
                sock.sendall(ending)
                reset(sock) if len(ending) % 4 else sock.close()
            # These say that they close, and then neither close nor read.
            held.append(opened(server, sandbox, first))
            held[-1].sendall(message(struct.pack("!H", 1000), 8))
        assert state(client, sandbox) == "running"
        until(lambda: state(client, sandbox) == "paused")
        for sock in held:
            sock.close()
        # One that goes on keeps it awake.
        with opened(server, sandbox, b"echo\n") as sock:
            time.sleep(3)
            assert state(client, sandbox) == "running"


def test_readers_of_single_bytes_cost_the_server_no_memory(server: RunningServer, sandbox: str) -> None:
    socks = [opened(server, sandbox, b"hold\n") for _ in range(READERS)]
    before = rss_kib(server)
    givers = [opened(server, sandbox, b"give 1073741824\n") for _ in range(READERS)]
    until = time.monotonic() + 3
    while time.monotonic() < until:
        for sock in givers:
            assert sock.recv(1)
        time.sleep(0.02)
    # A giver may have 1 MiB of credit under way, and the transport's buffer.
    assert rss_kib(server) < before + READERS * 2048
    with server.client() as client:
        began = time.monotonic()
        assert client.get("/server").status_code == 200
        assert time.monotonic() - began < 20
    for sock in (*socks, *givers):
        reset(sock)


def test_a_stopping_server_waits_for_nobody_who_never_closes(new_server: NewServer) -> None:
    server = new_server(COVE_POOL_SIZE="1")
    with server.client() as client:
        box = client.post("/sandboxes", json={}).json()["id"]
        command = {"command": ["python3", "-c", tcp_app.SOURCE, str(PORT)]}
        client.post(f"/sandboxes/{box}/commands", json=command)
        socks = [opened(server, box, b"hold\n") for _ in range(10)]
        stuck = [opened(server, box, b"give 1073741824\n") for _ in range(4)]
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 45
        for sock in socks:
            head = sock.recv(4, socket.MSG_WAITALL)
            assert (head[0], struct.unpack("!H", head[2:])[0]) == (0x88, 1012)
        for sock in (*socks, *stuck):
            sock.close()
        server.start()
        assert client.get(f"/sandboxes/{box}").json()["state"] == "running"
