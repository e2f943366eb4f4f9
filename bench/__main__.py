"""`make bench`: the numbers of docs/benchmarks.md, measured in one run beside the peers that this machine has.

Whole HTTP requests over loopback from one Python client with keep-alive; "ready" means that a command runs. Starts a
server of its own (a temporary data directory, a free port) from what `make setup` made, and leaves nothing. Peers:
`runc run` and `crun run` of a shell in a bundle of the same image, `bwrap`, `docker run`, each where installed.
Run it on an idle machine; `--write` puts the table into docs/benchmarks.md, `--quick` takes a tenth of the samples.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.audit import bench_audit
from bench.code import bench_code
from bench.common import (
    MIB,
    ROOT,
    SETUP_DIR,
    Api,
    Report,
    RunningServer,
    bench_sustained,
    make_server,
    quantiles,
    raw,
    timed,
    wait_pool,
)
from bench.drivers import bench_drivers
from bench.images import bench_unpack
from bench.isol8 import bench_isol8
from bench.isorun import bench_isorun
from bench.network import bench_network
from bench.proxy import bench_proxy
from bench.shells import bench_shells
from bench.state import bench_pause, bench_state
from bench.terminals import bench_terminals
from bench.trees import bench_trees


def bench_warm(report: Report, api: Api, pool: int, rounds: int) -> None:
    """Creates from the pool, first exec, exec, destroy."""
    create, first, execs = [], [], []
    for _ in range(rounds):
        wait_pool(api, pool)
        start = time.perf_counter()
        box = api.call("POST", "/sandboxes", {})
        create.append(time.perf_counter() - start)
        api.call("POST", f"/sandboxes/{box['id']}/exec", {"command": ["true"]})
        first.append(time.perf_counter() - start)
        if box["source"] != "warm":
            create.pop()
            first.pop()
        execs += [
            timed(lambda box=box: api.call("POST", f"/sandboxes/{box['id']}/exec", {"command": ["true"]}))  # type: ignore[misc]
            for _ in range(5)
        ]
        api.call("DELETE", f"/sandboxes/{box['id']}")
    for what, samples, p50, p99 in (
        ("create, warm", create, 3.0, 9.0),
        ("create to first exec result, warm", first, 8.0, 25.0),
        ("exec `true`", execs, 3.0, 8.0),
    ):
        seen = quantiles(samples)
        bar = f"p50 <= {p50:g}, p99 <= {p99:g} ms"
        report.add(what, bar, f"p50 {seen[0]:.2f}  p99 {seen[1]:.2f} ms", ok=seen[0] <= p50 and seen[1] <= p99)


def bench_burst(report: Report, server: RunningServer, api: Api, pool: int) -> None:
    """100 creates at once, each usable; and the rate until the last one was ready."""
    wait_pool(api, pool)

    async def one() -> tuple[int, str]:
        status, box = await raw(server.port, server.key, "POST", "/sandboxes", b"{}")
        if status != 201:
            return status, str(box)
        ran, result = await raw(
            server.port, server.key, "POST", f"/sandboxes/{box['id']}/exec", b'{"command":["true"]}'
        )
        return (status if ran == 200 and result["exit_code"] == 0 else 500), str(box["id"])

    async def burst() -> list[tuple[int, str]]:
        return await asyncio.gather(*(one() for _ in range(100)))

    start = time.perf_counter()
    answers = asyncio.run(burst())
    took = time.perf_counter() - start
    failed = [a for a in answers if a[0] != 201]
    report.add(
        "100 creates at once, all usable",
        "<= 2 s, none failed",
        f"{took:.2f} s, {len(failed)} failed",
        ok=took <= 2 and not failed,
    )
    report.add("creates per second in that burst", ">= 30 /s", f"{100 / took:.0f} /s", ok=100 / took >= 30)
    for status, name in answers:
        if status == 201:
            api.call("DELETE", f"/sandboxes/{name}")


def bench_files(report: Report, server: RunningServer, api: Api, size: int) -> None:
    """Upload and download of one file by curl, and the server's memory meanwhile."""
    box = api.call("POST", "/sandboxes", {"memory_mib": 1024, "disk_mib": 8192})
    assert server.process is not None
    pid = server.process.pid
    before = _rss(pid)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        source = Path(folder) / "source"
        with source.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        url = f"{server.url}/api/v1/sandboxes/{box['id']}/files/content?path=/root/f"
        auth = ["-sS", "-f", "-H", f"Authorization: Bearer {server.key}", "-o"]
        up = timed(lambda: subprocess.run(["curl", *auth, "/dev/null", "-T", str(source), url], check=True))
        down = timed(lambda: subprocess.run(["curl", *auth, "/dev/null", url], check=True))
    grown = (_rss(pid) - before) / MIB
    for what, took in (("upload", up), ("download", down)):
        rate = size / MIB / took
        seen = f"{rate:.0f} MB/s, server +{grown:.0f} MiB"
        report.add(f"file {what} ({size // MIB} MiB)", ">= 300 MB/s, flat", seen, ok=rate >= 300 and grown < 64)
    api.call("DELETE", f"/sandboxes/{box['id']}")


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def bench_memory(report: Report, api: Api, pool: int, count: int) -> None:
    """What an idle sandbox costs in all: the fall of MemAvailable by `count` of them."""
    wait_pool(api, pool)
    time.sleep(3)
    before = _available()
    boxes = [api.call("POST", "/sandboxes", {})["id"] for _ in range(count)]
    wait_pool(api, pool)
    time.sleep(3)
    each = (before - _available()) / count / MIB
    report.add("an idle sandbox, all memory it costs", "<= 5 MB", f"{each:.2f} MB (n={count})", ok=each <= 5)
    for box in boxes:
        api.call("DELETE", f"/sandboxes/{box}")


@contextlib.contextmanager
def bundle(image: Path) -> Iterator[Path]:
    """A plain OCI bundle of the same root file system for the peers."""
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "ociVersion": "1.0.2",
            "root": {"path": str(image), "readonly": True},
            "process": {"cwd": "/", "args": ["/bin/true"], "env": ["PATH=/usr/bin:/bin"], "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network")]},
        }
        (Path(folder) / "config.json").write_text(json.dumps(config))
        yield Path(folder)


def peers(image: Path, runtimes: Path, folder: Path) -> dict[str, list[str]]:
    """The peers that are installed: name to command. `NAME` in it stands for a name that is new in each run."""
    found: dict[str, list[str]] = {}
    for name in ("crun", "runc", "runsc"):
        if (runtimes / name).exists():
            call = [str(runtimes / name), "--root", str(folder / name), "run", "--bundle", str(folder), "NAME"]
            if Path("/sys/fs/cgroup/unified").is_dir():
                # crun takes a hybrid hierarchy for v2 and fails; in a mount namespace without it, it is plain v1.
                hide = 'umount /sys/fs/cgroup/unified; exec "$@"'
                call = ["unshare", "--mount", "sh", "-c", hide, "sh", *call]
            found[f"{name} run /bin/true"] = call
    if shutil.which("bwrap"):
        found["bwrap /bin/true"] = ["bwrap", "--ro-bind", "IMAGE", "/", "--proc", "/proc", "--unshare-all", "/bin/true"]
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        found["docker run debian true"] = ["docker", "run", "--rm", "debian", "true"]
    return {name: [str(image) if word == "IMAGE" else word for word in call] for name, call in found.items()}


def bench_peers(report: Report, server: RunningServer, rounds: int) -> None:
    """A command in a fresh container of each peer that is here: their create to first result."""
    image = (server.data_dir / "images" / "base" / "current").resolve() / "rootfs"

    def once(call: list[str], number: int) -> bool:
        argv = [f"bench{number}" if word == "NAME" else word for word in call]
        null = subprocess.DEVNULL
        return subprocess.run(argv, check=False, stdin=null, stdout=null, stderr=null).returncode == 0

    with bundle(image) as folder:
        for name, call in peers(image, server.data_dir / "runtimes" / "current" / "bin", folder).items():
            if not once(call, 0):
                report.add(f"peer: {name}", "-", "cannot run here")
                continue
            samples = []
            for number in range(1, rounds + 1):
                start = time.perf_counter()
                if once(call, number):
                    samples.append(time.perf_counter() - start)
            seen = quantiles(samples)
            report.add(f"peer: {name}", "-", f"p50 {seen[0]:.1f}  p99 {seen[1]:.1f} ms")


def write(report: Report) -> None:
    """Put the table into docs/benchmarks.md, between its two marks."""
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text()
    head, _, rest = text.partition("<!-- table -->")
    tail = rest.partition("<!-- end -->")[2]
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, kernel {platform.release().split('-')[0]}.",
        "",
    ]
    lines += ["| What | Bar | Measured | |", "|---|---|---|---|"]
    marks = {None: "", True: "met", False: "**missed**"}
    lines += [f"| {r.what} | {r.bar} | {r.seen} | {marks[r.ok]} |" for r in report.rows]
    page.write_text(head + "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->" + tail)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    scale = 10 if given.quick else 1
    report, pool = Report(), 64
    with tempfile.TemporaryDirectory() as folder:
        server = make_server(Path(folder), COVE_POOL_SIZE=str(pool), COVE_DRIVERS="runc")
        server.start()
        try:
            api = Api(server)
            bench_memory(report, api, pool, 100 // scale)
            bench_warm(report, api, pool, 200 // scale)
            bench_burst(report, server, api, pool)
            bench_pause(report, api, 50 // scale)
            bench_files(report, server, api, (1024 if not given.quick else 128) * MIB)
            bench_shells(report, api, 500 // scale)
            bench_trees(report, server, quick=given.quick)
            bench_proxy(
                report, server, api, count=200 if given.quick else 2000, size=(1024 if not given.quick else 128) * MIB
            )
            bench_terminals(report, server, api, 1000 // scale)
            bench_sustained(report, server, 20.0 / scale, driver="runc", bar=20)
            server.down()
            bench_drivers(report, Path(folder), scale)
            bench_state(report, Path(folder), scale)
            bench_code(report, Path(folder), 500 // scale)
            bench_network(report, Path(folder), scale)
            bench_audit(report, Path(folder), 1000 // scale)
            bench_isorun(report, Path(folder), scale)
            bench_isol8(report, Path(folder), 60 // scale)
            bench_unpack(report, SETUP_DIR)
            bench_peers(report, server, 30 // scale)
        finally:
            if server.process is not None and server.process.poll() is None:
                server.down()
    if given.write:
        write(report)
    return 0 if all(row.ok is not False for row in report.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
