"""`cove watch` and the SDK's watches against real sandboxes: what a shell and a program see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import httpx2
import pytest

import cove
from cove import aio
from tests_support import RunningServer

pytestmark = pytest.mark.real


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_events_until_a_signal_and_leaves_no_watch(
    server: RunningServer, client: httpx2.Client, sandbox: str, number: signal.Signals
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COVE_", "XDG_"))}
    env |= {"COVE_URL": server.url, "COVE_API_KEY": server.key, "HOME": str(server.data_dir)}
    argv = [sys.executable, "-m", "cove.cli.main", "watch", sandbox, "/root", "--json", "kind,path"]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        while not client.get(f"/sandboxes/{sandbox}/watches").json()["watches"]:
            assert running.poll() is None
        client.post(f"/sandboxes/{sandbox}/exec", json={"command": "mkdir -p /root/a/b; touch /root/a/b/c"})
        seen = [json.loads(running.stdout.readline())["path"] for _ in range(3)]
        assert seen == ["/root/a", "/root/a/b", "/root/a/b/c"]
        running.send_signal(number)
        assert running.wait(60) == 128 + number
    assert client.get(f"/sandboxes/{sandbox}/watches").json()["watches"] == []


def test_a_watch_is_found_again_and_read_from_its_beginning(server: RunningServer, sandbox: str) -> None:
    with cove.connect(server.url, server.key) as client:
        box = client.get(sandbox)
        box.watch("/root", kinds=["create"])
        box.run("touch /root/one")
        (again,) = box.watches()
        assert [one.path for one in again.changes(wait="5s")] == ["/root/one"]
        box.run("touch /root/two")
        assert [one.path for one in again.changes(wait="5s")] == ["/root/two"]
        again.stop()
        again.stop()
        assert box.watches() == []
        with pytest.raises(cove.FileMissing):
            box.watch("/no/such")


async def test_the_awaited_twin_follows_a_watch(server: RunningServer, sandbox: str) -> None:
    async with aio.connect(server.url, server.key) as client:
        box = await client.get(sandbox)
        async with box.watch("/root", kinds=["create", "remove"]) as watch:
            await box.run("mkdir /root/d; touch /root/d/f; rm -r /root/d")
            seen = []
            async for change in watch:
                seen.append(f"{change.kind} {change.path}")
                if len(seen) == 4:
                    break
            assert seen == ["create /root/d", "create /root/d/f", "remove /root/d/f", "remove /root/d"]
        assert await box.watches() == []
