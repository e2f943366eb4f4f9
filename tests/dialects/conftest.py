"""A server for the tests of dialects: a process of its own, over loopback HTTP, once for each driver.

`fake` needs no root, no image and gives no isolation; `runc` uses the image `base` of `make setup`. COVE_TEST_DRIVER
names one of them to run with it alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests_support import free_port

DRIVERS = os.environ.get("COVE_TEST_DRIVER", "fake,runc").split(",")
SETUP_DIR = Path(os.environ.get("COVE_DATA_DIR", "/var/lib/cove"))
KEY = "a-test-key-of-no-form"
START = "import sys; from cove.server.serve import main; sys.exit(main({}, False))"


@dataclass
class DialectServer:
    """A running server. `client` has the key, `operator` comes over the unix socket."""

    url: str
    socket_path: Path
    data_dir: Path
    process: subprocess.Popen[bytes]
    client: httpx2.Client
    operator: httpx2.Client
    key: str = KEY

    def sandbox(self, **body: object) -> dict[str, object]:
        answer = self.client.post("/sandboxes", json=body)
        assert answer.status_code == 201, answer.text
        found: dict[str, object] = answer.json()
        return found


def start(data_dir: Path, driver: str, **more: str) -> DialectServer:
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVE_")}
    # A sandbox's root must reach its root file system below the run directory, and pytest's own are private.
    run_dir = data_dir.parent / "run" if driver == "fake" else Path("/run/cove")
    instance = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]
    env |= {"COVE_DATA_DIR": str(data_dir), "COVE_RUN_DIR": str(run_dir), "COVE_PORT": str(port)}
    env |= {"COVE_DRIVERS": driver, "COVE_BOOTSTRAP_KEYS": KEY, "COVE_POOL_SIZE": "2", "COVE_SSH_PORT": "0", **more}
    env |= {"COVE_POOL_BYTES": str(8 * 1024**3)}
    log = (data_dir / "log").open("ab")
    process = subprocess.Popen([sys.executable, "-c", START], env=env, stdout=log, stderr=log)
    log.close()
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, (data_dir / "log").read_text()
        assert time.monotonic() < deadline, (data_dir / "log").read_text()
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/health").status_code == 200:
                break
        time.sleep(0.02)
    found = run_dir / instance / "api.sock"
    head = {"Authorization": f"Bearer {KEY}"}
    client = httpx2.Client(base_url=f"{url}/api/v1", headers=head, timeout=60)
    operator = httpx2.Client(
        base_url="http://localhost/api/v1", transport=httpx2.HTTPTransport(uds=str(found)), timeout=60
    )
    return DialectServer(url, found, data_dir, process, client, operator)


def stop(server: DialectServer) -> None:
    if server.process.poll() is None:
        server.operator.post("/server/shutdown", json={"all": True})
        server.process.wait(60)
    server.client.close()
    server.operator.close()


def make_data_dir(at: Path, driver: str) -> Path:
    at.mkdir(parents=True)
    if driver == "fake":
        digest = hashlib.sha256(b"").hexdigest()
        image = at / "images" / "base" / digest
        (image / "rootfs").mkdir(parents=True)
        (image / "image.json").write_text(json.dumps({"name": "base", "digest": digest, "size_bytes": 1}))
        (image.parent / "current").symlink_to(digest)
    else:
        for name in ("images", "runtimes"):
            (at / name).symlink_to(SETUP_DIR / name)
    return at


@contextlib.contextmanager
def started(**settings: str) -> Iterator[DialectServer]:
    """A server of its own with the driver `fake`, for what no driver can change."""
    # A short path: the fake driver's sockets lie below it, and a unix socket's path has 107 bytes.
    top = Path(tempfile.mkdtemp(prefix="cove-"))
    running = start(make_data_dir(top / "data", "fake"), "fake", COVE_POOL_SIZE="0", **settings)
    try:
        yield running
    finally:
        stop(running)
        shutil.rmtree(top)


@pytest.fixture(scope="session", params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """The driver of a run over all tests."""
    return str(request.param)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, driver: str) -> Iterator[DialectServer]:
    data_dir = make_data_dir(tmp_path_factory.mktemp("d") / "data", driver)
    running = start(data_dir, driver, COVE_PROXY_TIMEOUT_S="3")
    yield running
    stop(running)


@pytest.fixture
def new_server(driver: str) -> Iterator[DialectServer]:
    # A short path: the fake driver's sockets lie below it, and a unix socket's path has 107 bytes.
    top = Path(tempfile.mkdtemp(prefix="cove-"))
    running = start(make_data_dir(top / "data", driver), driver)
    yield running
    if running.process.poll() is not None:
        running.client.close()
        running.operator.close()
        # Its sandboxes went on: a second start ends them.
        running = start(top / "data", driver)
    stop(running)
    shutil.rmtree(top)


@pytest.fixture(scope="session")
def box(server: DialectServer) -> str:
    """A sandbox that all tests of a session may use and none may end."""
    return str(server.sandbox()["id"])
