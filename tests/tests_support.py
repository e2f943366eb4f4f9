"""What tests with a real server share and is no fixture: a server of their own, and what it holds on the machine.

Servers take the runtimes and images that `make setup` made (COVE_DATA_DIR, default /var/lib/cove) and use nothing else
of it. COVE_TEST_DRIVER names the driver of their sandboxes, by default the server's own default.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from cove.engine.oci.runtime import known
from cove.server.setup import SetupSettings, SilentProgress
from cove.server.setup.steps import build_images
from waiting_support import LIMIT_S

CHECKOUT = Path(__file__).resolve().parents[1]
SETUP_DIR = Path(os.environ.get("COVE_DATA_DIR", "/var/lib/cove"))
START_LIMIT_S = 60.0
DRIVER = os.environ.get("COVE_TEST_DRIVER", "")
SOAK = os.environ.get("COVE_SOAK") == "1"


_FIRST_PORT = 10_000


def free_port(count: int = 1) -> int:
    """A port, of TCP and of UDP, that is free until the caller's program takes it: the first of `count` in a row.

    Nobody gets it by chance meanwhile: it lies outside of what the kernel gives to clients and to who asks for port 0.
    Nor does another test: each is claimed, by a unix socket of its number, until this process ends.
    """
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    ports = [port for port in range(_FIRST_PORT, 65536 - count) if port + count <= low or port > high]
    random.shuffle(ports)
    return next(port for port in ports if all(_is_free(port + n) and _claim(port + n) for n in range(count)))


def _claim(port: int) -> bool:
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            claim.bind(f"\0cove-test-port-{port}")
        except OSError:
            return False
        os.dup(claim.fileno())  # held until we end
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            stream.bind(("0.0.0.0", port))  # noqa: S104 - on every address
            stream.listen()
            datagrams.bind(("0.0.0.0", port))  # noqa: S104
        except OSError:
            return False
    return True


@dataclass
class RunningServer:
    """A server process with its own data directory and port, run by `prefix`. `kill` is `kill -9`."""

    data_dir: Path
    port: int
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()

    key = "cove-test-key-0123456789"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def instance(self) -> str:
        return hashlib.sha256(str(self.data_dir.resolve()).encode()).hexdigest()[:12]

    @property
    def run_dir(self) -> Path:
        return Path("/run/cove") / self.instance

    @property
    def socket(self) -> Path:
        return self.run_dir / "api.sock"

    @property
    def log(self) -> Path:
        return self.data_dir / "test-server.log"

    def start(self, *, wait: bool = True) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("COVE_")}
        env |= {
            "COVE_DATA_DIR": str(self.data_dir),
            "COVE_PORT": str(self.port),
            "COVE_BOOTSTRAP_KEYS": self.key,
            "COVE_POOL_BYTES": str(20 * 1024**3),
            "COVE_SSH_PORT": "0",
            **self.env,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    sys.executable,
                    "-c",
                    "import sys; from cove.server.serve import main; sys.exit(main({}, False))",
                ],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()[-4000:]}"
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.02)
        pytest.fail(f"the server is not ready after {START_LIMIT_S} s:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """`kill -9`, as a crash."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """The polite end: sandboxes go on."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def down(self) -> None:
        """End the server and everything that it made."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None
        with self.client() as client:
            client.post("/server/shutdown", json={"all": True}, timeout=60)
        self.process.wait(60)

    def client(self, **options: object) -> httpx2.Client:
        """A client of the native API with the test key."""
        settings: dict[str, object] = {"timeout": 60.0, **options}
        return httpx2.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {self.key}"},
            **settings,  # type: ignore[arg-type]
        )


def make_server(parent: Path, **env: str) -> RunningServer:
    """A server (not started) below `parent`, with the products of `make setup`."""
    if os.geteuid() != 0:
        pytest.fail("real sandboxes need root: run the tests as root, or `make test` with sudo")
    if not (SETUP_DIR / "images" / "base" / "current").exists():
        pytest.fail(f"no image base in {SETUP_DIR}: run `make setup` first")
    data_dir = Path(tempfile.mkdtemp(prefix="data-", dir=parent))
    for product in ("runtimes", "images"):
        (data_dir / product).symlink_to(SETUP_DIR / product)
    driver = {"COVE_DRIVERS": DRIVER} if DRIVER else {}
    return RunningServer(data_dir, free_port(), {"COVE_POOL_SIZE": "4", **driver, **env})


def make_images(recipes: Path, names: list[str]) -> None:
    """Make those of the images `names` that are not there yet, from `images/` and `tests/recipes/`.

    `recipes` is a directory to be made for both.
    """
    recipes.mkdir()
    for home in (CHECKOUT / "images", CHECKOUT / "tests" / "recipes"):
        for recipe in home.iterdir():
            (recipes / recipe.name).symlink_to(recipe)
    build_images(SetupSettings(data_dir=SETUP_DIR, recipes=recipes), SilentProgress(), names)


NewServer = Callable[..., RunningServer]
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
            layers=len({entry.name for entry in layers.iterdir()} - {"checkpoints"}),
            runtimes=sum(len(known(state)) for state in (server.run_dir / "runtime").iterdir()),
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
        with server.client() as client:
            client.get("/sandboxes")
        seen = self
        deadline = time.monotonic() + LIMIT_S
        while not seen.is_only_pool(server):
            assert time.monotonic() < deadline, seen
            time.sleep(0.1)
            with contextlib.suppress(OSError):  # what is counted goes away meanwhile
                seen = Footprint.of(server)

    def is_only_pool(self, server: RunningServer) -> bool:
        pool = int(server.env["COVE_POOL_SIZE"])
        # A box of gVisor is a sentry, a gofer and a process for each address space inside.
        processes = pool * (8 if DRIVER == "gvisor" else 1)
        return max(self.boxes, self.layers, self.runtimes) <= pool and self.processes <= processes


def loop_devices(data_dir: Path) -> list[str]:
    """The loop devices whose file lies below `data_dir`."""
    listed = subprocess.run(
        ["losetup", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True, check=True
    )
    return [line.split()[0] for line in listed.stdout.splitlines() if str(data_dir) in line]
