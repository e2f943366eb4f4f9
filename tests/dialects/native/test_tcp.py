"""Raw TCP to a port of a sandbox, over a WebSocket."""

# ruff: noqa: ANN001, ANN003, ANN201 - fixtures are typed where they are defined

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import tcp_app
from tests_support import free_port


@pytest.fixture(scope="module")
def port(server, box):
    port = free_port()
    body = {"command": ["python3", "-c", tcp_app.SOURCE, str(port)]}
    made = server.client.post(f"/sandboxes/{box}/commands", json=body).json()
    where = f"/sandboxes/{box}/commands/{made['id']}"
    deadline = time.monotonic() + 60
    while "ready" not in (out := server.client.get(f"{where}/output").text):
        assert time.monotonic() < deadline, out
        time.sleep(0.02)
    yield port
    server.client.delete(where)


def dial(server, box, port, **options):
    url = f"{server.url}/api/v1/sandboxes/{box}/ports/{port}/tcp".replace("http", "ws", 1)
    headers = {"Authorization": f"Bearer {server.key}"}
    return connect(url, **({"additional_headers": headers, "compression": None, "max_size": None} | options))


def taken(peer):
    """All until the half-close."""
    found = bytearray()
    while True:
        message = peer.recv(timeout=60)
        if isinstance(message, str):
            assert json.loads(message) == {"type": "eof"}
            return bytes(found)
        found += message


def test_bytes_go_both_ways_and_a_half_close_is_kept(server, box, port):
    with dial(server, box, port) as peer:
        peer.send(b"echo\n")
        for _ in range(3):
            peer.send(b"\0hello\xff")
            assert peer.recv(timeout=60) == b"\0hello\xff"
        peer.send('{"type":"eof"}')
        assert taken(peer) == b""
        with pytest.raises(ConnectionClosed):
            peer.recv(timeout=60)
        assert peer.close_code == 1000


def test_the_sandbox_may_close_its_half_first(server, box, port):
    with dial(server, box, port) as peer:
        peer.send(b"say hello\n")
        assert taken(peer) == b"hello"
        peer.send(b"after the end")
        peer.send('{"type":"eof"}')
        with pytest.raises(ConnectionClosed):
            peer.recv(timeout=60)
        assert peer.close_code == 1000
    with dial(server, box, port) as peer:
        peer.send(b"rest\n")
        assert taken(peer) == b"after the end"


def test_large_streams_go_both_ways_whole(server, box, port):
    block = os.urandom(1024 * 1024 - 7)
    with dial(server, box, port) as peer:
        peer.send(b"sum\n")
        seen = hashlib.sha256()
        for _ in range(20):
            peer.send(block)
            seen.update(block)
        peer.send('{"type":"eof"}')
        assert taken(peer).decode() == seen.hexdigest()
    with dial(server, box, port) as peer:
        peer.send(b"give %d\n" % (64 * 1024 * 1024))
        assert len(taken(peer)) == 64 * 1024 * 1024


def test_many_connections_at_a_time(server, box, port):
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(dial(server, box, port)) for _ in range(100)]
        for number, peer in enumerate(peers):
            peer.send(b"echo\n%d" % number)
        for number, peer in enumerate(peers):
            assert peer.recv(timeout=60) == b"%d" % number


def test_a_connection_that_breaks_inside_says_so(server, box, port):
    with dial(server, box, port) as peer:
        peer.send(b"reset\n")
        message = peer.recv(timeout=60)
        assert isinstance(message, str)
        assert json.loads(message)["type"] in {"error", "eof"}


@pytest.mark.parametrize(
    ("port", "status", "words"),
    [
        (1, 409, "nothing listens on port 1"),
        (0, 400, "port"),
        (65536, 400, "port"),
        ("http", 400, "a port is a number"),
        ("٣٣", 400, "a port is a number"),
        ("0x50", 400, "a port is a number"),
    ],
)
def test_a_port_that_cannot_be_is_refused(server, box, port, status, words):
    with pytest.raises(InvalidStatus) as refused, dial(server, box, port):
        pass
    assert refused.value.response.status_code == status
    assert words in refused.value.response.body.decode()


def test_a_message_that_is_no_half_close_is_refused(server, box, port):
    for text in ("", "{}", '{"type":"resize"}', "eof", '{"type":"eof","more":1}'):
        with dial(server, box, port) as peer:
            peer.send(b"echo\n")
            peer.send(text)
            said = json.loads(peer.recv(timeout=60))
            assert (said["type"], said["code"], said["field"]) == ("error", "bad-request", "message")
            with pytest.raises(ConnectionClosed):
                peer.recv(timeout=60)
            assert peer.close_code == 1008


def test_who_may_connect(server, box, port):
    reader = server.client.post("/keys", json={"name": "tcp-reader", "scopes": ["read"]}).json()
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {reader['key']}"}, 403)):
        with pytest.raises(InvalidStatus) as refused, dial(server, box, port, additional_headers=headers):
            pass
        assert refused.value.response.status_code == status
    plain = server.client.get(f"/sandboxes/{box}/ports/{port}/tcp")
    assert (plain.status_code, plain.json()["code"], plain.headers["upgrade"]) == (426, "upgrade-required", "websocket")
    assert server.client.get(f"/sandboxes/sb_0123456789abcdef/ports/{port}/tcp").status_code == 426


def test_openapi_and_metrics_know_it(server, box, port):
    with dial(server, box, port):
        pass
    document = server.client.get(f"{server.url}/openapi.json").json()
    found = document["paths"]["/api/v1/sandboxes/{id}/ports/{port}/tcp"]["get"]
    assert found["x-websocket"] is True
    assert {"101", "426"} <= set(found["responses"])
    deadline = time.monotonic() + 60
    while 'op="connect_tcp",status="101"' not in server.operator.get("http://localhost/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
