"""What keeps a sandbox awake, and what does not. Each holder is a program of its own that is killed while it holds.

So every case shows three things: the sandbox stays awake while somebody works in it, whoever vanishes leaves no lease
behind, and the paused sandbox goes on at its next use.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests_support import RunningServer

pytestmark = pytest.mark.real

IDLE_S = 1.0
HELD_S = 2.2
"""Longer than a sandbox stays awake after its last use."""

WEBSOCKET = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], additional_headers={"Authorization": "Bearer " + sys.argv[2]}) as peer:
    for _ in peer:
        pass
"""
SERVER = """
import socket
with socket.create_server(("", 8000)) as listening:
    held = []
    while True:
        held.append(listening.accept())
"""
"""Takes every connection and never says a word."""

Holder = Callable[["Box"], list[str]]
"""From the sandbox to the program that holds it."""


def curl(path: str, *options: str) -> Holder:
    return lambda box: ["curl", "-sN", "-o", "/dev/null", "-H", box.head, *options, box.url(path)]


def post(path: str, body: object) -> Holder:
    return curl(path, "-H", "Content-Type: application/json", "-d", json.dumps(body))


def websocket(path: str) -> Holder:
    return lambda box: [sys.executable, "-c", WEBSOCKET, box.url(path).replace("http", "ws", 1), box.key]


HOLDERS: dict[str, Holder] = {
    "a command that is waited for": post("exec", {"command": "sleep 60"}),
    "a command that is streamed": post("exec/stream", {"command": "sleep 60"}),
    "output that is followed": curl("commands/{command}/output?follow=true"),
    "output that is waited for": curl("commands/{command}/output?wait_s=60"),
    "the end of a command that is waited for": post("commands/{command}/wait", {}),
    "input that is written": curl("commands/{command}/stdin", "-T", "-", "-X", "POST"),
    "a watch that is followed": curl("watches/{watch}/events?follow=true"),
    "an event that is waited for": curl("watches/{watch}/events?wait_s=60"),
    "a file that is downloaded": curl("files/content?path=/root/large", "--limit-rate", "10k"),
    "a file that is uploaded": curl("files/content?path=/root/up", "-T", "-", "-X", "PUT"),
    "a terminal that is looked at": websocket("terminals/{terminal}/attach"),
    "a terminal's output that is waited for": curl("terminals/{terminal}/output?wait_s=60"),
    "a shell's command that is waited for": post("shells/{shell}/run", {"command": "sleep 60"}),
    "a shell's command that is streamed": post("shells/{shell}/run/stream", {"command": "sleep 60"}),
    "a connection to a port": websocket("ports/8000/tcp"),
    "a request to a port": curl("ports/8000/http/"),
}


class Box:
    """A sandbox that is paused after IDLE_S, with a command, a watch and a file in it."""

    def __init__(self, server: RunningServer, client: httpx2.Client, **more: object) -> None:
        self._server = server
        self._client = client
        made = client.post("/sandboxes", json={"idle_timeout_s": IDLE_S, "memory_mib": 128} | more)
        assert made.status_code == 201, made.text
        self.id: str = made.json()["id"]
        self.path = f"/sandboxes/{self.id}"
        self.key, self.head = server.key, f"Authorization: Bearer {server.key}"
        sleeper = {"command": ["sleep", "600"], "stdin_open": True}
        self.ids = {
            "command": self._made("commands", sleeper),
            "watch": self._made("watches", {"path": "/opt"}),
            "terminal": self._made("terminals", {"command": ["cat"], "cols": 80, "rows": 24}),
            "shell": self._made("shells", {}),
        }
        self._made("commands", {"command": ["python3", "-c", SERVER]})
        self.run("head -c 20000000 /dev/zero > /root/large; until grep -q :1F40 /proc/net/tcp; do sleep 0.05; done")

    def url(self, path: str) -> str:
        return f"{self._server.url}/api/v1{self.path}/{path.format(**self.ids)}"

    def _made(self, noun: str, body: object) -> str:
        made = self._client.post(f"{self.path}/{noun}", json=body)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def run(self, script: str) -> str:
        done = self._client.post(f"{self.path}/exec", json={"command": script}).json()
        assert done["exit_code"] == 0, done
        return str(done["stdout"])

    def view(self) -> dict[str, str]:
        found: dict[str, str] = self._client.get(self.path).json()
        return found

    def hold(self, holder: Holder) -> subprocess.Popen[bytes]:
        return subprocess.Popen(holder(self), stdin=subprocess.PIPE)

    def wait_paused(self, limit_s: float = 60.0) -> None:
        deadline = time.monotonic() + limit_s
        while (seen := self.view())["state"] != "paused":
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)


@pytest.fixture
def made(server: RunningServer, client: httpx2.Client) -> Iterator[Callable[..., Box]]:
    boxes: list[Box] = []

    def make(**more: object) -> Box:
        boxes.append(Box(server, client, **more))
        return boxes[-1]

    yield make
    for box in boxes:
        client.delete(box.path)


def kept_awake(made: Callable[..., Box], what: str, holder: Holder) -> None:
    box = made()
    with box.hold(holder) as running:
        try:
            # The holder may take a moment to get going; then it is awake for longer than anything else could be.
            deadline, since = time.monotonic() + 60, time.monotonic()
            while time.monotonic() - since < HELD_S:
                time.sleep(0.1)
                seen = box.view()
                assert running.poll() is None, f"{what}: it ended"
                if seen["state"] != "running":
                    since = time.monotonic()
                    assert since < deadline, f"{what}: {seen}"
            active = seen["last_active_at"]
        finally:
            running.kill()
    box.wait_paused()
    assert box.view()["last_active_at"] >= active, what
    assert box.run("echo back") == "back\n", what


def test_each_kind_of_work_keeps_a_sandbox_awake_until_its_client_vanishes(made: Callable[..., Box]) -> None:
    with ThreadPoolExecutor(len(HOLDERS)) as threads:
        cases = [threads.submit(kept_awake, made, what, holder) for what, holder in HOLDERS.items()]
        for case in cases:
            case.result()


def test_what_nobody_follows_lets_it_sleep_and_goes_on_when_it_wakes(
    client: httpx2.Client, made: Callable[..., Box]
) -> None:
    box = made()
    shell = f"{box.path}/shells/{box.ids['shell']}"
    box.run("true")
    client.post(f"{shell}/run", json={"command": "cd /opt; kept=yes"})
    count = box._made("commands", {"command": "while :; do date +%s.%N >> /root/ticks; sleep 0.05; done"})
    box.wait_paused()
    asleep = time.monotonic()
    time.sleep(0.5)
    first = box.view()
    assert first["state"] == "paused"
    time.sleep(0.3)
    assert box.view()["last_active_at"] == first["last_active_at"], "looking at a sandbox is no activity"
    ticks = [float(line) for line in box.run("sleep 0.2; cat /root/ticks").splitlines()]
    slept = max(later - earlier for earlier, later in itertools.pairwise(ticks))
    assert 0.7 < slept <= time.monotonic() - asleep + 1, "it stood still while it was paused, and goes on"
    assert count
    # So do the terminal and the shell that were open and idle all the time.
    done = client.post(f"{shell}/run", json={"command": "echo $kept $PWD"}).json()
    assert done["stdout"] == "yes /opt\n"
    terminal = f"{box.path}/terminals/{box.ids['terminal']}"
    client.post(f"{terminal}/input", content=b"hi\n")
    assert "hi" in client.get(f"{terminal}/output", params={"wait_s": 5}).json()["chunks"][0]["data"]


def test_several_holders_must_all_leave(made: Callable[..., Box]) -> None:
    box = made()
    follow = HOLDERS["output that is followed"]
    with box.hold(follow) as one, box.hold(HOLDERS["a watch that is followed"]) as two:
        for running in (one, two):
            time.sleep(IDLE_S + 0.3)
            assert box.view()["state"] == "running"
            running.kill()
    box.wait_paused()
