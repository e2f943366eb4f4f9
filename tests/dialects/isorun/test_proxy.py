"""Ports below `R/proxy/{port}/`: section 8 of docs/protocols/isorun.md. The forwarding itself: native/test_ports.py."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.dialects.conftest import DialectServer
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

APP = Path(__file__).parents[2] / "port_app.py"
LIMIT_S = 30.0


class App:
    """A running `port_app.py` in a sandbox, below the prefix and below the root."""

    def __init__(self, server: DialectServer, box: str, port: int) -> None:
        self.server, self.port = server, port
        self.run = f"/v1/runs/{box.replace('sb_', 'run')}"
        self.head = {"Authorization": f"Bearer {server.key}"}

    def request(self, method: str, path: str = "/", *, root: str = "/isorun", port: int = 0, **more: Any) -> Any:
        url = f"{self.server.url}{root}{self.run}/proxy/{port or self.port}{path}"
        return httpx2.request(method, url, headers=self.head | more.pop("headers", {}), timeout=LIMIT_S, **more)

    def target(self, path: str, root: str) -> str:
        """What the program sees of a path that no client has touched."""
        host, _, port = self.server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as sock:
            line = f"GET {root}{self.run}/proxy/{self.port}{path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            sock.sendall(f"{line}Authorization: Bearer {self.server.key}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        found: str = json.loads(answer.partition(b"\r\n\r\n")[2])["target"]
        return found


@pytest.fixture(scope="module")
def app(server: DialectServer) -> Iterator[App]:
    box = str(server.sandbox()["id"])
    path = "/tmp/port_app.py"
    server.client.put(f"/sandboxes/{box}/files/content", params={"path": path}, content=APP.read_bytes())
    made = server.client.post(f"/sandboxes/{box}/commands", json={"command": ["python3", path, "0"]})
    assert made.status_code == 201, made.text
    output, deadline = f"/sandboxes/{box}/commands/{made.json()['id']}/output", time.monotonic() + LIMIT_S
    while not (chunks := server.client.get(output, params={"wait_s": 5}).json()["chunks"]):
        assert time.monotonic() < deadline
    yield App(server, box, int(chunks[0]["data"]))
    server.client.delete(f"/sandboxes/{box}")


@pytest.mark.parametrize("root", ["/isorun", ""])
@pytest.mark.parametrize("path", ["/", "/a%2Fb//c/..;/%ff", "/x?a=%20b&c&token=1", "/proxy/1/", "/v1/runs/x/proxy/80/"])
def test_path_and_query_arrive_as_sent(app: App, root: str, path: str) -> None:
    assert app.target(path, root) == path


@pytest.mark.parametrize("root", ["/isorun", ""])
def test_every_method_goes_through_and_the_key_stays_here(app: App, root: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"):
        seen = app.request(method, "/echo", root=root, headers={"Cookie": "a=1"}).json()
        names = {name.lower(): value for name, value in seen["headers"]}
        assert seen["method"] == method
        assert "authorization" not in names
        assert app.server.key not in json.dumps(seen)
        assert names["cookie"] == "a=1"
        assert names["x-forwarded-prefix"] == f"{root}{app.run}/proxy/{app.port}"
    assert app.request("HEAD", root=root).status_code == 200


def test_what_looks_like_a_key_of_any_dialect_stays_here(app: App) -> None:
    headers = {"X-API-Key": "isorun_live_local_0123456789abcdef_0"}
    assert "isorun_live" not in app.request("GET", "/echo", headers=headers).text
    assert "my-own" in app.request("GET", "/echo", headers={"X-API-Key": "my-own"}).text


def test_bodies_of_any_size_and_chunked_answers(app: App) -> None:
    data = bytes(range(256)) * 40_000
    seen = app.request("PUT", "/echo", content=data).json()
    assert (seen["size"], seen["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert len(app.request("GET", "/big?n=20000000").content) == 20_000_000
    assert app.request("GET", "/chunked?n=5").text == "0;1;2;3;4;"


def test_events_come_one_by_one(app: App) -> None:
    url = f"{app.server.url}/isorun{app.run}/proxy/{app.port}/sse?n=5"
    with httpx2.stream("GET", url, headers=app.head, timeout=LIMIT_S) as answer:
        pieces = list(answer.iter_raw())
    assert b"".join(pieces) == b"".join(b"data: %d\n\n" % number for number in range(5))
    assert len(pieces) > 1


def test_cookies_and_redirects_stay_below_the_port(app: App) -> None:
    answer = app.request("GET", "/tell?header=Set-Cookie:%20a=1;%20Path=/&header=Location:%20/next&status=302%20Found")
    prefix = f"/isorun{app.run}/proxy/{app.port}"
    assert answer.headers["set-cookie"] == f"a=1; Path={prefix}/"
    assert answer.headers["location"] == f"{prefix}/next"


@pytest.mark.parametrize("root", ["/isorun", ""])
def test_a_websocket_goes_through(app: App, root: str) -> None:
    url = f"{app.server.url.replace('http', 'ws')}{root}{app.run}/proxy/{app.port}/ws"
    with connect(url, additional_headers=app.head) as opened:
        opened.send("hello")
        assert opened.recv(timeout=LIMIT_S) == "hello"


def test_a_closed_port_is_502_with_an_error(app: App) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # held, and nobody listens
        answer = app.request("GET", port=probe.getsockname()[1])
    assert answer.status_code == 502, answer.text
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_cannot_be_is_400(app: App, port: str) -> None:
    answer = httpx2.get(f"{app.server.url}/isorun{app.run}/proxy/{port}/", headers=app.head)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("path", ["/proxy/", "/proxy/x/", "/proxy/-1/", "/proxy/123456/", "/Proxy/80/"])
def test_what_only_resembles_a_port_is_404(app: App, path: str) -> None:
    answer = httpx2.get(f"{app.server.url}/isorun{app.run}{path}", headers=app.head)
    assert answer.status_code == 404, answer.text
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("key", [None, "nobody", "isorun_live_local_0123456789abcdef_0"])
def test_without_a_key_of_the_project_it_is_401(app: App, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    answer = httpx2.get(f"{app.server.url}/isorun{app.run}/proxy/{app.port}/", headers=headers)
    assert answer.status_code == 401, answer.text
    assert set(answer.json()) == {"error"}
    url = f"{app.server.url.replace('http', 'ws')}/isorun{app.run}/proxy/{app.port}/ws"
    with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=headers):
        pass
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("run", ["run0123456789abcdef", "sb_0123456789abcdef", "x"])
def test_an_unknown_run_is_404(app: App, run: str) -> None:
    answer = httpx2.get(f"{app.server.url}/isorun/v1/runs/{run}/proxy/{app.port}/", headers=app.head)
    assert answer.status_code == 404, answer.text
    assert set(answer.json()) == {"error"}
