"""Ports of the host that lead into sandboxes: raw TCP, restarts, ends, two servers, ports that others have."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

import tcp_app
from tests_support import NewServer, RunningServer, free_port, make_server
from waiting_support import until

pytestmark = pytest.mark.real

PORT = 7000
BLOCK = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def first() -> int:
    """A range of three ports that nobody has."""
    return free_port(3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, first: int) -> Iterator[RunningServer]:
    running = make_server(
        tmp_path_factory.mktemp("server"), COVE_FORWARD_PORTS=f"{first}-{first + 2}", COVE_POOL_SIZE="2"
    )
    running.start()
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client
        for box in client.get("/sandboxes").json()["sandboxes"]:
            client.delete(f"/sandboxes/{box['id']}")


def sandbox(client: httpx2.Client, **settings: object) -> str:
    made = client.post("/sandboxes", json=settings).json()["id"]
    command = client.post(
        f"/sandboxes/{made}/commands", json={"command": ["python3", "-c", tcp_app.SOURCE, str(PORT)]}
    ).json()
    until(lambda: "ready" in client.get(f"/sandboxes/{made}/commands/{command['id']}/output").text)
    return str(made)


def expose(client: httpx2.Client, box: str, host_port: object, port: int = PORT) -> Any:
    answer = client.put(f"/sandboxes/{box}/ports/{port}", json={"host_port": host_port})
    return (
        answer.json() if answer.is_success else (answer.status_code, answer.json()["code"], answer.json().get("field"))
    )


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def asked(port: int, *words: bytes) -> bytes:
    """Send, half-close, and take all that comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: (sock.sendall(b"".join(words)), sock.shutdown(socket.SHUT_WR)))
        found = bytearray()
        while data := sock.recv(1 << 20):
            found += data
        sending.result()
    return bytes(found)


def test_a_port_of_the_host_leads_inside_until_it_is_taken_back(client: httpx2.Client, first: int) -> None:
    box = sandbox(client)
    shown = expose(client, box, True)
    number = shown["host_port"]
    assert first <= number <= first + 2
    assert asked(number, b"sum\n", BLOCK * 8).decode() == hashlib.sha256(BLOCK * 8).hexdigest()
    assert len(asked(number, b"give 33554432\n")) == 33554432
    assert asked(number, b"say hello\n") == b"hello"
    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(lambda _: asked(number, b"echo\nx"), range(50))) == {b"x"}
    # Whatever else is changed leaves it as it is; so does asking again.
    assert client.put(f"/sandboxes/{box}/ports/{PORT}", json={"access": "public"}).json()["host_port"] == number
    assert expose(client, box, True)["host_port"] == number
    assert client.get(f"/sandboxes/{box}/ports/{PORT}").json()["host_port"] == number
    moved = first if number != first else first + 1
    assert expose(client, box, moved)["host_port"] == moved
    assert (is_open(number), is_open(moved)) == (False, True)
    assert expose(client, box, False)["host_port"] is None
    assert not is_open(moved)
    expose(client, box, moved)
    assert client.delete(f"/sandboxes/{box}/ports/{PORT}").status_code == 204
    assert not is_open(moved)


def test_what_cannot_be_had_changes_nothing(client: httpx2.Client, first: int) -> None:
    box = sandbox(client)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert expose(client, box, first) == (409, "conflict", "host_port")
        assert client.get(f"/sandboxes/{box}/ports/{PORT}").json()["host_port"] is None
        # Any: the taken one is passed over, until none is left.
        found = {expose(client, box, True, port)["host_port"] for port in (PORT, PORT + 1)}
        assert found == {first + 1, first + 2}
        assert expose(client, box, True, PORT + 2) == (503, "capacity", None)
        assert expose(client, box, first + 1, PORT + 1) == (409, "conflict", "host_port")
        assert client.get(f"/sandboxes/{box}/ports/{PORT + 1}").json()["host_port"] in found
    for wrong in (first - 1, first + 3, 0, -1, 70000):
        assert expose(client, box, wrong) == (400, "bad-request", "host_port")
    for wrong in ("yes", 1.5, [], {}):
        assert expose(client, box, wrong) == (400, "bad-request", "host_port")
    assert client.put("/sandboxes/sb_0123456789abcdef/ports/80", json={"host_port": True}).status_code == 404
    # Nothing listens inside on the second port: a reset, not an empty answer.
    (second,) = found - {client.get(f"/sandboxes/{box}/ports/{PORT}").json()["host_port"]}
    with pytest.raises(ConnectionResetError):
        asked(second, b"echo\n")


def test_it_outlives_the_server_and_ends_with_the_sandbox(server: RunningServer, client: httpx2.Client) -> None:
    box = sandbox(client, idle_timeout_s=1)
    number = expose(client, box, True)["host_port"]
    held = socket.create_connection(("127.0.0.1", number), timeout=60)
    held.sendall(b"echo\nx")
    assert held.recv(1) == b"x"
    time.sleep(2)
    assert client.get(f"/sandboxes/{box}").json()["state"] == "running", "an open connection keeps it awake"
    server.kill()
    with contextlib.suppress(ConnectionResetError):  # the kernel may say it either way
        assert held.recv(1) == b""
    held.close()
    # Another program has the port when the server comes back: it is tried again, and the row stays.
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", number))
        taken.listen()
        server.start()
        assert client.get(f"/sandboxes/{box}/ports/{PORT}").json()["host_port"] == number
        assert f"port {number} of the host is in use" in server.log.read_text()
    until(lambda: is_open(number) and asked(number, b"echo\nagain") == b"again")
    until(lambda: client.get(f"/sandboxes/{box}").json()["state"] == "paused")
    assert asked(number, b"echo\nawake") == b"awake"
    with socket.create_connection(("127.0.0.1", number), timeout=60) as open_one:
        open_one.sendall(b"echo\nx")
        assert open_one.recv(1) == b"x"
        client.delete(f"/sandboxes/{box}")
        with pytest.raises(ConnectionResetError):
            assert open_one.recv(1) == b"never"
    assert not is_open(number)


def test_two_servers_never_give_out_the_same(
    server: RunningServer, client: httpx2.Client, new_server: NewServer, first: int
) -> None:
    other = new_server(COVE_FORWARD_PORTS=f"{first}-{first + 2}", COVE_POOL_SIZE="1")
    mine = expose(client, sandbox(client), True)["host_port"]
    server.kill()
    with other.client() as others:
        box = sandbox(others)
        # Its port is not listened on now, and still not free.
        assert expose(others, box, mine) == (409, "conflict", "host_port")
        theirs = {expose(others, box, True, port)["host_port"] for port in (PORT, PORT + 1)}
        assert mine not in theirs
        assert expose(others, box, True, PORT + 2) == (503, "capacity", None)
    server.start()
    until(lambda: is_open(mine))


def test_connections_to_one_port_are_limited(client: httpx2.Client) -> None:
    number = expose(client, sandbox(client), True)["host_port"]
    socks = [socket.create_connection(("127.0.0.1", number), timeout=60) for _ in range(256)]
    for sock in socks:
        sock.sendall(b"echo\nx")
    assert all(sock.recv(1) == b"x" for sock in socks)
    with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", number), timeout=60) as one_more:
        assert one_more.recv(1) == b"never"
    for sock in socks:
        sock.close()

    def has_room() -> bool:
        with contextlib.suppress(OSError):  # the others are still going
            return asked(number, b"echo\nx") == b"x"
        return False

    until(has_room)
