"""Two servers on one machine share nothing: no ids, no cgroups, no directories, no devices, and no end."""

from __future__ import annotations

import dataclasses
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from cove.engine.claims import RANGE_SIZE
from tests_support import Footprint, NewServer, RunningServer, free_port, loop_devices

pytestmark = pytest.mark.real
BOXES = 4


def create(client: httpx2.Client) -> str:
    answer = client.post("/sandboxes", json={})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def said(client: httpx2.Client, box: str, command: str) -> str:
    answer = client.post(f"/sandboxes/{box}/exec", json={"command": command})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["stdout"])


def uid_base(client: httpx2.Client, box: str) -> int:
    """The first uid of the machine that the sandbox's own map names."""
    inside, outside, count = map(int, said(client, box, "cat /proc/self/uid_map").split())
    assert (inside, count) == (0, RANGE_SIZE)
    return outside


def cgroups(server: RunningServer) -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return [*root.glob(f"*/cove/{server.instance}"), *root.glob(f"cove/{server.instance}")]


def claimed(server: RunningServer) -> set[str]:
    return {file.name for file in Path("/run/cove/uid").iterdir() if Path(file.read_text()).name == server.instance}


@pytest.fixture
def pair(new_server: NewServer) -> tuple[RunningServer, RunningServer]:
    return new_server(COVE_POOL_SIZE="2"), new_server(COVE_POOL_SIZE="2")


Pair = tuple[RunningServer, RunningServer]


def test_two_servers_take_different_ids_cgroups_directories_and_devices(pair: Pair) -> None:
    one, two = pair
    with one.client() as first, two.client() as second, ThreadPoolExecutor(BOXES * 2) as threads:
        made = list(threads.map(lambda client: (client, create(client)), [first, second] * BOXES))
        bases = list(threads.map(lambda pair: uid_base(*pair), made))
        assert len(set(bases)) == len(bases), "two sandboxes share a uid range"
        of_first = {base for (client, _), base in zip(made, bases, strict=True) if client is first}
        blocks = [{base // RANGE_SIZE // 64 for base in part} for part in (of_first, set(bases) - of_first)]
        assert not blocks[0] & blocks[1]
        # Neither sees what is the other's.
        for client, box in made:
            other = second if client is first else first
            assert other.get(f"/sandboxes/{box}").status_code == 404
    assert one.run_dir != two.run_dir
    assert one.run_dir.is_dir()
    assert two.run_dir.is_dir()
    for server in pair:
        assert all(base.is_dir() for base in cgroups(server))
        assert cgroups(server)
        assert claimed(server)
    assert not claimed(one) & claimed(two)
    assert not set(loop_devices(one.data_dir)) & set(loop_devices(two.data_dir))
    assert set(cgroups(one)).isdisjoint(cgroups(two))


def test_ending_everything_of_one_server_leaves_the_other_alone(pair: Pair) -> None:
    one, two = pair
    with one.client() as client:
        for _ in range(BOXES):
            create(client)
    with two.client() as client:
        box = create(client)
        said(client, box, "echo kept > /root/f")
        loop = {"command": "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"}
        command = client.post(f"/sandboxes/{box}/commands", json=loop).json()["id"]
        before = Footprint.settled(two)

        groups, devices = cgroups(one), loop_devices(one.data_dir)
        one.down()
        assert not one.run_dir.exists()
        assert not [group for group in groups if group.exists()]
        assert not claimed(one)
        assert devices
        assert loop_devices(one.data_dir) == []

        assert said(client, box, "cat /root/f") == "kept\n"
        assert client.get(f"/sandboxes/{box}/commands/{command}").json()["running"] is True
        fresh = create(client)
        assert said(client, fresh, "echo fine") == "fine\n"
        client.delete(f"/sandboxes/{fresh}")
        Footprint.settled(two).assert_not_more_than(before)


def test_a_crash_and_a_sweep_of_one_server_leave_the_other_alone(pair: Pair) -> None:
    one, two = pair
    with two.client() as client:
        box = create(client)
        with one.client() as other:
            mine = create(other)
        one.kill()
        assert said(client, box, "echo fine") == "fine\n"
        one.start()
        with one.client() as other:
            assert said(other, mine, "echo fine") == "fine\n"
            bases = [uid_base(other, create(other)), uid_base(client, create(client))]
        assert said(client, box, "echo fine") == "fine\n"
        assert uid_base(client, box) not in bases
        assert bases[0] != bases[1]


def refused(server: RunningServer) -> str:
    """What a server says that cannot start."""
    server.start(wait=False)
    assert server.process is not None
    try:
        assert server.process.wait(60) == 125
    except subprocess.TimeoutExpired:
        server.kill()
        raise
    return server.log.read_text()


@pytest.mark.parametrize("which", ["directory", "port"])
def test_a_second_server_on_the_same_directory_or_port_is_refused_and_harms_nothing(
    new_server: NewServer, tmp_path: Path, which: str
) -> None:
    running = new_server(COVE_POOL_SIZE="2")
    with running.client() as client:
        box = create(client)
        if which == "directory":
            second = dataclasses.replace(running, port=free_port(), process=None)
            assert "already runs" in refused(second)
        else:
            second = dataclasses.replace(running, data_dir=tmp_path / "other", process=None)
            second.data_dir.mkdir()
            for product in ("runtimes", "images"):
                (second.data_dir / product).symlink_to((running.data_dir / product).readlink())
            assert str(running.port) in refused(second)
            clean_up(second)
        assert said(client, box, "echo fine") == "fine\n"
        assert said(client, create(client), "echo fine") == "fine\n"
    assert Footprint.of(running).boxes > 0


def clean_up(server: RunningServer) -> None:
    """A server that never came up has no port to be ended through: start it on a free one, and end it."""
    server.port = free_port()
    server.down()
    assert not server.run_dir.exists()
