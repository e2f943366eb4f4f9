"""Real programs in real sandboxes through the port proxy: servers, uploads, a Vite dev server, scans, idle timers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests_support import CHECKOUT, SETUP_DIR, SOAK, RunningServer

pytestmark = pytest.mark.real

APP = CHECKOUT / "tests" / "port_app.py"
SINK = CHECKOUT / "bench" / "sink.py"
MIB = 1024 * 1024
SIZE = 10 * 1024 * MIB if SOAK else 1024 * MIB
SCANNED = 65_535 if SOAK else 1000
FLAT_KIB = 64 * 1024
VITE = "7.3.8"


class Inside:
    """A sandbox and the ways into it."""

    def __init__(self, server: RunningServer, client: httpx2.Client, **facts: Any) -> None:
        made = client.post("/sandboxes", json=facts)
        assert made.status_code == 201, made.text
        self.server, self.client, self.box = server, client, str(made.json()["id"])

    def put(self, path: str, data: bytes) -> None:
        answer = self.client.put(f"/sandboxes/{self.box}/files/content", params={"path": path}, content=data)
        assert answer.status_code == 200, answer.text

    def run(self, command: str) -> str:
        answer = self.client.post(f"/sandboxes/{self.box}/exec", json={"command": command}).json()
        assert answer["exit_code"] == 0, answer
        return str(answer["stdout"])

    def start(self, command: str, port: int, path: str = "/") -> None:
        """Start a program, and wait until it answers on its port."""
        started = self.client.post(f"/sandboxes/{self.box}/commands", json={"command": command})
        assert started.status_code == 201, started.text
        deadline = time.monotonic() + 60
        while (answer := self.client.get(self.path(port) + path)).status_code == 502:
            output = self.client.get(f"/sandboxes/{self.box}/commands/{started.json()['id']}/output").text
            assert time.monotonic() < deadline, (answer.text, output)
            time.sleep(0.05)

    def path(self, port: int) -> str:
        return f"/sandboxes/{self.box}/ports/{port}/http"

    def host(self, port: int) -> str:
        return f"{port}-{self.box.replace('_', '-')}.localhost:{self.server.port}"

    def expose(self, port: int, access: str) -> dict[str, Any]:
        answer = self.client.put(f"/sandboxes/{self.box}/ports/{port}", json={"access": access})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def connected(self, port: int) -> int:
        """How many connections a port inside has now."""
        lines = self.run("cat /proc/net/tcp").splitlines()[1:]
        rows = [line.split() for line in lines]
        return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


Make = Callable[..., Inside]


@pytest.fixture
def inside(server: RunningServer, client: httpx2.Client) -> Iterator[Make]:
    made: list[Inside] = []

    def make(**facts: Any) -> Inside:
        made.append(Inside(server, client, **facts))
        return made[-1]

    yield make
    for one in made:
        client.delete(f"/sandboxes/{one.box}")


def curl(*words: str) -> str:
    done = subprocess.run(["curl", "-sS", "--max-time", "20", *words], capture_output=True, text=True, check=True)
    return done.stdout


def rss_kib(server: RunningServer) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def test_python_s_own_server_is_used_with_curl(inside: Make, tmp_path: Path) -> None:
    box = inside()
    box.run("mkdir -p '/srv/a b/c' && head -c 3000000 /dev/urandom > '/srv/a b/c/data' && echo hello > /srv/index.html")
    box.start("cd /srv && python3 -m http.server 8000", 8000)
    base = f"{box.server.url}/api/v1{box.path(8000)}"
    key = ("-H", f"X-API-Key: {box.server.key}")
    assert curl(*key, f"{base}/") == "hello\n"
    # The server redirects to the directory's slash, from its own root; curl must end below the prefix.
    assert 'href="data"' in curl(*key, "-L", f"{base}/a%20b/c")
    curl(*key, "-o", str(tmp_path / "data"), f"{base}/a%20b/c/data")
    digest = hashlib.sha256((tmp_path / "data").read_bytes()).hexdigest()
    assert box.run("sha256sum < '/srv/a b/c/data'").split()[0] == digest
    # By host name, in three steps of a browser: the link with the token, the cookie, the page.
    link = f"{box.expose(8000, 'token')['url']}index.html?cove_token="
    token = box.expose(8000, "token")["token"]
    resolve = ("--resolve", f"{box.host(8000)}:127.0.0.1")
    assert curl(*resolve, "-L", "-c", str(tmp_path / "jar"), "-b", str(tmp_path / "jar"), link + token) == "hello\n"
    assert "401" in curl(*resolve, "-L", "-o", "/dev/null", "-w", "%{http_code}", link + token)


def read_big(box: Inside, size: int) -> None:
    with socket.create_connection(("127.0.0.1", box.server.port), timeout=60) as sock:
        head = (f"GET /api/v1{box.path(9000)}/big?n={size} HTTP/1.1", "Host: x", f"X-API-Key: {box.server.key}")
        sock.sendall("\r\n".join((*head, "", "")).encode())
        buffer = memoryview(bytearray(MIB))
        count = sock.recv_into(buffer)
        got = count - (bytes(buffer[:count]).index(b"\r\n\r\n") + 4)
        while got < size:
            count = sock.recv_into(buffer)
            assert count, f"cut after {got} bytes"
            got += count
        assert got == size


def write_big(box: Inside, size: int) -> None:
    piece = bytes(MIB)
    with socket.create_connection(("127.0.0.1", box.server.port), timeout=60) as sock:
        head = (f"POST /api/v1{box.path(9000)}/ HTTP/1.1", "Host: x", f"X-API-Key: {box.server.key}")
        sock.sendall("\r\n".join((*head, f"Content-Length: {size}", "", "")).encode())
        for _ in range(size // MIB):
            sock.sendall(piece)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")  # it has read all


def test_large_bodies_both_ways_with_flat_memory(inside: Make) -> None:
    box = inside(memory_mib=256)
    box.put("/sink.py", SINK.read_bytes())
    box.start("python3 /sink.py 9000", 9000)
    read_big(box, 64 * MIB)
    write_big(box, 64 * MIB)
    before, top = rss_kib(box.server), 0
    with ThreadPoolExecutor(1) as pool:
        for work in (read_big, write_big):
            running = pool.submit(work, box, SIZE)
            while not running.done():
                top = max(top, rss_kib(box.server))
                time.sleep(0.02)
            running.result()
    assert top - before < FLAT_KIB, f"the server grew by {(top - before) // 1024} MiB"


def test_clients_that_read_slowly_or_vanish_hold_nothing(inside: Make) -> None:
    box = inside()
    box.put("/app.py", APP.read_bytes())
    box.start("python3 /app.py 9000", 9000)
    before = rss_kib(box.server)
    socks: list[socket.socket] = []
    for _ in range(8):
        sock = socket.create_connection(("127.0.0.1", box.server.port), timeout=60)
        head = (f"GET /api/v1{box.path(9000)}/big?n={SIZE} HTTP/1.1", "Host: x", f"X-API-Key: {box.server.key}")
        sock.sendall("\r\n".join((*head, "", "")).encode())
        assert sock.recv(1)
        socks.append(sock)
    time.sleep(0.5)
    assert [len(sock.recv(1)) for sock in socks] == [1] * 8
    assert rss_kib(box.server) - before < FLAT_KIB
    assert box.connected(9000) >= 8
    for sock in socks:
        sock.close()
    deadline = time.monotonic() + 60
    while box.connected(9000) > 1:  # one may rest for the next request
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="session")
def vite() -> bytes:
    """Vite and what it needs as a tar, fetched once with the node of the image, outside of any sandbox."""
    root = SETUP_DIR / "images" / "node" / "current" / "rootfs" / "usr" / "local"
    assert (root / "bin" / "node").exists(), "no image node: run `make setup` first"
    cache = Path(tempfile.gettempdir()) / f"cove-tests-vite-{VITE}-{os.geteuid()}"
    if not (cache / "node_modules" / "vite" / "package.json").exists():
        fresh = Path(tempfile.mkdtemp(prefix="cove-vite-"))
        npm = [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
        what = ["install", "--prefix", str(fresh), "--no-audit", "--no-fund", "--ignore-scripts", f"vite@{VITE}"]
        done = subprocess.run([*npm, *what], capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, f"vite cannot be fetched: {done.stderr[-500:]}"
        with contextlib.suppress(OSError):  # another run was faster
            fresh.rename(cache)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(cache / "node_modules", "node_modules")
    return packed.getvalue()


def test_a_vite_dev_server_reloads_hot_through_its_host_name(inside: Make, vite: bytes) -> None:
    box = inside(image="node", memory_mib=1024)
    box.put("/app/vite.tar", vite)
    box.put("/app/index.html", b"<!doctype html><div id=a></div><script type=module src=/main.js></script>")
    box.put("/app/main.js", b"import {word} from './word.js'\nimport.meta.hot.accept()\nconsole.log(word)\n")
    box.put("/app/word.js", b"export const word = 'first'\n")
    box.run("cd /app && tar xf vite.tar")
    box.start("cd /app && node node_modules/vite/bin/vite.js --host 127.0.0.1 --port 5173 --strictPort", 5173)
    box.expose(5173, "public")
    host = box.host(5173)
    with httpx2.Client(base_url=box.server.url, headers={"Host": host}, timeout=60) as browser:
        assert "/@vite/client" in browser.get("/", headers={"Accept": "text/html"}).text
        assert "word" in browser.get("/main.js").text
        assert "first" in browser.get("/word.js").text
        found = re.search(r'const wsToken = "([^"]+)"', browser.get("/@vite/client").text)
        assert found is not None
        url = f"ws://{host}/?token={found[1]}"
        sock = socket.create_connection(("127.0.0.1", box.server.port))
        with connect(url, sock=sock, origin=f"http://{host}", subprotocols=[Subprotocol("vite-hmr")]) as peer:  # type: ignore[arg-type]
            assert json.loads(peer.recv(10))["type"] == "connected"
            box.put("/app/word.js", b"export const word = 'second'\n")
            said = json.loads(peer.recv(10))
            while said["type"] in {"connected", "ping"}:
                said = json.loads(peer.recv(10))
            assert said["type"] in {"update", "full-reload"}
            if said["type"] == "update":
                assert said["updates"][0]["path"] == "/main.js"
        assert "second" in browser.get("/word.js?t=1").text


def test_a_scan_of_ports_finds_what_listens_and_leaves_nothing(inside: Make) -> None:
    box = inside()
    box.run("python3 -c 'pass'")
    box.start("cd / && python3 -m http.server 789", 789)
    assert box.server.process is not None
    fds = Path(f"/proc/{box.server.process.pid}/fd")
    before = len(list(fds.iterdir()))

    def scan(ports: range) -> list[int]:
        found: list[int] = []
        with box.server.client() as client:
            for port in ports:
                answer = client.head(box.path(port) + "/")
                assert answer.status_code in {200, 502}, (port, answer.status_code)
                if answer.status_code == 200:
                    found.append(port)
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(scan, [range(1 + at, SCANNED + 1, 8) for at in range(8)]))
    assert [port for part in found for port in part] == [789]
    stats = box.client.get(f"/sandboxes/{box.box}").json()
    assert stats["state"] == "running"
    time.sleep(0.2)
    assert len(list(fds.iterdir())) <= before + 2
    assert box.connected(789) <= 1


def test_an_open_tunnel_keeps_a_sandbox_awake_and_a_request_wakes_it(inside: Make) -> None:
    box = inside(idle_timeout_s=1)
    box.put("/app.py", APP.read_bytes())
    box.start("python3 /app.py 9000", 9000)
    url = f"ws://127.0.0.1:{box.server.port}/api/v1{box.path(9000)}/ws"
    with connect(url, additional_headers={"X-API-Key": box.server.key}) as peer:
        time.sleep(2.5)
        assert box.client.get(f"/sandboxes/{box.box}").json()["state"] == "running"
        peer.send("still there")
        assert peer.recv() == "still there"
    deadline = time.monotonic() + 60
    while box.client.get(f"/sandboxes/{box.box}").json()["state"] != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert box.client.get(box.path(9000) + "/").status_code == 200
    assert box.client.get(f"/sandboxes/{box.box}").json()["state"] == "running"


def test_more_connections_than_a_sandbox_takes_are_refused_and_the_rest_go_on(inside: Make) -> None:
    box = inside()
    box.put("/app.py", APP.read_bytes())
    box.start("python3 /app.py 9000", 9000)
    head = "\r\n".join((f"GET /api/v1{box.path(9000)}/slow?s=30 HTTP/1.1", "Host: x", f"X-API-Key: {box.server.key}"))
    socks: list[socket.socket] = []
    try:
        for _ in range(512):
            sock = socket.create_connection(("127.0.0.1", box.server.port), timeout=60)
            sock.sendall(f"{head}\r\n\r\n".encode())
            socks.append(sock)
        deadline = time.monotonic() + 60
        while (answer := box.client.get(box.path(9000) + "/")).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (answer.status_code, answer.json()["code"]) == (503, "capacity")
        assert "retry-after" in answer.headers
    finally:
        for sock in socks:
            sock.close()
    deadline = time.monotonic() + 60
    while box.client.get(box.path(9000) + "/").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
