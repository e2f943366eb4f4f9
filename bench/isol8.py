"""Executions over isol8, whole HTTP requests: a hello world alone, and twenty at once."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import time
from pathlib import Path
from typing import Final

from bench.common import Report, RunningServer, make_server, quantiles

BARS_MS: Final = {"python": 40.0, "bash": 12.0}
HELLO: Final = {"python": "print('hello')", "bash": "echo hello", "node": "console.log('hello')"}
AT_ONCE: Final = 20
TIMES: Final = 10.0
"""How much longer the slowest of them may take than one alone."""

REST_S: Final = 0.25
FILL_S: Final = 12.0
"""Between executions, and between bursts: as long as the boxes that wait need to be there again."""


def _body(runtime: str) -> bytes:
    return json.dumps({"request": {"runtime": runtime, "code": HELLO[runtime]}}).encode()


def bench_isol8(report: Report, folder: Path, rounds: int) -> None:
    """On a server of its own: each runtime alone, then bursts of Python."""
    server = make_server(folder, COVE_POOL_SIZE="0", COVE_DRIVERS="runc")
    server.start()
    try:
        _measure(report, server, rounds)
    finally:
        server.down()


def _measure(report: Report, server: RunningServer, rounds: int) -> None:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    headers = {"Authorization": f"Bearer {server.key}"}

    def run(runtime: str) -> float:
        start = time.perf_counter()
        link.request("POST", "/isol8/execute", _body(runtime), headers)
        answer = link.getresponse()
        found = json.loads(answer.read())
        if found.get("stdout") != "hello":
            sys.exit(f"isol8 {runtime}: {answer.status} {found}")
        return time.perf_counter() - start

    alone = 0.0
    for runtime in HELLO:
        run(runtime)
        time.sleep(FILL_S)  # from the first use on some wait
        samples: list[float] = []
        for _ in range(rounds):
            time.sleep(REST_S)
            samples.append(run(runtime))
        p50, p99 = quantiles(samples)
        bar = BARS_MS.get(runtime)
        report.add(
            f"isol8 /execute, {runtime} hello",
            "beside it" if bar is None else f"p50 <= {bar:g} ms",
            f"p50 {p50:.2f}  p99 {p99:.2f} ms",
            ok=None if bar is None else p50 <= bar,
        )
        if runtime == "python":
            alone = p50
    time.sleep(FILL_S)
    together = asyncio.run(_bursts(server, max(rounds // 25, 2)))
    p50, p99 = quantiles(together)
    report.add(
        f"isol8 /execute, python hello, {AT_ONCE} at once",
        f"p99 <= {TIMES:g} x p50 alone",
        f"p50 {p50:.1f}  p99 {p99:.1f} ms ({p99 / alone:.1f} x)",
        ok=p99 <= TIMES * alone,
    )


async def _bursts(server: RunningServer, count: int) -> list[float]:
    links = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(AT_ONCE)]
    head = f"POST /isol8/execute HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {server.key}\r\n"
    request = f"{head}Content-Length: {len(_body('python'))}\r\n\r\n".encode() + _body("python")
    found: list[float] = []
    for _ in range(count):
        found += await asyncio.gather(*(_one(reader, writer, request) for reader, writer in links))
        await asyncio.sleep(FILL_S)
    for _, writer in links:
        writer.close()
    return found


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> float:
    start = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    body = await reader.readexactly(length)
    if b'"stdout":"hello"' not in body:
        sys.exit(f"isol8: {body[:500]!r}")
    return time.perf_counter() - start
