"""What each isolation driver costs: cold creates, creates and destroys without end, and gVisor's warm path."""

from __future__ import annotations

import time
from pathlib import Path

from bench.common import Api, Report, RunningServer, bench_sustained, make_server, quantiles, timed, wait_pool

COLD_MS = {"crun": 40.0, "runc": 70.0, "gvisor": 300.0}
"""Bars of the p50, whole requests."""

GVISOR_POOL = 8


def bench_drivers(report: Report, folder: Path, scale: int) -> None:
    """All of it, each on a server of its own; a driver that this machine cannot run is said so."""
    cold = make_server(folder, COVE_POOL_SIZE="0", COVE_DRIVERS="runc,crun,gvisor")
    with running(cold) as api:
        usable = {one["name"] for one in api.call("GET", "/server")["drivers"] if one["usable"]}  # type: ignore[attr-defined]
        for driver in [name for name in COLD_MS if name not in usable]:
            report.add(f"create, cold ({driver})", f"p50 <= {COLD_MS[driver]:g} ms", "cannot run here", ok=False)
        bench_cold(report, api, [name for name in COLD_MS if name in usable], 60 // scale)
    churn = make_server(folder, COVE_POOL_SIZE="64", COVE_DRIVERS="crun")
    with running(churn) as api:
        wait_pool(api, 64)
        bench_sustained(report, churn, 20.0 / scale, driver="crun", bar=40)
    strong = make_server(folder, COVE_POOL_SIZE=str(GVISOR_POOL), COVE_DRIVERS="gvisor")
    with running(strong) as api:
        bench_gvisor(report, api, 60 // scale)


class running:  # noqa: N801 - used as a function
    """A server for the time of a `with`, with a client of it."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server

    def __enter__(self) -> Api:
        self.server.start()
        return Api(self.server)

    def __exit__(self, *_: object) -> None:
        self.server.down()


def bench_cold(report: Report, api: Api, drivers: list[str], rounds: int) -> None:
    """Creates that no pool serves, the drivers by turns so that they see the same noise."""
    samples: dict[str, list[float]] = {driver: [] for driver in drivers}
    for _ in range(rounds):
        for driver in drivers:
            start = time.perf_counter()
            box = api.call("POST", "/sandboxes", {"driver": driver})
            samples[driver].append(time.perf_counter() - start)
            api.call("DELETE", f"/sandboxes/{box['id']}")
    for driver, seen in samples.items():
        p50, p99 = quantiles(seen)
        bar = COLD_MS[driver]
        report.add(f"create, cold ({driver})", f"p50 <= {bar:g} ms", f"p50 {p50:.1f}  p99 {p99:.1f} ms", ok=p50 <= bar)


def bench_gvisor(report: Report, api: Api, rounds: int) -> None:
    """Claims from a pool of gVisor boxes, and commands in them."""
    create, execs = [], []
    for _ in range(rounds):
        wait_pool(api, GVISOR_POOL)
        time.sleep(0.05)
        start = time.perf_counter()
        box = api.call("POST", "/sandboxes", {})
        if box["source"] == "warm":
            create.append(time.perf_counter() - start)
        path = f"/sandboxes/{box['id']}/exec"
        execs += [timed(lambda path=path: api.call("POST", path, {"command": ["true"]})) for _ in range(3)]  # type: ignore[misc]
        api.call("DELETE", f"/sandboxes/{box['id']}")
    for what, samples, bar in (("create, warm (gvisor)", create, 5.0), ("exec `true` (gvisor)", execs, 30.0)):
        p50, p99 = quantiles(samples)
        report.add(what, f"p50 <= {bar:g} ms", f"p50 {p50:.2f}  p99 {p99:.2f} ms", ok=p50 <= bar)
