"""The isorun API as its npm client has it: a create from the pool, and many clients at once."""

from __future__ import annotations

import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path

from bench.common import Api, Report, RunningServer, make_server, quantiles, wait_pool
from npm_support import Client, load_of, modules_at

CREATE_MS = 9.0
"""What a create may take by its own account, from the pool, with one client."""

IMAGE = "base"
CLIENTS, MEMORY_MIB = 100, 128


def bench_isorun(report: Report, folder: Path, scale: int) -> None:
    """A server of its own: one client, then a hundred with 32 connections each for a minute."""
    pool = 64
    server = make_server(folder, COVE_POOL_SIZE=str(pool), COVE_DRIVERS="runc")
    server.start()
    try:
        _one_client(report, server, pool, 200 // scale)
        _many_clients(report, server, 60.0 / scale)
    finally:
        server.down()


def _one_client(report: Report, server: RunningServer, pool: int, rounds: int) -> None:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    body = json.dumps({"image": IMAGE, "timeout": 300})
    told, seen = [], []
    for _ in range(rounds):
        wait_pool(Api(server), pool)
        start = time.perf_counter()
        link.request("POST", "/isorun/v1/runs", body, headers)
        answer = json.loads(link.getresponse().read())
        seen.append(time.perf_counter() - start)
        told.append(answer["create_ms"])
        link.request("DELETE", f"/isorun/v1/runs/{answer['id']}", headers=headers)
        link.getresponse().read()
    p50 = statistics.median(told)
    bar = f"p50 <= {CREATE_MS:g}"
    report.add("isorun create, warm, its own `create_ms`", bar, f"p50 {p50:g}", ok=p50 <= CREATE_MS)
    whole = quantiles(seen)
    report.add("isorun create, warm, as the client sees it", "beside it", f"p50 {whole[0]:.2f}  p99 {whole[1]:.2f} ms")


def _many_clients(report: Report, server: RunningServer, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as home:
        client = Client(f"{server.url}/isorun", server.key, IMAGE)
        found = load_of(modules_at(Path(home)), client, clients=CLIENTS, seconds=seconds, memory_mib=MEMORY_MIB)
    crowd = f"{CLIENTS} isorun clients, 32 connections each"
    for kind, one in found["operations"].items():
        took = "none" if one["p50"] is None else f"p50 {one['p50']:.0f}  p99 {one['p99']:.0f} ms (n={one['count']})"
        report.add(f"{crowd}: {kind}", "reported", took)
    failures = sum(found["failed"].values())
    refused = ", ".join(f"{count} x {status}" for status, count in found["declared"].items() if count) or "none"
    what = f"{crowd}: errors that are not declared"
    report.add(what, "none", f"{failures}; 429/503: {refused}", ok=failures == 0)
