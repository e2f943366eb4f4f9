"""A newer Cove takes over: what runs goes on with the agent it started with, what is new gets the new one."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from cove.engine.agentbin import agent_build, agent_path
from tests_support import Footprint, NewServer, RunningServer
from waiting_support import until

pytestmark = pytest.mark.real

# Another agent: our own with another build id in it. The server finds it where a newer package would have put it.
_OTHER = """
from pathlib import Path
from cove.engine import agentbin
agentbin.agent_build = lambda: {build!r}
agentbin.agent_path = lambda arch=None: Path({path!r})
"""


def create(client: httpx2.Client) -> str:
    answer = client.post("/sandboxes", json={})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def said(client: httpx2.Client, box: str, command: str) -> str:
    answer = client.post(f"/sandboxes/{box}/exec", json={"command": command})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["stdout"])


def builds(server: RunningServer) -> dict[str, str]:
    """The agent's build of every box, by the box's id."""
    facts = [json.loads(file.read_bytes()) for file in (server.run_dir / "sb").glob("*/box.json")]
    return {one["id"]: one["agent_build"] for one in facts}


def wait_pool(client: httpx2.Client, server: RunningServer) -> None:
    size = int(server.env["COVE_POOL_SIZE"])

    def is_full() -> bool:
        return client.get("/server").json()["capacity"]["pool"]["base"] == size

    until(is_full, "the pool does not fill", 60)


def use_other_agent(server: RunningServer, directory: Path, build: str) -> None:
    """From its next start on the server has an agent of another build."""
    ours = agent_build().encode()
    data = agent_path().read_bytes()
    assert data.count(ours) == 1, "the agent does not carry its build id"
    agent = directory / "agent"
    agent.write_bytes(data.replace(ours, build.encode()) + b"\0newer")
    agent.chmod(0o755)
    # Python runs this module at its start, before anything of Cove is imported.
    (directory / "sitecustomize.py").write_text(_OTHER.format(build=build, path=str(agent)))
    server.env["PYTHONPATH"] = str(directory)


@pytest.mark.parametrize("crash", [False, True], ids=["polite", "crash"])
def test_running_sandboxes_keep_their_agent_and_new_ones_get_the_new(
    new_server: NewServer, tmp_path: Path, *, crash: bool
) -> None:
    server = new_server()
    old, new = agent_build(), "0123456789ab"
    with server.client() as client:
        box, asleep = create(client), create(client)
        said(client, box, "echo kept > /root/f")
        loop = {"command": "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"}
        command = client.post(f"/sandboxes/{box}/commands", json=loop).json()["id"]
        assert client.post(f"/sandboxes/{asleep}/pause").status_code == 200
        wait_pool(client, server)
    before = builds(server)
    assert set(before.values()) == {old}
    kept = {box.removeprefix("sb_"), asleep.removeprefix("sb_")}
    pooled = set(before) - kept
    assert pooled

    if crash:
        server.kill()
    else:
        server.stop()
    use_other_agent(server, tmp_path, new)
    server.start()
    with server.client() as client:
        # The old ones answer, with all that they had.
        assert said(client, box, "cat /root/f") == "kept\n"
        assert said(client, asleep, "echo awake") == "awake\n"
        running = client.get(f"/sandboxes/{box}/commands/{command}").json()
        assert running["running"] is True
        output = client.get(f"/sandboxes/{box}/commands/{command}/output").json()
        numbers = [int(n) for n in "".join(chunk["data"] for chunk in output["chunks"]).split()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert client.put(f"/sandboxes/{box}/files/content?path=/root/g", content=b"g").status_code == 200

        fresh = create(client)
        assert said(client, fresh, "echo fine") == "fine\n"
        wait_pool(client, server)
        now = builds(server)
        assert not pooled & set(now), "a pool member with the older agent was kept"
        assert {name: build for name, build in now.items() if name in kept} == dict.fromkeys(kept, old)
        assert {build for name, build in now.items() if name not in kept} == {new}
        assert fresh.removeprefix("sb_") in now

        for one in (box, asleep, fresh):
            assert client.delete(f"/sandboxes/{one}").status_code == 200
    Footprint.of(server).assert_only_pool(server)


def test_going_back_to_the_older_version_keeps_the_newer_sandboxes(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server()
    server.stop()
    use_other_agent(server, tmp_path, "0123456789ab")
    server.start()
    with server.client() as client:
        box = create(client)
        assert said(client, box, "echo new") == "new\n"
        until(lambda: builds(server).get(box.removeprefix("sb_")) == "0123456789ab", "it has the older agent")
    server.stop()
    del server.env["PYTHONPATH"]
    server.start()
    with server.client() as client:
        assert said(client, box, "echo still") == "still\n"
        fresh = create(client)
        assert builds(server)[fresh.removeprefix("sb_")] == agent_build()
        for one in (box, fresh):
            assert client.delete(f"/sandboxes/{one}").status_code == 200
    Footprint.of(server).assert_only_pool(server)
