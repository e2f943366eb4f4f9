"""Parts of the real tests that are no fixtures. Re-exports the server of conftest, so that tests import one module."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from conftest import SOAK, NewServer, RunningServer

__all__ = ["SOAK", "Footprint", "NewServer", "RunningServer"]

_SETTLE_S = 30.0


@dataclass(frozen=True)
class Footprint:
    """What a server holds on the machine: counts, so that a leak is a difference."""

    boxes: int
    cgroups: int
    mounts: int
    fds: int
    rss_kib: int
    layers: int
    runtimes: int
    processes: int

    @classmethod
    def of(cls, server: RunningServer) -> Footprint:
        assert server.process is not None
        pid = server.process.pid
        mounts = Path(f"/proc/{pid}/mounts").read_text().splitlines()
        rss = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        layers = Path(f"/proc/{pid}/root") / str(server.data_dir / "layers" / "btrfs").lstrip("/")
        groups = [p for p in Path("/sys/fs/cgroup").glob(f"*/cove/{server.instance}/*") if p.is_dir()]
        groups += [p for p in Path("/sys/fs/cgroup").glob(f"cove/{server.instance}/*") if p.is_dir()]
        pids = {n for g in groups if (g / "cgroup.procs").exists() for n in (g / "cgroup.procs").read_text().split()}
        return cls(
            boxes=len(list((server.run_dir / "sb").iterdir())),
            cgroups=len(groups),
            mounts=len(mounts),
            fds=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            rss_kib=int(rss.split()[1]),
            layers=len(list(layers.iterdir())),
            runtimes=len(list((server.run_dir / "runtime" / "runc").iterdir())),
            processes=len(pids),
        )

    @classmethod
    def settled(cls, server: RunningServer) -> Footprint:
        """The footprint once two looks a second apart agree on everything but memory (the warm pool is full again)."""
        with server.client() as client:
            client.get("/sandboxes")
        deadline = time.monotonic() + _SETTLE_S
        last = cls.of(server)
        while True:
            time.sleep(1)
            now = cls.of(server)
            if now.counts() == last.counts() or time.monotonic() > deadline:
                return now
            last = now

    def counts(self) -> tuple[int, ...]:
        return (self.boxes, self.cgroups, self.mounts, self.fds, self.layers, self.runtimes, self.processes)

    def assert_not_more_than(self, before: Footprint) -> None:
        # A few descriptors and 32 MiB of heap are slack of the process, not of sandboxes; a leak of 60 cycles is more.
        assert self.boxes <= before.boxes, (before, self)
        assert self.cgroups <= before.cgroups, (before, self)
        assert self.mounts <= before.mounts, (before, self)
        assert self.layers <= before.layers, (before, self)
        assert self.runtimes <= before.runtimes, (before, self)
        assert self.processes <= before.processes, (before, self)
        assert self.fds <= before.fds + 4, (before, self)
        assert self.rss_kib <= before.rss_kib + 32 * 1024, (before, self)

    def assert_only_pool(self, server: RunningServer) -> None:
        """After every sandbox was deleted, only the warm pool's boxes are left."""
        pool = int(server.env["COVE_POOL_SIZE"])
        settled = Footprint.settled(server)
        assert settled.boxes <= pool, settled
        assert settled.layers <= pool, settled
        assert settled.runtimes <= pool, settled
        assert settled.processes <= pool, settled


def loop_devices(data_dir: Path) -> list[str]:
    """The loop devices whose file lies below `data_dir`."""
    listed = subprocess.run(
        ["losetup", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True, check=True
    )
    return [line.split()[0] for line in listed.stdout.splitlines() if str(data_dir) in line]
