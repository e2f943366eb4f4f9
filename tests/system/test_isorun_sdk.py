"""The unmodified npm client on real sandboxes: memory that goes along, the package's README, its tools for agents."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import world_dns_support as dns
from npm_support import Client, cases_in, modules_at, results_of
from tests_support import SETUP_DIR, SOAK, RunningServer
from world_support import OTHER, World

pytestmark = pytest.mark.real

WHEELS: Final = ("pandas", "numpy")
"""What the README installs."""
INDEX_PORT: Final = 3141
LIMIT_S: Final = 60.0


def small_wheel(name: str) -> tuple[str, bytes]:
    """A wheel as small as one can be: what pip installs is not the matter here, that it does is."""
    info, out = f"{name}-9.9.9.dist-info", io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{name}/__init__.py", '__version__ = "9.9.9"\n')
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}-9.9.9-py3-none-any.whl", out.getvalue()


def wheels_in(folder: Path) -> dict[str, bytes]:
    """The wheels by file name: the real ones in `make soak`, from the index of this machine's own pip."""
    if not SOAK:
        return dict(map(small_wheel, WHEELS))
    pip = [sys.executable, "-m", "pip", "--quiet", "download", "--only-binary=:all:", "--python-version", "3.11"]
    subprocess.run([*pip, "--dest", str(folder), *WHEELS], check=True, timeout=600)
    return {wheel.name: wheel.read_bytes() for wheel in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package index in the world of the sandboxes; its address."""
    wheels = wheels_in(tmp_path_factory.mktemp("wheels"))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/").rpartition("/")[2]
            if name in wheels:
                found, kind = wheels[name], "application/zip"
            else:
                of_it = [one for one in wheels if one.lower().replace("_", "-").startswith(f"{name}-")]
                found, kind = "".join(f'<a href="/w/{one}">{one}</a>' for one in of_it).encode(), "text/html"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((OTHER, INDEX_PORT), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = world.net.listener("0.0.0.0", INDEX_PORT)  # noqa: S104 - of a namespace of its own
    server.socket.setblocking(True)
    world.dns.names["wheels.example"] = dns.addresses(OTHER)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://wheels.example:{INDEX_PORT}"
    server.shutdown()
    server.server_close()
    thread.join()


def images_with_index(home: Path, index: str) -> Path:
    """The images of `make setup`; the pip of `python` has another index, as an operator would set it."""
    home.mkdir()
    for image in (SETUP_DIR / "images").iterdir():
        if image.name != "python":
            (home / image.name).symlink_to(image)
    current = (SETUP_DIR / "images" / "python" / "current").resolve()
    facts = json.loads((current / "image.json").read_text())
    facts["env"] |= {"PIP_INDEX_URL": f"{index}/simple/", "PIP_TRUSTED_HOST": index.removeprefix("http://")}
    copy = home / "python" / current.name
    copy.mkdir(parents=True)
    (copy / "image.json").write_text(json.dumps(facts))
    (copy / "rootfs").symlink_to(current / "rootfs")
    (copy.parent / "current").symlink_to(current.name)
    return home


@pytest.fixture(scope="module")
def server(world: World, index: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose `node:22-slim` and `python:3.12-slim` are our images, and whose internet is a world."""
    home = tmp_path_factory.mktemp("isorun")
    running = world.server(home, COVE_DRIVERS="runc", COVE_POOL_SIZE="2", COVE_POOL_IMAGES="node,python")
    (running.data_dir / "images").unlink()
    images_with_index(running.data_dir / "images", index)
    running.start()
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def results(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all cases came to, by script and name."""
    place = modules_at(tmp_path_factory.mktemp("scripts"))
    client = Client(f"{server.url}/isorun", server.key, "node:22-slim")
    scripts = ("state.mjs", "readme.mjs", "agents.mjs", "network.mjs")
    return {script: results_of(place, script, client) for script in scripts}


def check(results: dict[str, Any], script: str, case: str) -> None:
    assert case in results[script], f"it ended before; {list(results[script])}"
    assert not results[script][case].get("error"), results[script][case]["error"]


@pytest.mark.parametrize("case", cases_in("state.mjs"))
def test_memory_goes_along(results: dict[str, Any], case: str) -> None:
    check(results, "state.mjs", case)


@pytest.mark.parametrize("case", cases_in("readme.mjs"))
def test_the_readme_of_the_package(results: dict[str, Any], case: str) -> None:
    check(results, "readme.mjs", case)


@pytest.mark.parametrize("case", cases_in("agents.mjs"))
def test_the_tools_for_agents(results: dict[str, Any], case: str) -> None:
    check(results, "agents.mjs", case)


@pytest.mark.parametrize("case", cases_in("network.mjs"))
def test_what_a_sandbox_may_reach(results: dict[str, Any], case: str) -> None:
    check(results, "network.mjs", case)


@pytest.fixture
def api(server: RunningServer) -> Iterator[httpx2.Client]:
    head = {"Authorization": f"Bearer {server.key}"}
    with httpx2.Client(base_url=f"{server.url}/isorun/v1", headers=head, timeout=LIMIT_S) as client:
        yield client


def memory_of(server: RunningServer, run: str) -> int | None:
    """What the kernel counts for a sandbox's cgroup; None: it has none."""
    core_id = run.removeprefix("run")
    for top in (Path("/sys/fs/cgroup/memory/cove"), Path("/sys/fs/cgroup/cove")):
        for name in ("memory.usage_in_bytes", "memory.current"):
            for file in (top / server.instance).glob(f"*{core_id}*/{name}"):
                return int(file.read_text())
    return None


def test_hibernation_frees_the_memory_and_resuming_brings_it_back(server: RunningServer, api: httpx2.Client) -> None:
    run = api.post("/runs", json={"image": "python:3.12-slim", "mem_mib": 512}).json()["id"]
    hold = "import os,time; held=os.urandom(200<<20); print(hash(held), file=open('/tmp/h','w'), flush=True)"
    ask = "import signal; signal.signal(10, lambda *_: print(hash(held), file=open('/tmp/h2','w'), flush=True))"
    forever = "[time.sleep(0.1) for _ in iter(int, 1)]"
    command = f'nohup setsid python3 -c "{hold}; {ask}; {forever}" >/dev/null 2>&1 & echo $! >/tmp/pid'
    assert api.post(f"/runs/{run}/exec", json={"command": command}).json()["exit_code"] == 0
    first = waited(api, run, "/tmp/h")
    held = memory_of(server, run)
    assert held is not None
    assert held > 200 << 20
    assert api.post(f"/runs/{run}/hibernate").status_code == 200
    deadline = time.monotonic() + LIMIT_S
    while memory_of(server, run) is not None:
        assert time.monotonic() < deadline, "its cgroup is still there"
        time.sleep(0.05)
    key = {"Authorization": f"Bearer {server.key}"}
    at_rest = {"error": "sandbox is hibernated"}
    for place in ("terminal", "shell", "proxy/80/ws"):
        url = f"{server.url.replace('http', 'ws')}/isorun/v1/runs/{run}/{place}"
        with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=key):
            pass
        assert refused.value.response.status_code == 409, place
        assert json.loads(refused.value.response.body or b"") == at_rest
    assert api.post(f"/runs/{run}/resume").status_code == 200
    api.post(f"/runs/{run}/exec", json={"command": "kill -USR1 $(cat /tmp/pid)"})
    assert waited(api, run, "/tmp/h2") == first
    assert (memory_of(server, run) or 0) > 0
    assert api.delete(f"/runs/{run}").status_code == 200


def waited(api: httpx2.Client, run: str, path: str) -> str:
    deadline = time.monotonic() + LIMIT_S
    while True:
        found = api.get(f"/runs/{run}/files/download", params={"path": path})
        if found.status_code == 200 and found.text.strip():
            return found.text.strip()
        assert time.monotonic() < deadline, found.text
        time.sleep(0.1)


def is_good(secret: str, text: str) -> bool:
    """The check of section 9 of docs/protocols/isorun.md, from its words alone."""
    last = ""
    for seq, line in enumerate(text.splitlines()):
        entry = json.loads(line)
        data = json.dumps(entry["data"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        message = f"{last}{entry['seq']}{entry['event']}{data}"
        last = "sha256:" + hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()
        if entry["seq"] != seq or entry["hmac"] != last:
            return False
    return True


@pytest.mark.usefixtures("results")
def test_the_audit_chains_of_those_runs_hold_offline_and_altered_ones_do_not(
    server: RunningServer, api: httpx2.Client
) -> None:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(server.socket)), base_url="http://localhost") as operator:
        secret = operator.get("/api/v1/audit/key").json()["key"]
    runs = [one["id"] for one in api.get("/runs/history").json()["sandboxes"]]
    trails = [api.get(f"/runs/{run}/audit").text for run in runs]
    assert len(trails) > 20
    seen = {json.loads(line)["event"] for trail in trails for line in trail.splitlines()}
    lives = {"sandbox.created", "sandbox.forked", "sandbox.snapshotted", "sandbox.restored", "sandbox.hibernated"}
    assert lives | {"sandbox.resumed", "sandbox.destroyed", "exec.start", "exec.exit", "file.uploaded"} <= seen
    for trail in trails:
        assert is_good(secret, trail), trail
        assert not is_good(secret + "x", trail)
        lines = trail.splitlines()
        assert not is_good(secret, "\n".join(lines[:-2] + lines[-1:])), "a line was removed"
        assert not is_good(secret, re.sub(r'"exit_code":0|"uptime_ms":\d', '"uptime_ms":9999', trail)), "altered"
