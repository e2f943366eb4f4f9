"""What the benchmark's parts share: the report, a thin client, quantiles."""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from tests_support import SETUP_DIR, RunningServer, make_server  # noqa: E402 (the tests' server is the one to measure)

__all__ = [
    "MIB",
    "ROOT",
    "SETUP_DIR",
    "Api",
    "Report",
    "Row",
    "RunningServer",
    "bench_sustained",
    "make_server",
    "quantiles",
    "raw",
    "timed",
    "wait_pool",
]

MIB = 1024 * 1024


@dataclass
class Row:
    """One line of the table: what, the bar, what was seen."""

    what: str
    bar: str
    seen: str
    ok: bool | None = None


@dataclass
class Report:
    """All lines of a run."""

    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, bar: str, seen: str, *, ok: bool | None = None) -> None:
        """Add a line and show it at once."""
        self.rows.append(Row(what, bar, seen, ok))
        mark = {None: " ", True: "ok", False: "MISSED"}[ok]
        print(f"{what:52} {seen:34} bar {bar:22} {mark}", flush=True)


class Api:
    """A keep-alive client as thin as Python has, so that the server is what is measured."""

    def __init__(self, server: RunningServer) -> None:
        self.link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        self.headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """One request; its JSON answer. A status of 400 or more ends the run."""
        payload = None if body is None else json.dumps(body)
        self.link.request(method, "/api/v1" + path, payload, self.headers)
        answer = self.link.getresponse()
        raw = answer.read()
        if answer.status >= 400:
            sys.exit(f"{method} {path}: {answer.status} {raw[:500]!r}")
        return dict(json.loads(raw)) if raw else {}


def quantiles(samples: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(samples)
    return statistics.median(ordered) * 1000, ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def wait_pool(api: Api, size: int, image: str = "base") -> None:
    """Wait until the warm pool has `size` members of an image."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        capacity = api.call("GET", "/server")["capacity"]
        if dict(capacity["pool"]).get(image, 0) >= size:  # type: ignore[index,call-overload]
            return
        time.sleep(0.05)
    sys.exit("the warm pool does not fill")


async def raw(port: int, key: str, method: str, path: str, body: bytes) -> tuple[int, dict[str, object]]:
    """One request on a connection of its own: the status and the JSON answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} /api/v1{path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    status, _, rest = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), dict(json.loads(rest)) if rest else {}


def bench_sustained(report: Report, server: RunningServer, seconds: float, *, driver: str, bar: float) -> None:
    """Create and destroy as fast as four clients can, long after the pool is empty."""

    async def worker(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            status, box = await raw(server.port, server.key, "POST", "/sandboxes", b"{}")
            if status == 201:
                await raw(server.port, server.key, "DELETE", f"/sandboxes/{box['id']}", b"")
                done += 1
        return done

    async def all_workers() -> int:
        until = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(worker(until) for _ in range(4))))

    start = time.perf_counter()
    done = asyncio.run(all_workers())
    rate = done / (time.perf_counter() - start)
    what = f"create + destroy, sustained ({driver})"
    report.add(what, f">= {bar:g} /s", f"{rate:.1f} /s over {seconds:.0f} s", ok=rate >= bar)
