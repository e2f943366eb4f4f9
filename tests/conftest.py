"""What tests with a real server share: a server of their own in a data directory of their own.

`server` is one server for the whole session; `new_server` makes one that a test may kill. Both take the runtimes and
images that `make setup` made (COVE_DATA_DIR, default /var/lib/cove) and use nothing else of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

SETUP_DIR = Path(os.environ.get("COVE_DATA_DIR", "/var/lib/cove"))
START_LIMIT_S = 60.0
SOAK = os.environ.get("COVE_SOAK") == "1"


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RunningServer:
    """A server process with its own data directory and port. `kill` is `kill -9`; `start` starts it again."""

    data_dir: Path
    port: int
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

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
            **self.env,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "import sys; from cove.server.serve import main; sys.exit(main({}, False))"],
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
            self.process.wait(30)

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
    return RunningServer(data_dir, free_port(), {"COVE_POOL_SIZE": "4", **env})


NewServer = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One running server for all tests of the session that only need one."""
    running = make_server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[NewServer]:
    """Makes servers that a test may kill; each is ended with all it made, and what it leaves is an error."""
    made: list[RunningServer] = []

    def make(**env: str) -> RunningServer:
        made.append(make_server(tmp_path, **env))
        made[-1].start()
        return made[-1]

    yield make
    for running in made:
        running.down()
        assert not running.run_dir.exists(), f"left behind: {sorted(running.run_dir.rglob('*'))[:20]}"
        shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx2.Client]:
    """A client of the session's server."""
    with server.client() as client:
        yield client


@pytest.fixture
def sandbox(client: httpx2.Client) -> Iterator[str]:
    """A fresh sandbox of the session's server, by id; deleted afterwards."""
    made = client.post("/sandboxes", json={})
    assert made.status_code == 201, made.text
    yield made.json()["id"]
    client.delete(f"/sandboxes/{made.json()['id']}")
