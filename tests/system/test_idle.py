"""What keeps a sandbox awake, and what does not. Each holder is a program of its own that is killed while it holds.

So every case shows three things: the sandbox stays awake while somebody works in it, whoever vanishes leaves no lease
behind, and the paused sandbox goes on at its next use.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests_support import RunningServer

pytestmark = pytest.mark.real

IDLE_S = 1.0
HELD_S = 2.5

Holder = Callable[[str, dict[str, str]], list[str]]
"""From the path of the sandbox and the ids of what is in it to curl's arguments."""


def get(path: str) -> Holder:
    return lambda box, ids: [f"{box}/{path.format(**ids)}"]


def post(path: str, body: object) -> Holder:
    sent = json.dumps(body)
    return lambda box, ids: ["-H", "Content-Type: application/json", "-d", sent, f"{box}/{path.format(**ids)}"]


HOLDERS: dict[str, Holder] = {
    "a command that is waited for": post("exec", {"command": "sleep 60"}),
    "a command that is streamed": post("exec/stream", {"command": "sleep 60"}),
    "output that is followed": get("commands/{command}/output?follow=true"),
    "output that is waited for": get("commands/{command}/output?wait_s=60"),
    "the end of a command that is waited for": post("commands/{command}/wait", {}),
    "input that is written": lambda box, ids: ["-T", "-", "-X", "POST", f"{box}/commands/{ids['command']}/stdin"],
    "a watch that is followed": get("watches/{watch}/events?follow=true"),
    "an event that is waited for": get("watches/{watch}/events?wait_s=60"),
    "a file that is downloaded": lambda box, _: ["--limit-rate", "10k", f"{box}/files/content?path=/root/large"],
    "a file that is uploaded": lambda box, _: ["-T", "-", "-X", "PUT", f"{box}/files/content?path=/root/up"],
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
        body = {"command": ["sleep", "600"], "stdin_open": True}
        self.ids = {"command": self._made("commands", body), "watch": self._made("watches", {"path": "/opt"})}
        self.run("head -c 20000000 /dev/zero > /root/large")

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
        argv = ["curl", "-sN", "-o", "/dev/null", "-H", f"Authorization: Bearer {self._server.key}"]
        argv += holder(f"{self._server.url}/api/v1{self.path}", self.ids)
        return subprocess.Popen(argv, stdin=subprocess.PIPE)

    def wait_paused(self, limit_s: float = 15.0) -> None:
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


def kept_awake(box: Box, what: str, holder: Holder) -> None:
    with box.hold(holder) as running:
        try:
            for _ in range(5):
                time.sleep(HELD_S / 5)
                seen = box.view()
                assert running.poll() is None, f"{what}: it ended"
                assert seen["state"] == "running", what
            active = seen["last_active_at"]
        finally:
            running.kill()
    box.wait_paused()
    assert box.view()["last_active_at"] >= active, what
    assert box.run("echo back") == "back\n", what


def test_each_kind_of_work_keeps_a_sandbox_awake_until_its_client_vanishes(made: Callable[..., Box]) -> None:
    with ThreadPoolExecutor(len(HOLDERS)) as threads:
        cases = [(threads.submit(kept_awake, made(), what, holder)) for what, holder in HOLDERS.items()]
        for case in cases:
            case.result()


def test_what_nobody_follows_lets_it_sleep_and_goes_on_when_it_wakes(made: Callable[..., Box]) -> None:
    box = made()
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


def test_several_holders_must_all_leave(made: Callable[..., Box]) -> None:
    box = made()
    follow = HOLDERS["output that is followed"]
    with box.hold(follow) as one, box.hold(HOLDERS["a watch that is followed"]) as two, box.hold(follow) as three:
        for running in (one, two, three):
            time.sleep(IDLE_S + 0.5)
            assert box.view()["state"] == "running"
            running.kill()
    box.wait_paused()
