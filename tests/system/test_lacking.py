"""Machines that lack something: refused with the reason, or degraded as the operator set and told so in every view."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests_support import RunningServer, make_server

pytestmark = pytest.mark.real
LACKING = str(Path(__file__).with_name("lacking.py"))


@pytest.fixture
def lacking(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that is not started; ended with all it made."""
    server = make_server(tmp_path, COVE_POOL_SIZE="1", COVE_DRIVERS="runc")
    yield server
    if server.process is not None and server.process.poll() is None:
        server.down()
        assert not server.run_dir.exists()
    shutil.rmtree(server.data_dir, ignore_errors=True)


def without(server: RunningServer, what: str, **env: str) -> RunningServer:
    server.prefix = (sys.executable, LACKING, what)
    server.env |= env
    return server


def refusal(server: RunningServer) -> str:
    server.start(wait=False)
    assert server.process is not None
    assert server.process.wait(60) == 125
    return server.log.read_text()


def ids_inside(server: RunningServer) -> tuple[dict[str, object], str]:
    with server.client() as client:
        made = client.post("/sandboxes", json={})
        assert made.status_code == 201, made.text
        script = "cat /proc/self/uid_map; touch /root/mine && ls -ln /root/mine /etc/passwd; grep Cap /proc/self/status"
        answer = client.post(f"/sandboxes/{made.json()['id']}/exec", json={"command": script})
        assert answer.status_code == 200, answer.text
        return made.json(), answer.json()["stdout"]


def test_without_user_namespaces_it_refuses_to_start(lacking: RunningServer) -> None:
    text = refusal(without(lacking, "userns"))
    assert "no user namespaces" in text
    assert "COVE_DEGRADE=host" in text


def test_without_user_namespaces_it_goes_on_where_allowed_and_says_so(lacking: RunningServer) -> None:
    without(lacking, "userns", COVE_DEGRADE="host").start()
    view, text = ids_inside(lacking)
    isolation = view["isolation"]
    assert isinstance(isolation, dict)
    assert isolation["user_namespace"] is False
    assert any("no user namespaces" in reason for reason in isolation["missing"])
    assert text.split()[:3] == ["0", "0", "4294967295"]
    assert "00000000000405fb" in text


def test_without_idmapped_mounts_it_refuses_to_start(lacking: RunningServer) -> None:
    text = refusal(without(lacking, "idmap"))
    assert "no idmapped mounts" in text
    assert "COVE_DEGRADE=shared" in text


def test_without_idmapped_mounts_all_share_one_range_where_allowed(lacking: RunningServer) -> None:
    without(lacking, "idmap", COVE_DEGRADE="shared").start()
    (one, first), (_, second) = ids_inside(lacking), ids_inside(lacking)
    isolation = one["isolation"]
    assert isinstance(isolation, dict)
    assert isolation["user_namespace"] is True
    assert any("no idmapped mounts" in reason for reason in isolation["missing"])
    inside, outside, size = first.split()[:3]
    assert (inside, size) == ("0", "65536")
    assert outside == second.split()[1] != "0"
    # Root inside owns what it makes and the image's files, as on any machine.
    assert first.count(" 0 0 ") == 2


def test_without_the_right_to_mount_it_says_what_it_needs(lacking: RunningServer) -> None:
    assert "CAP_SYS_ADMIN" in refusal(without(lacking, "sys_admin"))


def test_without_btrfs_the_limit_is_kept_by_other_means(lacking: RunningServer, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("mkfs.ext4", "losetup", "mount", "umount"):
        found = shutil.which(name)
        assert found, name
        (tools / name).symlink_to(found)
    lacking.env |= {"PATH": str(tools), "COVE_POOL_SIZE": "0"}
    lacking.start()
    with lacking.client() as client:
        made = client.post("/sandboxes", json={"disk_mib": 32}).json()
        assert made["isolation"]["quota"] == "ext4"
        assert any("btrfs" in reason for reason in made["isolation"]["missing"])
        full = client.post(f"/sandboxes/{made['id']}/exec", json={"command": "head -c 60000000 /dev/zero >/root/f"})
        assert full.json()["exit_code"] != 0


def test_an_operator_who_wants_btrfs_gets_no_less(lacking: RunningServer, tmp_path: Path) -> None:
    lacking.env |= {"PATH": str(tmp_path), "COVE_QUOTA": "btrfs"}
    assert "no storage for writable layers" in refusal(lacking)


def test_the_filter_of_these_tests_takes_something_away() -> None:
    script = "import os, ctypes; print(ctypes.CDLL(None, use_errno=True).unshare(0x10000000))"
    done = subprocess.run(
        [sys.executable, LACKING, "userns", sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "-1"


def test_another_umask_changes_nothing(lacking: RunningServer) -> None:
    lacking.prefix = ("/bin/sh", "-c", 'umask 077; exec "$@"', "sh")
    lacking.start()
    _, text = ids_inside(lacking)
    assert " 0 0 " in text
