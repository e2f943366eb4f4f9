"""What is decided around criu without it: what comes from outside a box, and where its memory may go on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cove.engine.checkpoints.criu import cpu_words, differences, external_mounts
from cove.engine.checkpoints.watched import places_of, watched_inodes

MOUNTINFO = """\
1372 1300 0:528 / / rw,nosuid,nodev,relatime - overlay cove rw,lowerdir=l0:l1
1537 1372 0:68 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1555 1372 0:896 / /dev rw,nosuid - tmpfs tmpfs rw,size=64k
1561 1555 0:6 /null /dev/null rw,relatime - devtmpfs dev rw
1600 1372 0:54 /b8b8 /.agent/agent ro,nosuid - tmpfs agents rw
1601 1372 0:55 / /run/agent rw,nosuid - tmpfs agent rw
7308 1537 0:6 /null /proc/kcore rw - devtmpfs dev rw
7309 1537 0:50 / /proc/pressure ro - tmpfs tmpfs ro
"""


def test_only_what_comes_from_outside_is_external() -> None:
    found = dict(external_mounts(MOUNTINFO, {"/.agent/agent", "/run/agent"}))
    assert found == {
        "/dev/null": "/dev/null",
        "/.agent/agent": "/.agent/agent",
        "/run/agent": "/run/agent",
        "/proc/kcore": "/dev/null",
    }


HERE = {
    "criu": "4.2.1", "kernel": "6.12.1", "machine": "x86_64", "cpu": "avx avx2", "cgroup": "v2", "ids": "mapped",
    "mounts": "/.agent/agent /run/agent",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"machine": "aarch64"}, "aarch64"),
        ({"kernel": "6.18.44"}, "is older"),
        ({"criu": "4.3"}, "is older"),
        ({"cpu": "avx avx512f"}, "avx512f"),
        ({"cgroup": "v1"}, "cgroup v1"),
        ({"ids": "shared"}, "ids of files"),
        ({"tmpfs": "plain"}, "/dev/shm"),
        ({"mounts": "/sys/devices/system/node"}, "/sys/devices/system/node"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, str], clause: str) -> None:
    gaps = differences({**HERE, **change}, HERE)
    assert len(gaps) == 1
    assert clause in gaps[0]


@pytest.mark.parametrize("change", [{}, {"kernel": "5.15"}, {"cpu": "avx"}, {"mounts": "/run/agent"}, {"criu": "4.2"}])
def test_what_fits_has_no_gap(change: dict[str, str]) -> None:
    assert differences({**HERE, **change}, HERE) == []


def test_this_processor_has_words() -> None:
    assert cpu_words()


def test_watched_things_are_found_by_their_inodes_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "out").symlink_to("/etc")
    wanted = {(tmp_path / "a" / "b").stat().st_ino, (tmp_path / "a" / "b" / "file").stat().st_ino}
    assert places_of(wanted, tmp_path) == ("/a/b", "/a/b/file")
    assert places_of({Path("/etc/passwd").stat().st_ino}, tmp_path) == ()


def test_the_kernels_own_words_of_a_watch_are_read(tmp_path: Path) -> None:
    for name in ("fd", "fdinfo"):
        (tmp_path / "7" / name).mkdir(parents=True)
    (tmp_path / "7" / "fd" / "3").symlink_to("anon_inode:inotify")
    (tmp_path / "7" / "fd" / "4").symlink_to("/inotify wd:1 ino:99 ")
    text = (
        "pos:\t0\nflags:\t00\nmnt_id:\t15\nino:\t1060\ninotify wd:2 ino:2f4 sdev:210 mask:100 ignored_mask:0 fhandle\n"
    )
    (tmp_path / "7" / "fdinfo" / "3").write_text(text + "inotify wd:1 ino:10 sdev:210 mask:100 ignored_mask:0 f\n")
    assert watched_inodes([7, 8], tmp_path) == {0x2F4, 0x10}
    assert watched_inodes([os.getpid()]) == set()
