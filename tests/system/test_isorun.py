"""The isorun API on real machines: the network's verdicts, keys that stay outside, memory given back, registries."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry_support import Layer, Registry, member, running_registry, tar_of
from tests_support import RunningServer
from world_support import World

pytestmark = pytest.mark.real

KEY = "sk-live-isorun-never-inside"
UPSTREAM = "api.good.example"
SLEEP = "987654"
"""Seconds that nobody else sleeps: so its processes are told on this machine."""

HOLD = f"""
x=$(head -c 100000000 /dev/zero | tr '\\0' x)
echo ${{#x}} > /tmp/held
sleep {SLEEP}
echo $x
"""


def client_of(server: RunningServer) -> httpx2.Client:
    headers = {"authorization": f"Bearer {server.key}"}
    return httpx2.Client(base_url=f"{server.url}/isorun", headers=headers, timeout=120)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def runs(world: World, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    parent = tmp_path_factory.mktemp("server")
    running = world.server(parent, COVE_EXTRA_CA=str(world.ca_file), COVE_INSECURE_REGISTRIES=registry.host)
    running.start()
    with running.client() as native:
        env = {"API_KEY": "{placeholder}", "API_URL": "{url}"}
        put = {"upstream": f"https://{UPSTREAM}", "env": env}
        native.put("/credential-services/api", json=put).raise_for_status()
    with client_of(running) as client:
        yield client
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture
def make(runs: httpx2.Client) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def one(**body: object) -> str:
        answer = runs.post("/v1/runs", json={"image": "base", "mem_mib": 256, **body})
        assert answer.status_code == 200, answer.text
        made.append(answer.json()["id"])
        return made[-1]

    yield one
    for run in made:
        runs.delete(f"/v1/runs/{run}")


def sh(runs: httpx2.Client, run: str, command: str) -> dict[str, Any]:
    answer = runs.post(f"/v1/runs/{run}/exec", json={"command": command, "timeout": 60})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def reaches(runs: httpx2.Client, run: str, host: str) -> bool:
    """As the published examples look: at curl's exit code."""
    return sh(runs, run, f"curl -s -m 5 -o /dev/null http://{host}/")["exit_code"] == 0


def trail(runs: httpx2.Client, run: str) -> list[dict[str, Any]]:
    lines = runs.get(f"/v1/runs/{run}/audit").text.splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def told(runs: httpx2.Client, run: str, event: str) -> list[dict[str, Any]]:
    """The data of such lines, once there is one: what programs inside cause is written a little later."""
    deadline = time.monotonic() + 60
    while not (found := [line["data"] for line in trail(runs, run) if line["event"] == event]):
        assert time.monotonic() < deadline, f"no {event}"
        time.sleep(0.1)
    return found


GOOD, DEEP, EVIL, SUB = "good.example", "api.good.example", "evil.example", "sub.evil.example"


@pytest.mark.parametrize(
    ("body", "reached", "refused"),
    [
        ({}, (GOOD, EVIL), ()),
        ({"network": {"allow": [GOOD], "deny": ["0.0.0.0/0"]}}, (GOOD,), (EVIL, DEEP)),
        ({"network": {"deny": [EVIL]}}, (GOOD, SUB), (EVIL,)),
        ({"network": {"allow": ["*.good.example"], "deny": ["deep.api.good.example"]}}, (DEEP,), (GOOD, EVIL)),
        ({"network_profile": "locked-down"}, (), (GOOD, EVIL)),
    ],
    ids=["nothing", "allow-list", "deny-list", "wildcard", "profile"],
)
def test_the_network_is_as_the_lists_say(
    runs: httpx2.Client,
    make: Callable[..., str],
    body: dict[str, Any],
    reached: tuple[str, ...],
    refused: tuple[str, ...],
) -> None:
    run = make(**body)
    for host in reached:
        assert reaches(runs, run, host), host
    for host in refused:
        begun = time.monotonic()
        assert not reaches(runs, run, host), host
        assert time.monotonic() - begun < 30, "it is refused, not left to a time-out"
    inside = sh(runs, run, "nohup setsid python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1 &")
    assert inside["exit_code"] == 0
    command = "for i in $(seq 100); do curl -s -o /dev/null http://127.0.0.1:8000/ && exit 0; sleep 0.1; done; exit 1"
    assert sh(runs, run, command)["exit_code"] == 0, "loopback is never filtered"
    if refused:
        blocked = told(runs, run, "network.blocked")
        assert refused[0] in {one["host"] for one in blocked}
        assert all(set(one) == {"host", "ip", "port", "rule"} for one in blocked)


def test_a_credential_is_added_outside_and_rules_hold(
    runs: httpx2.Client, make: Callable[..., str], world: World
) -> None:
    world.forget()
    rules = [{"methods": ["GET"], "paths": ["/v1/*"]}]
    run = make(credentials_v2={"api": {"key": KEY, "endpoints": rules}}, network={"allow": [UPSTREAM]})
    assert sh(runs, run, "echo $API_KEY")["stdout"] == "isorun-proxy-managed\n"
    ask = 'curl -s -m 20 -o /dev/null -w "%{http_code}" -H "Authorization: Bearer $API_KEY"'
    assert sh(runs, run, f"{ask} $API_URL/v1/x")["stdout"] == "200"
    assert sh(runs, run, f"{ask} $API_URL/v2/x")["stdout"] == "403"
    assert sh(runs, run, f"{ask} -X POST $API_URL/v1/x")["stdout"] == "403"
    everywhere = f"grep -rsl '{KEY[:12]}' /proc/[0-9]*/environ /etc /run /tmp /root; env | grep -c '{KEY[:12]}'"
    assert sh(runs, run, everywhere)["stdout"] == "0\n"
    uses = told(runs, run, "credential.proxied")
    assert {"service": "api", "method": "GET", "path": "/v1/x", "status": 200} in uses
    assert KEY not in runs.get(f"/v1/runs/{run}/audit").text


def holders() -> list[Path]:
    """The processes of this machine that sleep so long."""
    found: list[Path] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", SLEEP.encode()]:
            found.append(process)
    return found


def held_bytes(process: Path) -> int:
    """What the shell that waits for this process holds of the machine's memory."""
    parent = next(line for line in (process / "status").read_text().splitlines() if line.startswith("PPid:")).split()[1]
    status = Path("/proc", parent, "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def test_a_hibernated_run_takes_no_memory_and_has_it_again(runs: httpx2.Client, make: Callable[..., str]) -> None:
    run = make(mem_mib=512)
    path = {"path": "/tmp/hold.sh"}
    assert runs.post(f"/v1/runs/{run}/files/upload", params=path, content=HOLD.encode()).status_code == 200
    sh(runs, run, "nohup setsid sh /tmp/hold.sh >/dev/null 2>&1 &")
    assert sh(runs, run, "while [ ! -s /tmp/held ]; do sleep 0.1; done; cat /tmp/held")["stdout"] == "100000000\n"
    (holder,) = holders()
    assert held_bytes(holder) > 90_000_000
    assert runs.post(f"/v1/runs/{run}/hibernate").json()["status"] == "hibernated"
    deadline = time.monotonic() + 60
    while holders():  # its box is cleared away behind the answer
        assert time.monotonic() < deadline, "its processes are still there, and their memory"
        time.sleep(0.05)
    assert runs.post(f"/v1/runs/{run}/resume").json()["status"] == "running"
    (again,) = holders()
    assert held_bytes(again) > 90_000_000
    assert sh(runs, run, "cat /tmp/held")["stdout"] == "100000000\n"


def status(runs: httpx2.Client, name: str) -> dict[str, Any]:
    found = {one["name"]: one for one in runs.get("/v1/images").json()["images"]}
    return found.get(name, {"status": "none"})


def test_an_image_is_built_from_a_registry(runs: httpx2.Client, make: Callable[..., str], registry: Registry) -> None:
    name = f"{registry.host}/team/app:1"
    registry.push("team/app", Layer(tar_of(member("etc/"), member("etc/text", "hello"))), tag="1")
    answer = runs.post("/v1/images/build", json={"image": name})
    assert (answer.status_code, answer.json()) == (202, {"image": name, "status": "building"})
    deadline = time.monotonic() + 60
    while (found := status(runs, name))["status"] != "ready":
        assert found["status"] == "building"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found["size_bytes"] > 0
    again = runs.post("/v1/images/build", json={"image": name})
    assert (again.status_code, again.json()) == (200, {"image": name, "status": "ready"})
    assert (status(runs, "base")["status"], status(runs, "python")["status"]) == ("ready", "ready")
    make(image="base")


def test_an_image_that_cannot_be_built_says_why(runs: httpx2.Client, registry: Registry) -> None:
    name = f"{registry.host}/none/such:1"
    assert runs.post("/v1/images/build", json={"image": name}).status_code == 202
    deadline = time.monotonic() + 60
    while (found := status(runs, name))["status"] != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found["error"]
    made = runs.post("/v1/runs", json={"image": name})
    assert (made.status_code, set(made.json())) == (400, {"error"})
    for body in ({}, {"image": ""}, {"image": 3}, {"image": "UPPER CASE"}):
        answer = runs.post("/v1/images/build", json=body)
        assert (answer.status_code, set(answer.json())) == (400, {"error"})
        assert "image" in answer.json()["error"]
