"""Watches under faults: the server is killed in mid-watch, a storm of events meets a reader that does not read."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import httpx2
import pytest

import cove
from tests_support import SOAK, NewServer, RunningServer

pytestmark = pytest.mark.real
FILES, KILLS = (600, 5) if SOAK else (120, 1)


@pytest.mark.timeout(300)
def test_killing_the_server_in_mid_watch_loses_no_event(new_server: NewServer) -> None:
    server = new_server()
    with cove.connect(server.url, server.key) as client:
        box = client.create(idle_timeout=None)
        box.run("mkdir -p /w")
        seen: list[str] = []

        def follow() -> None:
            for change in watch:
                seen.append(f"{change.kind} {change.path}")
                assert not change.lost

        with box.watch("/w", kinds=["create"]) as watch:
            # While the server is away, too, a file every 20 ms in a fresh directory for each hundred.
            script = (
                f"for i in $(seq {FILES}); do d=/w/$((i / 100)); mkdir -p $d; echo > $d/$i; sleep 0.02; done; rm -r /w"
            )
            box.start(script)
            thread = threading.Thread(target=follow)
            thread.start()
            for _ in range(KILLS):
                time.sleep(0.8)
                server.kill()
                server.start()
            thread.join(60)
            assert not thread.is_alive()
        assert watch.ended == "removed"
        wanted = {f"create /w/{i // 100}/{i}" for i in range(1, FILES + 1)} | {
            f"create /w/{n}" for n in range(FILES // 100 + 1)
        }
        assert len(seen) == len(set(seen))
        assert set(seen) == wanted


@pytest.mark.timeout(600)
def test_a_watch_storm_is_bounded_told_and_holds_nobody_up(server: RunningServer, client: httpx2.Client) -> None:
    events = 100_000 if SOAK else 12_000
    box = client.post("/sandboxes", json={"memory_mib": 256, "cpus": 1}).json()["id"]
    path = f"/sandboxes/{box}"
    watch = f"{path}/watches/{client.post(f'{path}/watches', json={'path': '/root'}).json()['id']}"
    # Told only when the kernel could not keep up: nothing here changes attributes.
    told = {"path": "/root", "kinds": ["attributes"]}
    overflows = f"{path}/watches/{client.post(f'{path}/watches', json=told).json()['id']}"
    before = _rss_kib(server)
    # Made, written, renamed and removed: four events for each file, from two processes at once.
    script = (
        "import os, sys\n"
        "for i in range(int(sys.argv[2])):\n"
        "    name = f'/root/{sys.argv[1]}-{i}-' + 'x' * 100\n"
        "    os.close(os.open(name, os.O_CREAT | os.O_WRONLY)); os.rename(name, name + 'y'); os.unlink(name + 'y')\n"
    )
    client.put(f"{path}/files/content", params={"path": "/storm.py"}, content=script.encode())
    each = -(-events // 6)
    command = f"python3 /storm.py a {each} & python3 /storm.py b {each} & wait"
    with contextlib.ExitStack() as stack:
        # One that never reads, and one that reads from the beginning when all is over.
        stack.enter_context(client.stream("GET", f"{watch}/events", params={"follow": "true"}))
        done = client.post(f"{path}/exec", json={"command": command, "timeout_s": 300}, timeout=310).json()
        assert done["exit_code"] == 0, done
        started = time.monotonic()
        page = client.get(f"{watch}/events", params={"limit": 10000}).json()
        assert time.monotonic() - started < 30
    assert page["lost_events"] + len(page["events"]) == page["cursor"]
    assert len(page["events"]) <= 4096
    # Every event was told, or that there were more: nothing is lost without a word.
    deadline = time.monotonic() + 60
    while (told_of := client.get(watch).json()["cursor"]) < events:  # the sandbox may be behind still
        lost = client.get(f"{overflows}/events", params={"wait_s": 0.5}).json()["events"]
        if "overflow" in {one["kind"] for one in lost}:
            break
        assert time.monotonic() < deadline, told_of
    assert _rss_kib(server) - before < 16 * 1024
    agent = client.post(f"{path}/exec", json={"command": "grep VmRSS /proc/1/status"}).json()["stdout"]
    assert int(agent.split()[1]) < 40 * 1024, agent
    # And it goes on: what happens now is told at once.
    at = client.get(watch).json()["cursor"]
    client.post(f"{path}/exec", json={"command": "mkdir -p /root/new/deep; echo > /root/new/deep/f"})
    after = client.get(f"{watch}/events", params={"cursor": at, "wait_s": 10}).json()
    assert "/root/new/deep/f" in {one["path"] for one in after["events"]} | _later(client, watch, after["cursor"])
    client.delete(path)


def _later(client: httpx2.Client, watch: str, cursor: int) -> set[str]:
    page = client.get(f"{watch}/events", params={"cursor": cursor, "wait_s": 2}).json()
    return {one["path"] for one in page["events"]}


def _rss_kib(server: RunningServer) -> int:
    assert server.process is not None
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
