"""Pause, hibernation, snapshots and forks: whole requests, to the first command's result where something is made.

`python -m bench.state` runs this part alone. "Stopped" is what the server says of how long the source stood still.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.common import MIB, Api, Report, RunningServer, make_server, quantiles, timed

HELD_MIB = 30
UPPER_MIB = 500
LIMITS = {"idle_timeout_s": None, "cpus": 2, "disk_mib": 2048}

HOLD = f"""
import os, time
held = bytearray(os.urandom({HELD_MIB} << 20))
open("/root/ready", "w").close()
while True:
    time.sleep(0.05)
"""
"""What is kept: an interpreter with bytes that no zero page stands for."""


def bench_pause(report: Report, api: Api, rounds: int) -> None:
    """Pause and resume with memory kept."""
    box = api.call("POST", "/sandboxes", {})
    pause, resume = [], []
    for _ in range(rounds):
        pause.append(timed(lambda: api.call("POST", f"/sandboxes/{box['id']}/pause")))
        resume.append(timed(lambda: api.call("POST", f"/sandboxes/{box['id']}/resume")))
    api.call("DELETE", f"/sandboxes/{box['id']}")
    for what, samples in (("pause", pause), ("resume", resume)):
        seen = quantiles(samples)
        report.add(f"{what} (memory kept)", "p50 <= 5 ms", f"p50 {seen[0]:.2f}  p99 {seen[1]:.2f} ms", ok=seen[0] <= 5)


def bench_state(report: Report, folder: Path, scale: int) -> None:
    """All the rest, on a server of its own without a warm pool: what is measured is copies, not claims."""
    server = make_server(folder, COVE_POOL_SIZE="0", COVE_DRIVERS="runc")
    server.start()
    try:
        api = Api(server)
        rounds = max(3, 30 // scale)
        box = holding(api)
        bench_snapshots(report, api, box, rounds)
        bench_forks(report, server, api, box, rounds)
        bench_hibernation(report, api, box, rounds)
        api.call("DELETE", f"/sandboxes/{box}")
        bench_disk_only(report, server, api, scale)
    finally:
        server.down()


def holding(api: Api) -> str:
    """A sandbox with a process of `HELD_MIB`."""
    box = str(api.call("POST", "/sandboxes", LIMITS)["id"])
    api.call("POST", f"/sandboxes/{box}/commands", {"command": ["python3", "-c", HOLD]})
    wait = "until [ -e /root/ready ]; do sleep 0.05; done; sync"
    api.call("POST", f"/sandboxes/{box}/exec", {"command": wait, "timeout_s": 60})
    return box


def used(api: Api, box: object) -> None:
    """A command's result: the sandbox works."""
    answer = api.call("POST", f"/sandboxes/{box}/exec", {"command": ["true"]})
    assert answer["exit_code"] == 0, answer


def bench_snapshots(report: Report, api: Api, box: str, rounds: int) -> None:
    """With memory; and a sandbox of it, to its first command's result."""
    taken, stopped, restored = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        snapshot = api.call("POST", f"/sandboxes/{box}/snapshots", {"memory": True})
        taken.append(time.perf_counter() - start)
        stopped.append(float(str(snapshot["stopped_ms"])) / 1000)
        start = time.perf_counter()
        child = api.call("POST", f"/snapshots/{snapshot['id']}/restore", {})["id"]
        used(api, child)
        restored.append(time.perf_counter() - start)
        api.call("DELETE", f"/sandboxes/{child}")
        api.call("DELETE", f"/snapshots/{snapshot['id']}")
    _tell(report, f"snapshot with memory, a process of {HELD_MIB} MB", taken, 350)
    _tell(report, "of it the source stood still", stopped, 150)
    _tell(report, "restore with memory to first exec result", restored, 350)
    files = [timed(lambda: _files_only(api, box)) for _ in range(rounds)]
    _tell(report, "snapshot of files only, and its removal", files, None)


def _files_only(api: Api, box: str) -> None:
    snapshot = api.call("POST", f"/sandboxes/{box}/snapshots", {"memory": False})
    api.call("DELETE", f"/snapshots/{snapshot['id']}")


def bench_forks(report: Report, server: RunningServer, api: Api, box: str, rounds: int) -> None:
    """One child, and eight at once; each child has run a command at the end."""
    one, eight = [], []
    for _ in range(rounds):
        one.append(timed(lambda: _fork(server, api, box, 1)))
        _end_all_but(api, box)
    for _ in range(max(3, rounds // 3)):
        eight.append(timed(lambda: _fork(server, api, box, 8)))
        _end_all_but(api, box)
    _tell(report, "fork(1) with memory to first exec result", one, 350)
    _tell(report, "fork(8) with memory, all have run a command", eight, 1300)


def _fork(server: RunningServer, api: Api, box: str, count: int, *, memory: bool = True) -> None:
    made = api.call("POST", f"/sandboxes/{box}/fork", {"count": count, "memory": memory})
    children = [str(child["id"]) for child in made["sandboxes"]]  # type: ignore[attr-defined]
    if count == 1:
        used(api, children[0])
        return
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda child: used(Api(server), child), children))


def _end_all_but(api: Api, box: str) -> None:
    for other in api.call("GET", "/sandboxes?limit=1000")["sandboxes"]:  # type: ignore[attr-defined]
        if other["id"] != box:
            api.call("DELETE", f"/sandboxes/{other['id']}")


def bench_hibernation(report: Report, api: Api, box: str, rounds: int) -> None:
    """To the disk, all of it durable; and back, to the first command's result."""
    slept, woken = [], []
    for _ in range(rounds):
        slept.append(timed(lambda: api.call("POST", f"/sandboxes/{box}/hibernate")))

        def wake() -> None:
            api.call("POST", f"/sandboxes/{box}/resume")
            used(api, box)

        woken.append(timed(wake))
    _tell(report, f"hibernate, a process of {HELD_MIB} MB, durable", slept, None)
    _tell(report, "resume it, to first exec result", woken, None)


def bench_disk_only(report: Report, server: RunningServer, api: Api, scale: int) -> None:
    """Files alone, of a sandbox that has written much: the time does not depend on how much."""
    count = 100 // min(scale, 10)
    box = str(api.call("POST", "/sandboxes", LIMITS)["id"])
    fill = f"mkdir d && cd d && for i in $(seq {UPPER_MIB}); do head -c {MIB} /dev/urandom > $i; done; sync"
    api.call("POST", f"/sandboxes/{box}/exec", {"command": fill, "timeout_s": 120})
    single = []
    for _ in range(max(5, 30 // scale)):
        single.append(timed(lambda: api.call("POST", f"/sandboxes/{box}/fork", {"memory": False})))
        _end_all_but(api, box)
    _tell(report, f"fork of files only, {UPPER_MIB} MB written", single, 40)
    took = timed(lambda: _fork(server, api, box, count, memory=False))
    what = f"{count} forks of files only, all have run a command"
    report.add(what, "100 in <= 5 s", f"{took:.2f} s", ok=took <= count / 20)
    _end_all_but(api, box)
    api.call("DELETE", f"/sandboxes/{box}")


def _tell(report: Report, what: str, samples: list[float], bar_ms: float | None) -> None:
    p50, worst = statistics.median(samples) * 1000, max(samples) * 1000
    bar = "-" if bar_ms is None else f"p50 <= {bar_ms:g} ms"
    report.add(what, bar, f"p50 {p50:.0f}  most {worst:.0f} ms", ok=None if bar_ms is None else p50 <= bar_ms)


def main() -> None:
    """This part alone; `--quick` takes a tenth of the samples."""
    with tempfile.TemporaryDirectory(prefix="cove-bench-", dir="/var/tmp") as folder:
        bench_state(Report(), Path(folder), 10 if "--quick" in sys.argv else 1)


if __name__ == "__main__":
    main()
