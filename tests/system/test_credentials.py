"""Keys that never enter a sandbox, with real sandboxes, a real broker and an upstream of the world's own."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cove.store.database import connect
from tests_support import DRIVER, SOAK, RunningServer
from world_support import API, GOOD, World

pytestmark = pytest.mark.real

KEY = "sk-live-7f3a9c-never-inside"
OTHER_KEY = "sk-live-second-one"
UPSTREAM = "api.good.example"
BROKER = "http://169.254.1.1:3130/proxy/api"
DRIVERS = (DRIVER,) if DRIVER else ("runc", "crun", "gvisor")


@pytest.fixture(scope="module")
def keeper(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that trusts the world's CA and has services there."""
    running = world.server(tmp_path_factory.mktemp("server"), COVE_EXTRA_CA=str(world.ca_file))
    running.start()
    with running.client() as client:
        env = {"API_KEY": "{placeholder}", "API_URL": "{url}"}
        for name, upstream in (
            ("api", f"https://{UPSTREAM}"),
            ("private", "https://private.example"),
            ("metadata", "https://metadata.example"),
            ("host", "https://host.example:7777"),
            ("plain", "https://good.example:9999"),
            ("other", "https://other.example:8443"),
        ):
            client.put(f"/credential-services/{name}", json={"upstream": upstream, "env": env}).raise_for_status()
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture
def client(keeper: RunningServer, world: World) -> Iterator[httpx2.Client]:
    world.forget()
    with keeper.client() as client:
        yield client


class Box:
    """A sandbox, asked over the API."""

    def __init__(self, client: httpx2.Client, **body: Any) -> None:
        self.client = client
        made = client.post("/sandboxes", json=body)
        assert made.status_code == 201, made.text
        self.view: dict[str, Any] = made.json()
        self.path = f"/sandboxes/{self.view['id']}"

    def sh(self, command: str, **more: Any) -> str:
        done = self.client.post(f"{self.path}/exec", json={"command": command, "timeout_s": 60, **more})
        assert done.status_code == 200, done.text
        return str(done.json()["stdout"] + done.json()["stderr"])

    def py(self, program: str, *words: str) -> str:
        return self.sh_argv("python3", "-c", program, *words)

    def sh_argv(self, *argv: str) -> str:
        done = self.client.post(f"{self.path}/exec", json={"command": list(argv), "timeout_s": 60})
        assert done.status_code == 200, done.text
        return str(done.json()["stdout"] + done.json()["stderr"])

    def status(self, path: str = "/v1/x", *words: str) -> int:
        """The status of a request through the broker; 0: no connection."""
        shown = self.sh_argv(
            "curl", "-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", *words, "--path-as-is", BROKER + path
        )
        return int(shown)

    def set(self, service: str = "api", **body: Any) -> httpx2.Response:
        return self.client.put(f"{self.path}/credentials/{service}", json=body)


@contextlib.contextmanager
def boxed(client: httpx2.Client, **body: Any) -> Iterator[Box]:
    box = Box(client, **body)
    try:
        yield box
    finally:
        client.delete(box.path)


@pytest.fixture
def box(client: httpx2.Client) -> Iterator[Box]:
    """A sandbox without network, with a credential."""
    with boxed(client, credentials={"api": KEY}) as made:
        yield made


def sent_keys(world: World) -> list[str]:
    """What the upstream got as Authorization, every header of every request."""
    heads = [head for seen in world.seen_at(API, 443) for head in seen.heads]
    lines = [line for head in heads for line in head.split("\r\n")]
    return [line.partition(":")[2].strip() for line in lines if line.lower().startswith("authorization:")]


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_upstream_gets_the_key_and_the_sandbox_a_placeholder(
    client: httpx2.Client, world: World, driver: str
) -> None:
    with boxed(client, credentials={"api": KEY}, driver=driver) as box:
        shown = box.sh('echo $API_KEY $API_URL; curl -sS -m 10 -o /dev/null -w "%{http_code}" $API_URL/v1/x')
        assert shown.split() == ["cove-proxy-managed", BROKER, "200"]
        evil = ["-H", "Authorization: Bearer evil", "-H", "AUTHORIZATION: Bearer evil", "-H", "x_api_key: evil"]
        assert box.status("/v1/x", *evil) == 200
    assert sent_keys(world) == [f"Bearer {KEY}"] * 2
    assert not [head for seen in world.seen_at(API) for head in seen.heads if "evil" in head]
    assert {seen.sni for seen in world.seen_at(API, 443)} == {UPSTREAM}
    assert world.seen_at(API, 80) == [], "nothing ever goes out in clear text"


def test_without_network_the_broker_is_all_that_is_reached(box: Box, world: World) -> None:
    program = """
import socket
for address in (("11.0.0.10", 80), ("11.0.0.11", 443), ("169.254.1.1", 22), ("169.254.1.1", 3129),
                ("169.254.169.254", 80), ("11.255.0.1", 7777), ("10.213.0.1", 8080)):
    try: socket.create_connection(address, 3).close(); print("reached", address)
    except OSError: pass
for port, first in ((3128, b"CONNECT api.good.example:443 HTTP/1.1\\r\\nHost: api.good.example:443\\r\\n\\r\\n"),):
    try:
        s = socket.create_connection(("169.254.1.1", port), 3); s.sendall(first)
        print("" if b" 403 " in s.recv(100) else "opened", end="")
    except OSError: pass
try: print(socket.gethostbyname("api.good.example"))
except OSError: pass
"""
    asked = set(world.dns.asked_names())
    assert box.py(program) == ""
    assert world.seen == []
    assert set(world.dns.asked_names()) == asked, "no name leaves it either"
    assert box.status() == 200


def test_a_sandbox_without_the_credential_gets_nothing(client: httpx2.Client, world: World) -> None:
    with boxed(client, credentials={"other": OTHER_KEY}) as stranger, boxed(client, credentials={"api": KEY}):
        assert stranger.status() == 404
        assert stranger.status("/v1/x", "-H", "X-Forwarded-For: 10.213.0.1", "-H", "Host: 127.0.0.1") == 404
        assert "other" in stranger.sh(f"curl -s {BROKER}/v1/x")
        assert stranger.sh("curl -s -o /dev/null -w '%{http_code}' http://169.254.1.1:3130/api/v1/sandboxes") == "404"
    assert world.seen_at(API) == []


@pytest.mark.parametrize(
    ("service", "status"), [("private", 403), ("metadata", 403), ("host", 403), ("plain", 502), ("other", 200)]
)
def test_where_the_broker_dials(client: httpx2.Client, world: World, service: str, status: int) -> None:
    """Case 58: a closed address, a port without TLS, the service's own port."""
    with boxed(client, credentials={service: KEY}) as box:
        url = f"http://169.254.1.1:3130/proxy/{service}/v1"
        assert box.sh(f"curl -s -m 15 -o /dev/null -w '%{{http_code}}' {url}") == str(status)
        assert KEY not in box.sh(f"curl -s -m 15 {url}") or service == "other", "that one answers with all it got"
    for address in ("10.0.0.5", "169.254.169.254", "11.255.0.1"):
        assert world.seen_at(address) == []
    assert not [seen for seen in world.seen_at(GOOD) if KEY.encode() in seen.data]


def test_rules_hold_for_every_spelling_of_a_path(box: Box, client: httpx2.Client) -> None:
    rule = {"methods": ["GET"], "paths": ["/v1/models"]}
    assert box.set(endpoints=[rule]).json()["endpoints"] == [rule]
    for path, status in (
        ("/v1/models", 200), ("/v1/models/a", 200), ("/v1/%6dodels", 200), ("/v1/chat", 403),
        ("/v1/models/../chat", 403), ("/v1/models/%2e%2e/chat", 403), ("/v1/models/..%2f../chat", 403),
        ("/v1/models/%252e%252e/chat", 403), ("//v1//chat", 403), ("/v1/models/..;/chat", 403),
    ):  # fmt: skip
        assert box.status(path) == status, path
    assert box.status("/v1/models", "-X", "DELETE") == 403
    del client


def test_the_network_policy_counts_too(client: httpx2.Client, world: World) -> None:
    allowing = {"mode": "policy", "rules": [{"action": "allow", "target": UPSTREAM}]}
    with boxed(client, credentials={"api": KEY}, network=allowing) as box:
        assert box.status() == 200
        started = client.post(f"{box.path}/commands", json={"command": f"curl -sN '{BROKER}/events?n=10000&gap=0.02'"})
        output = f"{box.path}/commands/{started.json()['id']}/output"
        _until(lambda: _text(client, output), "data: 5")
        refusing = {"mode": "policy", "rules": [{"action": "allow", "target": "good.example"}]}
        changed = client.put(f"{box.path}/network", json=refusing)
        assert changed.status_code == 200, changed.text
        assert "broker" not in changed.text, "the way to the broker is no word of the API"
        _until(lambda: "over" if client.get(output).json()["ended"] else "", "over")
        assert box.status() == 403
        refusals = client.get(f"{box.path}/network/refusals").json()["refusals"]
        assert ("broker", UPSTREAM, 443) in {(one["layer"], one["name"], one["port"]) for one in refusals}
        assert client.put(f"{box.path}/network", json={"mode": "none"}).status_code == 200
        assert box.status() == 200, "whoever gave the credential opened this one way"
    assert set(sent_keys(world)) == {f"Bearer {KEY}"}


def test_a_redirect_is_passed_on_and_not_followed(box: Box, world: World) -> None:
    shown = box.sh(f"curl -s -D - -o /dev/null '{BROKER}/redirect?to=http://169.254.169.254/latest'")
    assert "302" in shown
    assert "location: http://169.254.169.254/latest" in shown.lower()
    shown = box.sh(f"curl -s -D - -o /dev/null '{BROKER}/redirect?to=https://{UPSTREAM}/v2'")
    assert f"location: {BROKER}/v2" in shown.lower()
    assert world.seen_at("169.254.169.254") == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_credential_is_given_rotated_and_taken_away_live(client: httpx2.Client, world: World, driver: str) -> None:
    with boxed(client, driver=driver) as box:
        assert box.status() == 0, "it has no interface at all"
        given = box.set(key=KEY)
        assert given.status_code == 200, given.text
        assert given.json()["env"] == {"API_KEY": "cove-proxy-managed", "API_URL": BROKER}
        assert KEY not in given.text
        assert box.status() == 200
        assert box.set(key=OTHER_KEY).status_code == 200
        assert box.status() == 200
        assert sent_keys(world) == [f"Bearer {KEY}", f"Bearer {OTHER_KEY}"]
        assert client.delete(f"{box.path}/credentials/api").status_code == 204
        assert box.status() in {0, 404}
        assert client.get(f"{box.path}/credentials").json() == {"credentials": []}


def test_what_a_project_keeps_is_used_by_name(client: httpx2.Client, world: World) -> None:
    assert client.put("/credentials/api", json={"key": KEY}).status_code == 200
    with boxed(client, credentials={"api": {}}) as box:
        assert box.status() == 200
        client.put("/credentials/api", json={"key": OTHER_KEY}).raise_for_status()
        assert box.status() == 200
        assert sent_keys(world) == [f"Bearer {KEY}", f"Bearer {OTHER_KEY}"]
        assert client.delete("/credentials/api").status_code == 204
        assert box.status() == 404


def test_a_stream_comes_piece_by_piece_and_is_cut_with_its_credential(box: Box, client: httpx2.Client) -> None:
    program = """
import http.client, time
c = http.client.HTTPConnection("169.254.1.1", 3130, timeout=30)
c.request("GET", "/proxy/api/events?n=10000&gap=0.02")
r = c.getresponse()
begin = time.monotonic()
try:
    while line := r.readline():
        if line.strip(): print(line.decode().strip(), flush=True)
        if b"data: 5" in line: print("early" if time.monotonic() - begin < 60 else "late", flush=True)
except (http.client.HTTPException, OSError): pass
print("over", flush=True)
"""
    started = client.post(f"{box.path}/commands", json={"command": ["python3", "-c", program]}).json()
    output = f"{box.path}/commands/{started['id']}/output"
    shown = _until(lambda: _text(client, output), "early")
    assert "data: 0" in shown
    client.delete(f"{box.path}/credentials/api").raise_for_status()
    shown = _until(lambda: _text(client, output), "over")
    assert "data: 9999" not in shown


def _text(client: httpx2.Client, path: str) -> str:
    return "".join(chunk["data"] for chunk in client.get(path).json()["chunks"])


def _until(look: Any, word: str) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        shown = str(look())
        if word in shown:
            return shown
        time.sleep(0.05)
    raise AssertionError(f"no {word!r} in {shown!r}")


def test_a_websocket_passes(box: Box, world: World) -> None:
    program = """
import base64, os, socket
s = socket.create_connection(("169.254.1.1", 3130), 10)
key = base64.b64encode(os.urandom(16)).decode()
s.sendall(f"GET /proxy/api/live HTTP/1.1\\r\\nHost: b\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
          f"Sec-WebSocket-Key: {key}\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n".encode())
head = b""
while b"\\r\\n\\r\\n" not in head: head += s.recv(1)
print(head.split(b"\\r\\n")[0].decode())
mask = b"abcd"
text = b"hello"
s.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(text)))
print(s.recv(100))
"""
    shown = box.py(program)
    assert "101" in shown
    assert "hello" in shown
    assert sent_keys(world) == [f"Bearer {KEY}"]


def test_large_bodies_take_no_memory(box: Box, keeper: RunningServer) -> None:
    size = (1024 if SOAK else 64) * 1024 * 1024
    before = _rss_kib(keeper)
    shown = box.sh(f"curl -sS -o /dev/null -w '%{{size_download}}' '{BROKER}/bytes?n={size}'", timeout_s=300)
    assert shown == str(size)
    up = f"head -c {size} /dev/zero | curl -sS -X POST -T - -H 'Expect:' '{BROKER}/v1'"
    assert f'"body": {size}' in box.sh(up, timeout_s=300)
    assert _rss_kib(keeper) - before < 24 * 1024


def _rss_kib(server: RunningServer) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


SEARCH = """
import os, re, sys
word = sys.argv[1][::-1].encode()
found = []
def look(path, data):
    if word in data: found.append(path)
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline", "comm", "status"):
        try: look(f"/proc/{pid}/{name}", open(f"/proc/{pid}/{name}", "rb").read())
        except OSError: pass
    if int(pid) == os.getpid(): continue
    try:
        maps, memory = open(f"/proc/{pid}/maps"), open(f"/proc/{pid}/mem", "rb", 0)
        for line in maps:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if line.split()[1].startswith("r") and end - begin < 1 << 28 and "[v" not in line:
                try: memory.seek(begin); look(f"{pid} {line.strip()}", memory.read(end - begin))
                except (OSError, ValueError, OverflowError): pass
    except OSError: pass
for top, folders, files in os.walk("/"):
    folders[:] = [one for one in folders if os.path.join(top, one) not in ("/proc", "/sys")]
    for name in files:
        path = os.path.join(top, name)
        if os.path.isfile(path) and os.path.getsize(path) < 1 << 24:
            try: look(path, open(path, "rb").read())
            except OSError: pass
print(found, "searched", word == sys.argv[1].encode()[::-1])
"""


def test_the_key_is_nowhere_to_be_found(box: Box, client: httpx2.Client, keeper: RunningServer) -> None:
    """Case 68, from inside and from outside."""
    client.post(f"{box.path}/commands", json={"command": "sleep 300"}).raise_for_status()
    client.put("/credentials/other", json={"key": KEY}).raise_for_status()
    assert box.status("/bytes?n=10") == 200
    rules = [{"paths": ["x"]}]
    for wrong in ({"key": KEY, "x": 1}, {"key": [KEY]}, {"key": KEY, "endpoints": rules}, {"key": f"{KEY}\n"}):
        refused = box.set(**wrong)
        assert refused.status_code == 400
        assert KEY not in refused.text
    assert KEY not in client.post("/sandboxes", json={"credentials": {"nobody": KEY}}).text
    assert KEY not in client.post("/sandboxes", json={"credentials": {"api": KEY}, "image": 5}).text
    assert box.py(SEARCH, KEY[::-1]) == "[] searched True\n"
    views = ["/sandboxes", box.path, f"{box.path}/credentials", "/credentials", "/credential-services", "/server"]
    views += [path for path in ("/audit", f"{box.path}/audit") if client.get(path).status_code == 200]
    for path in views:
        assert KEY not in client.get(path).text, path
    assert keeper.process is not None
    places = [Path(f"/proc/{keeper.process.pid}/{name}") for name in ("environ", "cmdline")]
    places += [path for top in (keeper.data_dir, keeper.run_dir) for path in _files(top)]
    assert any(path.name == "cove.db" for path in places)
    for path in places:
        with contextlib.suppress(OSError):
            assert KEY.encode() not in path.read_bytes(), path
    mode = (keeper.data_dir / "secrets.key").stat().st_mode & 0o7777
    assert mode == 0o600
    client.delete("/credentials/other").raise_for_status()


def _files(top: Path) -> Iterator[Path]:
    """Files below `top` that are the server's own: no image, no layer."""
    for path in top.iterdir():
        if path.name in {"images", "runtimes", "layers", "pulled", "agents"} or path.is_symlink():
            continue
        if path.is_dir():
            if path.name not in {"m", "rootfs"}:
                yield from _files(path)
        elif path.is_file() and path.stat().st_size < 1 << 26:
            yield path


def test_every_use_is_on_the_record_and_no_key(box: Box, keeper: RunningServer) -> None:
    assert box.status("/v1/chat?q=private") == 200
    box.set(endpoints=[{"methods": ["GET"], "paths": ["/v1"]}])
    assert box.status("/v2") == 403
    time.sleep(0.3)
    core_id = box.view["id"].removeprefix("sb_")
    database = connect(keeper.data_dir / "cove.db")
    try:
        rows = database.execute("SELECT event, data FROM audit WHERE sandbox = ? ORDER BY seq", (core_id,)).fetchall()
    finally:
        database.close()
    uses = [json.loads(data) for event, data in rows if event == "credential.proxied"]
    assert [(one["service"], one["method"], one["path"], one["status"]) for one in uses] == [
        ("api", "GET", "/v1/chat", 200),
        ("api", "GET", "/v2", 403),
    ]
    assert "private" not in json.dumps(uses)
    assert "credential.changed" in {event for event, _ in rows}
    assert KEY not in str(rows)


def test_a_killed_server_loses_no_credential(world: World, tmp_path: Path) -> None:
    world.forget()
    server = world.server(tmp_path, COVE_EXTRA_CA=str(world.ca_file), COVE_POOL_SIZE="1")
    server.start()
    try:
        with server.client() as client:
            client.put("/credential-services/api", json={"upstream": f"https://{UPSTREAM}"}).raise_for_status()
            box = Box(client, credentials={"api": KEY})
            assert box.status() == 200
        server.kill()
        (server.data_dir / "secrets.key").chmod(0o644)
        server.start(wait=False)
        assert server.process is not None
        assert server.process.wait(60) != 0
        assert "secrets.key has the mode 0644" in server.log.read_text()
        (server.data_dir / "secrets.key").chmod(0o600)
        server.start()
        with server.client() as client:
            box.client = client
            assert box.status() == 200
            assert box.set(key=OTHER_KEY).status_code == 200
            assert client.post("/server/rekey").json() == {"secrets": 1}
            assert box.status() == 200
            assert sent_keys(world) == [f"Bearer {KEY}", f"Bearer {KEY}", f"Bearer {OTHER_KEY}"]
    finally:
        server.down()


def test_the_command_line(keeper: RunningServer, world: World, tmp_path: Path) -> None:
    world.forget()
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "COVE_URL": keeper.url, "COVE_API_KEY": keeper.key}
    env["THEIR_KEY"] = KEY

    def cove(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "cove.cli.main", *words]
        return subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    ran = cove("run", "--credential", "api=@THEIR_KEY", "--", "sh", "-c", "curl -s -o /dev/null $API_URL/v1; env")
    assert ran.returncode == 0, ran.stderr
    assert "API_KEY=cove-proxy-managed" in ran.stdout
    assert sent_keys(world) == [f"Bearer {KEY}"]
    assert KEY not in ran.stdout + ran.stderr
    refused = cove("run", "--credential", f"api={KEY}", "--", "true")
    assert refused.returncode == 2
    assert KEY not in refused.stdout + refused.stderr
    kept = cove("credential", "set", "api", "--allow", "GET /v1", "--key", "-", stdin=f"{KEY}\n")
    assert kept.returncode == 0, kept.stderr
    assert "GET /v1" in cove("credential", "ls").stdout
    assert cove("credential", "rm", "api").returncode == 0
