"""Terminals under clients and programs that do their worst: floods, stalled and vanishing readers, endless resizes."""

from __future__ import annotations

import socket
import struct
import threading
import time
from base64 import b64encode
from pathlib import Path

import httpx2
import pytest

from terminal_support import Viewer
from tests_support import SOAK, NewServer, RunningServer
from waiting_support import until

pytestmark = pytest.mark.real

RESIZES = 10_000
VANISHING = 1000 if SOAK else 100
FLAT_KIB = 60 * 1024
"""What readers that stall may cost the server: each its socket's and its channel's buffer, no more."""

FLOOD = "stty -opost; i=0; while :; do seq 20000; i=$((i+1)); echo $i > /tmp/rounds; done"
BOMBS = (
    b"\x1b[2J\x1b[3J\x1bc"
    + b"\x1b[999999999999999999B" * 50
    + b"\x1b]0;" + b"A" * 5000 + b"\x07"
    + b"\x1b]52;c;aGFsbG8=\x07\x1bP$q\x1b\\\x1b[6n\x1b[c\x1b[21t"
    + b"\x90\x9b\x9c\xff\xfe\xc3(" * 50
    + "\u202e\u2066".encode() * 50
)  # fmt: skip


def opened(client: httpx2.Client, box: str, **body: object) -> str:
    answer = client.post(f"/sandboxes/{box}/terminals", json=body)
    assert answer.status_code == 201, answer.text
    return f"/sandboxes/{box}/terminals/{answer.json()['id']}"


def rss_kib(server: RunningServer) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def in_flight(client: httpx2.Client, server: RunningServer) -> float:
    """Requests under way beside this one."""
    lines = client.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("cove_requests_in_flight ")).split()[-1]) - 1


def rounds(client: httpx2.Client, box: str) -> int:
    answer = client.post(f"/sandboxes/{box}/exec", json={"command": "cat /tmp/rounds || echo 0"})
    return int(answer.json()["stdout"].strip() or 0)


def watch_for(viewer: Viewer, after_s: float) -> None:
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline:
        viewer.take()


def bare(server: RunningServer, at: str) -> socket.socket:
    """An attached client without a library, which reads nothing of what comes after the handshake."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(("127.0.0.1", server.port))
    head = (
        f"GET /api/v1{at}/attach HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {b64encode(bytes(16)).decode()}\r\n\r\n"
    )
    peer.sendall(head.encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += peer.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return peer


def test_a_flood_with_stalled_and_slow_readers_costs_neither_the_server_nor_the_program(
    new_server: NewServer,
) -> None:
    server = new_server()
    with server.client() as client:
        box = client.post("/sandboxes", json={}).json()["id"]
        at = opened(client, box, command=FLOOD)
        before = rss_kib(server)
        stalled = [bare(server, at) for _ in range(10)]
        drip = bare(server, at)
        dripping = threading.Event()

        def one_byte_at_a_time() -> None:
            while not dripping.wait(0.1):
                drip.recv(1)

        reader = threading.Thread(target=one_byte_at_a_time)
        reader.start()
        # Who reads is not held up by who does not, and loses nothing once it is the furthest.
        with Viewer(server, at) as fast:
            watch_for(fast, 1.0)
            lost = fast.lost
            fast.seen.clear()
            watch_for(fast, 2.0)
            assert (fast.lost, len(fast.seen) > 2_000_000) == (lost, True)
            blocks = fast.seen.split(b"\n20000\n")
            assert set(map(bytes, blocks[1:-1])) == {b"\n".join(b"%d" % n for n in range(1, 20000))}
        # Alone with those who do not read, the program waits for them, but not for ever: 10 s, then it goes on.
        seen = rounds(client, box)
        until(lambda: rounds(client, box) > seen + 20, "a stalled reader holds the program up")
        assert rss_kib(server) - before < FLAT_KIB
        dripping.set()
        reader.join()
        for peer in (*stalled, drip):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        until(lambda: in_flight(client, server) == 0, "requests of vanished clients go on")
        assert client.delete(at).status_code == 204


def test_ten_thousand_resizes_and_a_thousand_signals(
    server: RunningServer, client: httpx2.Client, sandbox: str
) -> None:
    at = opened(
        client, sandbox, command="stty -echo; trap : WINCH USR1; echo on; while :; do read a && stty size; done"
    )
    before = rss_kib(server)
    with Viewer(server, at) as viewer:
        viewer.until(b"on\r\n")
        for number in range(RESIZES):
            viewer.say(type="resize", cols=80 + number % 100, rows=24)
            if number % 10 == 0:
                viewer.say(type="signal", signal="USR1")
        viewer.say(type="resize", cols=99, rows=33)

        def is_last() -> bool:
            shown = client.get(at).json()
            return (shown["cols"], shown["rows"]) == (99, 33)

        until(is_last, "the last size is not the one that is kept", 60.0)
        viewer.peer.send(b"\r")
        viewer.until(b"33 99")
    assert rss_kib(server) - before < FLAT_KIB
    client.delete(at)


def test_clients_that_vanish_leave_nothing(server: RunningServer, client: httpx2.Client, sandbox: str) -> None:
    at = opened(client, sandbox, command="stty raw -echo; echo on; exec sleep 600")
    for number in range(VANISHING):
        peer = bare(server, at)
        if number % 2:  # in the middle of a frame that it announced, to a program that does not read
            peer.sendall(b"\x82\xff" + struct.pack(">Q", 500_000) + bytes(4) + bytes(100_000))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    until(lambda: in_flight(client, server) == 0, "requests of vanished clients go on")
    with Viewer(server, at) as viewer:
        viewer.until(b"on")
        assert client.delete(at).status_code == 204
        viewer.ended()


def test_what_a_program_prints_means_nothing_to_the_server(
    server: RunningServer, client: httpx2.Client, sandbox: str
) -> None:
    at = opened(client, sandbox, command="stty raw -echo; printf on; head -c $SIZE", env={"SIZE": str(len(BOMBS))})
    with Viewer(server, at) as viewer:
        viewer.until(b"on")
        viewer.peer.send(BOMBS)
        assert viewer.ended()["exit"] == 0
        assert bytes(viewer.seen) == b"on" + BOMBS
    named = opened(client, sandbox, command=["sh", "-c", "sleep 9", "\x1b]0;x\x07\u202e"])
    assert client.get(named).json()["command"][-1] == "\x1b]0;x\x07\u202e"
    assert "\x1b" not in client.get(named).text
    log = server.log.read_bytes()
    assert b"\x1b]0;" not in log
    client.delete(named)


def test_a_terminal_too_many_is_refused_and_there_is_room_again(server: RunningServer, client: httpx2.Client) -> None:
    box = client.post("/sandboxes", json={"pids": 2048, "memory_mib": 1024}).json()["id"]
    made, answer = [], None
    for _ in range(300):
        answer = client.post(f"/sandboxes/{box}/terminals", json={"command": ["sleep", "600"]})
        if answer.status_code != 201:
            break
        made.append(answer.json()["id"])
    assert answer is not None
    assert (answer.status_code, answer.json()["code"], len(made)) == (409, "conflict", 256)
    assert client.delete(f"/sandboxes/{box}/terminals/{made[0]}").status_code == 204
    assert client.post(f"/sandboxes/{box}/terminals", json={"command": ["true"]}).status_code == 201
    client.delete(f"/sandboxes/{box}")
