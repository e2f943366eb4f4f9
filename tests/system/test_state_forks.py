"""Forks are other sandboxes: other random numbers, names, addresses; no connection, key or packet of the source."""

from __future__ import annotations

import shutil
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from network_lab_support import policy
from state_support import Caller, until
from tests_support import RunningServer
from world_support import ECHO_PORT, EVIL, GOOD, OTHER, World

pytestmark = pytest.mark.real

KEY = "sk-live-7f3a9c-never-inside"
BROKER = "http://169.254.1.1:3130/proxy/api/v1/x"
REFUSED = {"000", "403", "404"}
"""000: there is not even a way to the broker."""
CHILDREN = 8

LIVE = """
import http.server, json, os, random, socket, ssl, subprocess, sys, threading, time, uuid
import cove_fork
ssl.RAND_bytes(16), random.random(), uuid.uuid4(), os.urandom(8)  # every generator has been used before
own = random.Random(5)
cove_fork.on_fork(lambda: own.seed())
told = []
cove_fork.on_fork(lambda: told.append(time.time()))
outside = socket.create_connection((sys.argv[1], 9999)) if sys.argv[1] else None
listening = socket.create_server(("127.0.0.1", 7001))
near = socket.create_connection(("127.0.0.1", 7001))
far = listening.accept()[0]

def word(sock):
    try:
        sock.settimeout(2)
        sock.sendall(b"hello")
        return sock.recv(5).decode() or "closed"
    except OSError as error:
        return type(error).__name__

def loop():
    try:
        near.sendall(b"x")
        far.settimeout(2)
        return far.recv(1).decode() or "closed"
    except OSError as error:
        return type(error).__name__

def text(path):
    with open(path) as file:
        return file.read().strip()

def answer():
    return {
        "urandom": os.urandom(16).hex(), "random": random.random(), "own": own.random(), "uuid": str(uuid.uuid4()),
        "ssl": ssl.RAND_bytes(16).hex(), "told": len(told),
        "openssl": subprocess.run(["python3", "-c", "import ssl; print(ssl.RAND_bytes(16).hex())"],
                                  stdout=subprocess.PIPE, text=True).stdout.strip(),
        "hostname": socket.gethostname(), "etc": text("/etc/hostname"), "machine": text("/etc/machine-id"),
        "boot": text("/proc/sys/kernel/random/boot_id"), "now": time.time(),
        "outside": word(outside) if outside else None, "loop": loop(),
        "address": sorted(line.split()[3] for line in subprocess.run(
            ["ip", "-o", "-4", "addr"], stdout=subprocess.PIPE, text=True).stdout.splitlines()),
        "env": dict(os.environ).get("API_KEY"),
    }

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(answer()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

print("ready", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""

HAMMER = """
import socket, sys, threading
def tcp():
    while True:
        try:
            with socket.socket() as s:
                s.settimeout(0.5)
                s.connect((sys.argv[1], 80))
        except OSError:
            pass
def udp():
    while True:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.sendto(b"out", (sys.argv[1], 9999))
        except OSError:
            pass
threading.Thread(target=tcp, daemon=True).start()
print("ready", flush=True)
udp()
"""
"""Tries to get a packet out at every moment."""


@pytest.fixture(scope="module")
def keeper(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server in the world, with a service that keys are for."""
    made = world.server(tmp_path_factory.mktemp("server"), COVE_EXTRA_CA=str(world.ca_file), COVE_POOL_SIZE="1")
    made.start()
    with made.client() as client:
        service = {"upstream": "https://api.good.example", "env": {"API_KEY": "{placeholder}"}}
        client.put("/credential-services/api", json=service).raise_for_status()
    yield made
    made.down()
    shutil.rmtree(made.data_dir, ignore_errors=True)


@pytest.fixture
def caller(keeper: RunningServer, world: World) -> Iterator[Caller]:
    world.forget()
    with Caller(keeper) as made:
        yield made
        for box in made.ask("GET", "/sandboxes")["sandboxes"]:
            made.end(box["id"])
        for snapshot in made.ask("GET", "/snapshots")["snapshots"]:
            made.drop(snapshot["id"])


def live(caller: Caller, **wishes: object) -> str:
    """A sandbox in which the program lives that tells its random numbers, names and connections."""
    network = {"mode": "none"} if wishes else policy(GOOD, OTHER)
    box = caller.create(idle_timeout_s=None, network=network, **wishes)
    command = caller.start(box, LIVE, "" if wishes else GOOD)
    until(lambda: "ready" in caller.output(box, command), caller.output(box, command))
    return box


def broker_status(caller: Caller, box: str) -> object:
    return caller.run(box, ["curl", "-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", BROKER])["stdout"]


@pytest.mark.timeout(300)
def test_eight_children_have_eight_of_everything(caller: Caller) -> None:
    # Case 69.
    box = live(caller)
    caller.put(box, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    before = caller.fetch(box)
    children = caller.fork(box, CHILDREN)
    began = time.time()
    told: list[dict[str, Any]] = [caller.fetch(child) for child in children]
    ended = time.time()
    after = caller.fetch(box)
    for what in ("urandom", "random", "own", "uuid", "ssl", "openssl", "hostname", "machine"):
        seen = [one[what] for one in (before, after, *told)] if what not in {"hostname", "machine"} else []
        seen = seen or [one[what] for one in (after, *told)]
        assert len(set(seen)) == len(seen), (what, seen)
    for one in told:
        assert one["told"] == 1, "a program that wants to be told was told once"
        assert one["hostname"] == one["etc"]
        assert began - 1 < one["now"] < ended + 1
    addresses = [tuple(one["address"]) for one in (after, *told)]
    assert len(set(addresses)) == len(addresses), addresses
    assert (after["hostname"], after["machine"], after["told"]) == (before["hostname"], before["machine"], 0)
    # What the source was connected to, it still is; no child is.
    assert (after["outside"], after["loop"]) == ("hello", "x")
    assert {one["outside"] for one in told} <= {"closed", "ConnectionResetError", "BrokenPipeError"}
    assert "hello" not in {one["outside"] for one in told}
    said = {
        caller.said(child, "openssl rand -hex 16 2>/dev/null || head -c 16 /dev/urandom | xxd -p") for child in children
    }
    assert len(said) == CHILDREN


@pytest.mark.timeout(120)
def test_no_key_is_inherited_unless_it_is_asked_for(caller: Caller, world: World) -> None:
    # Case 68.
    box = live(caller, credentials={"api": KEY})
    assert broker_status(caller, box) == "200"
    world.forget()
    (child,) = caller.fork(box)
    placeholder = caller.fetch(child)["env"]
    assert placeholder == caller.fetch(box)["env"], "a program that runs keeps its environment"
    assert KEY not in placeholder
    assert broker_status(caller, child) in REFUSED
    assert not world.seen_at("11.0.0.11")
    assert caller.ask("GET", f"/sandboxes/{child}/credentials")["credentials"] == []
    (heir,) = caller.fork(box, inherit_credentials=True)
    assert broker_status(caller, heir) == "200"
    snapshot = caller.snapshot(box)["id"]
    assert broker_status(caller, caller.restore(snapshot)) in REFUSED
    assert broker_status(caller, caller.restore(snapshot, credentials={"api": KEY})) == "200"


@pytest.mark.timeout(120)
def test_a_policy_holds_from_the_first_instruction_on(caller: Caller, world: World) -> None:
    box = caller.create(idle_timeout_s=None, network=policy(GOOD, EVIL))
    command = caller.start(box, HAMMER, EVIL)
    until(lambda: world.seen_at(EVIL, 80) and world.seen_at(EVIL, ECHO_PORT), "it does not get out at first")
    snapshot = caller.snapshot(box)["id"]
    caller.ask("PUT", f"/sandboxes/{box}/network", policy(GOOD))
    time.sleep(0.2)
    world.forget()
    with world.sniffing() as packets:
        quiet = caller.fork(box, 2)
        quiet += [caller.restore(snapshot, network={"mode": "none"}), caller.restore(snapshot, network=policy(GOOD))]
        for child in quiet:
            busy = [int(caller.get(child)["usage"]["cpu_ms"])]
            until(lambda c=child, b=busy: caller.get(c)["usage"]["cpu_ms"] > b[0] + 50, "the program does not run")
        assert [packet for packet in packets if struct.unpack_from("!4B", packet, 16) == (11, 0, 0, 66)] == []
    assert not world.seen_at(EVIL)
    caller.end(box)
    loud = caller.restore(snapshot)
    until(lambda: world.seen_at(EVIL, 80) and world.seen_at(EVIL, ECHO_PORT), "its policy is not the source's")
    assert caller.output(loud, command) == "ready\n"


@pytest.mark.timeout(120)
def test_children_are_on_record_billed_and_counted(caller: Caller) -> None:
    box = caller.create(idle_timeout_s=None, memory_mib=128, metadata={"team": "red"})
    caller.ask("PUT", "/projects/default/quota", {"sandboxes": 4})
    try:
        refused = caller.refused("POST", f"/sandboxes/{box}/fork", {"count": 4})
        assert (refused["status"], refused["code"]) == (429, "quota-exceeded")
        assert [one["id"] for one in caller.ask("GET", "/sandboxes")["sandboxes"]] == [box], "all or none"
        children = caller.fork(box, 3)
        assert caller.ask("GET", "/projects/default/quota")["used"]["sandboxes"] == 4
        assert caller.refused("POST", f"/sandboxes/{box}/fork", {"count": 1})["code"] == "quota-exceeded"
    finally:
        caller.ask("PUT", "/projects/default/quota", {})
    for child in children:
        view = caller.get(child)
        assert view["came_from"]["sandbox"] == box
        assert (view["came_from"]["memory"], view["metadata"]) == (True, {"team": "red"})
        lines = caller.ask("GET", f"/sandboxes/{child}/audit")["lines"]
        (forked,) = [line for line in lines if line["event"] == "sandbox.forked"]
        assert box.removeprefix("sb_") in str(forked["data"]), forked
        until(lambda c=child: caller.ask("GET", f"/sandboxes/{c}/usage")["running_s"] > 0, "it is not billed")
    caller.end(*children)
    assert caller.ask("GET", f"/sandboxes/{children[0]}/usage")["ended_at"]
