"""`kill -9` of the server during load, again and again: nothing leaked, no sandbox and no command lost."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from pathlib import Path
from typing import Self

import httpx2
import pytest

from tests_support import SOAK, Footprint, NewServer, RunningServer

pytestmark = pytest.mark.real
ROUNDS = 20 if SOAK else 4


class Load:
    """Clients that create, exec, upload and destroy until told to stop; each notes what the server promised it."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.kept: set[str] = set()
        self.deleted: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(4)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _work(self, number: int) -> None:
        chance = random.Random(number)  # noqa: S311 (repeatable load)
        with self.server.client(timeout=60) as client:
            while not self._stop.is_set():
                with contextlib.suppress(httpx2.HTTPError):
                    self._one(client, chance)

    def _one(self, client: httpx2.Client, chance: random.Random) -> None:
        made = client.post("/sandboxes", json={})
        if made.status_code != 201:
            return
        box = made.json()["id"]
        self.kept.add(box)
        client.post(f"/sandboxes/{box}/exec", json={"command": "echo hi"})
        client.put(f"/sandboxes/{box}/files/content", params={"path": "/root/f"}, content=os.urandom(300_000))
        if chance.random() < 0.7:
            # From here on the promise is open until the answer: the server may die in between, either way is right.
            self.kept.discard(box)
            if client.delete(f"/sandboxes/{box}").status_code == 200:
                self.deleted.add(box)


@pytest.mark.timeout(600)
def test_killing_the_server_during_load_loses_and_leaks_nothing(new_server: NewServer) -> None:
    server = new_server()
    steady = _start_steady(server)
    kept: set[str] = set()
    deleted: set[str] = set()
    for _ in range(ROUNDS):
        with Load(server) as load:
            time.sleep(1.0 + random.random())  # noqa: S311 (any moment will do)
            server.kill()
        kept |= load.kept
        deleted |= load.deleted
        server.start()
        _check_alive(server, kept, deleted)
        _check_steady(server, steady)
        with server.client() as client:
            for box in sorted(kept)[3:]:
                client.delete(f"/sandboxes/{box}")
            kept = set(sorted(kept)[:3])
    with server.client() as client:
        listed = client.get("/sandboxes", params={"limit": 1000}).json()["sandboxes"]
        for box in listed:
            client.delete(f"/sandboxes/{box['id']}")
    Footprint.of(server).assert_only_pool(server)


def _start_steady(server: RunningServer) -> tuple[str, str]:
    with server.client() as client:
        box = client.post("/sandboxes", json={"idle_timeout_s": None}).json()["id"]
        script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
        command = client.post(f"/sandboxes/{box}/commands", json={"command": script}).json()["id"]
    return box, command


def _check_steady(server: RunningServer, steady: tuple[str, str]) -> None:
    """The background command has run through the crash: its count has no gap and goes on."""
    box, command = steady
    with server.client() as client:
        before = client.get(f"/sandboxes/{box}/commands/{command}").json()
        assert before["running"] is True, before
        output = client.get(f"/sandboxes/{box}/commands/{command}/output").json()
        numbers = [int(n) for n in "".join(c["data"] for c in output["chunks"]).split()]
        assert numbers == list(range(1, len(numbers) + 1))
        deadline = time.monotonic() + 60
        while client.get(f"/sandboxes/{box}/commands/{command}").json()["cursor"] <= before["cursor"]:
            assert time.monotonic() < deadline, "the command stands still"
            time.sleep(0.05)


def _check_alive(server: RunningServer, kept: set[str], deleted: set[str]) -> None:
    with server.client() as client:
        for box in kept:
            answer = client.post(f"/sandboxes/{box}/exec", json={"command": "cat /etc/hostname"})
            assert answer.status_code == 200, (box, answer.text)
            assert answer.json()["exit_code"] == 0
        for box in deleted:
            assert client.get(f"/sandboxes/{box}").json()["state"] == "terminated"


@pytest.mark.timeout(300)
def test_a_paused_sandbox_outlives_a_crash(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client:
        box = client.post("/sandboxes", json={}).json()["id"]
        client.post(f"/sandboxes/{box}/exec", json={"command": "echo kept > /root/f"})
        assert client.post(f"/sandboxes/{box}/pause").json()["state"] == "paused"
    server.kill()
    server.start()
    with server.client() as client:
        assert client.get(f"/sandboxes/{box}").json()["state"] == "paused"
        assert client.post(f"/sandboxes/{box}/exec", json={"command": "cat /root/f"}).json()["stdout"] == "kept\n"


@pytest.mark.timeout(300)
def test_expiry_is_kept_through_a_crash(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client:
        box = client.post("/sandboxes", json={"timeout_s": 3}).json()["id"]
    server.kill()
    time.sleep(3.5)
    server.start()
    with server.client() as client:
        deadline = time.monotonic() + 60
        while (seen := client.get(f"/sandboxes/{box}").json())["state"] != "terminated":
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
        assert seen["end_reason"] == "expired"


@pytest.mark.timeout(300)
def test_killing_the_agent_ends_only_its_sandbox(server: RunningServer) -> None:
    with server.client() as client:
        one, two = (client.post("/sandboxes", json={}).json()["id"] for _ in range(2))
        pid = int(Path(server.run_dir / "sb" / one.removeprefix("sb_") / "pid").read_text())
        os.kill(pid, 9)
        deadline = time.monotonic() + 60
        while (seen := client.get(f"/sandboxes/{one}").json())["state"] not in {"failed", "terminated"}:
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
        assert seen["end_reason"] == "died"
        assert client.post(f"/sandboxes/{one}/exec", json={"command": "true"}).status_code == 410
        assert client.post(f"/sandboxes/{two}/exec", json={"command": "true"}).json()["exit_code"] == 0
        client.delete(f"/sandboxes/{two}")


@pytest.mark.timeout(900)
def test_cycles_of_create_and_destroy_return_everything(new_server: NewServer) -> None:
    server = new_server()
    cycles = 1000 if SOAK else 60
    with server.client() as client:
        for _ in range(10):
            client.delete(f"/sandboxes/{client.post('/sandboxes', json={}).json()['id']}")
        before = Footprint.settled(server)
        for _ in range(cycles):
            box = client.post("/sandboxes", json={}).json()["id"]
            client.post(f"/sandboxes/{box}/exec", json={"command": "head -c 100000 /dev/urandom > /root/f"})
            assert client.delete(f"/sandboxes/{box}").status_code == 200
        after = Footprint.settled(server)
    after.assert_not_more_than(before)
