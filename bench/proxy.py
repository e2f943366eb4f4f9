"""The port proxy beside a direct connection and beside nginx: time of a small request, and what a large one carries.

One program answers (`sink.py`): on the machine for the direct connection and for nginx, in a sandbox for Cove.
nginx proxies with keep-alive and without buffering, as Cove does. `python -m bench.proxy` runs this part alone.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.common import MIB, Api, Report, RunningServer, make_server
from tests_support import free_port

APP = Path(__file__).with_name("sink.py")
BODY = bytes(MIB)
NGINX = """
daemon off; worker_processes 1; pid {dir}/pid; error_log stderr error;
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  upstream app {{ server 127.0.0.1:{app}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Way:
    """A way to the program: where to connect, what stands before its paths, headers to send."""

    name: str
    port: int
    prefix: str = ""
    headers: str = ""

    def head(self, method: str, path: str, more: str = "") -> bytes:
        """A request's head."""
        return f"{method} {self.prefix}{path} HTTP/1.1\r\nHost: bench\r\n{self.headers}{more}\r\n".encode()

    def connect(self) -> socket.socket:
        """A connection."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def request_times(way: Way, count: int) -> list[float]:
    """Seconds of small requests, one after the other on one connection."""
    head = way.head("GET", "/small")
    times: list[float] = []
    with way.connect() as sock:
        for _ in range(count):
            start = time.perf_counter()
            sock.sendall(head)
            answer = sock.recv(65536)
            while b"\r\n\r\n" not in answer or not answer.split(b"\r\n\r\n", 1)[1]:
                answer += sock.recv(65536)
            times.append(time.perf_counter() - start)
    if not answer.startswith(b"HTTP/1.1 200"):
        sys.exit(f"{way.name}: {answer[:300]!r}")
    return times


def download_rate(way: Way, size: int) -> float:
    """MB/s of an answer of `size` bytes."""
    buffer = memoryview(bytearray(MIB))
    with way.connect() as sock:
        start = time.perf_counter()
        sock.sendall(way.head("GET", f"/big?n={size}"))
        count = sock.recv_into(buffer)
        got = count - bytes(buffer[:count]).find(b"\r\n\r\n") - 4
        while got < size and (count := sock.recv_into(buffer)):
            got += count
        if got != size:
            sys.exit(f"{way.name}: cut after {got} bytes")
        return size / 1e6 / (time.perf_counter() - start)


def upload_rate(way: Way, size: int) -> float:
    """MB/s of a body of `size` bytes, until the answer to it."""
    with way.connect() as sock:
        start = time.perf_counter()
        sock.sendall(way.head("POST", "/", f"Content-Length: {size}\r\n"))
        for _ in range(size // MIB):
            sock.sendall(BODY)
        answer = sock.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"{way.name}: {answer[:300]!r}")
        return size / 1e6 / (time.perf_counter() - start)


@contextmanager
def _program(*argv: str) -> Generator[None]:
    process = subprocess.Popen(argv)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _wait(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    sys.exit(f"nothing listens on port {port}")


def _ways(stack: ExitStack, report: Report, server: RunningServer, api: Api) -> list[Way]:
    app, nginx = free_port(), free_port()
    stack.enter_context(_program(sys.executable, str(APP), str(app)))
    _wait(app)
    ways = [Way("direct", app)]
    binary = shutil.which("nginx")
    if binary is None:
        report.add("port proxy beside nginx", "nginx is there", "not installed: apt-get install nginx", ok=False)
    else:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX.format(dir=folder, app=app, port=nginx))
        stack.enter_context(_program(binary, "-c", str(config), "-p", folder))
        _wait(nginx)
        ways.append(Way("nginx", nginx))
    box = str(api.call("POST", "/sandboxes", {"cpus": 2})["id"])
    stack.callback(lambda: api.call("DELETE", f"/sandboxes/{box}"))
    key = f"Authorization: Bearer {server.key}\r\n"
    with server.client() as client:
        client.put(f"/sandboxes/{box}/files/content", params={"path": "/sink.py"}, content=APP.read_bytes())
        client.post(f"/sandboxes/{box}/commands", json={"command": ["python3", "/sink.py", "9000"]})
        deadline = time.monotonic() + 20
        while client.get(f"/sandboxes/{box}/ports/9000/http/").status_code != 200:
            if time.monotonic() > deadline:
                sys.exit("the program in the sandbox does not answer")
            time.sleep(0.05)
    ways.append(Way("cove", server.port, f"/api/v1/sandboxes/{box}/ports/9000/http", key))
    return ways


def bench_proxy(report: Report, server: RunningServer, api: Api, *, count: int, size: int) -> None:
    """Small requests and large bodies, all ways in turn."""
    assert server.process is not None
    statm = Path(f"/proc/{server.process.pid}/statm")
    with ExitStack() as stack:
        ways = _ways(stack, report, server, api)
        times: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(5):
            for way in ways:
                times[way.name] += request_times(way, count // 5)
        p50 = {name: statistics.median(found) * 1000 for name, found in times.items()}
        for way in ways:
            added = p50[way.name] - p50["direct"]
            bar, ok = ("<= 1 ms added", added <= 1) if way.name == "cove" else ("-", None)
            report.add(f"request through {way.name}, p50", bar, f"{p50[way.name]:.2f} ms (+{added:.2f})", ok=ok)
        before = int(statm.read_text().split()[1])
        for what, rate in (("download", download_rate), ("upload", upload_rate)):
            for way in ways:
                seen = rate(way, size)
                grown = (int(statm.read_text().split()[1]) - before) * 4096 / MIB
                is_ours = way.name == "cove"
                text = f"{seen:.0f} MB/s" + (f", server +{grown:.0f} MiB" if is_ours else "")
                ok = (seen >= 300 and grown < 64) if is_ours else None
                bar = ">= 300 MB/s, flat" if is_ours else "-"
                report.add(f"{what} of {size // MIB} MiB through {way.name}", bar, text, ok=ok)


def main() -> None:
    """This part alone, on a server of its own."""
    parent = Path(tempfile.mkdtemp(prefix="cove-bench-"))
    server = make_server(parent)
    server.start()
    try:
        bench_proxy(Report(), server, Api(server), count=2000, size=1024 * MIB)
    finally:
        server.down()
        shutil.rmtree(parent, ignore_errors=True)


if __name__ == "__main__":
    main()
