"""A sandbox owns the directory of its agent's socket: whatever it puts there, we connect to its agent or not at all."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from cove.engine import agentsocket
from cove.model.errors import AgentTimeout, AgentViolation, SandboxGone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "s"
    directory.mkdir()
    return directory


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    return listener


async def connect(folder: Path, *, pid: int | None = None, uid: int | None = None, is_new: bool = True) -> None:
    peer = agentsocket.Peer(os.getpid() if pid is None else pid, os.geteuid() if uid is None else uid)
    await agentsocket.connect(folder, peer, is_new=is_new, timeout_s=0.3)


async def test_a_link_to_another_socket_is_not_followed(folder: Path, tmp_path: Path) -> None:
    with listen(tmp_path / "host.sock") as host:
        (folder / "a.sock").symlink_to(tmp_path / "host.sock")
        with pytest.raises(AgentViolation):
            await connect(folder)
        host.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.accept()


async def test_a_directory_that_became_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    folder.symlink_to(moved)
    with listen(moved / "a.sock"), pytest.raises((AgentViolation, OSError)):
        await connect(folder)


async def test_a_file_in_the_place_of_the_socket_is_refused(folder: Path) -> None:
    (folder / "a.sock").write_text("")
    with pytest.raises(AgentViolation):
        await connect(folder)


async def test_a_fifo_in_the_place_of_the_socket_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / "a.sock")
    with pytest.raises(AgentViolation):
        await asyncio.wait_for(connect(folder), 60)


async def test_a_socket_of_another_process_is_refused(folder: Path) -> None:
    with listen(folder / "a.sock"), pytest.raises(AgentViolation):
        await connect(folder, pid=os.getppid())


async def test_a_socket_of_another_user_is_refused(folder: Path) -> None:
    with listen(folder / "a.sock"), pytest.raises(AgentViolation):
        await connect(folder, uid=os.geteuid() + 1)


async def test_a_socket_that_never_appears_ends_in_a_timeout(folder: Path) -> None:
    with pytest.raises(AgentTimeout):
        await connect(folder)


async def test_a_dead_init_ends_the_wait(folder: Path) -> None:
    with pytest.raises(SandboxGone):
        await connect(folder, pid=2**22 + 1)


async def test_a_socket_that_an_older_box_removed_is_final_at_once(folder: Path) -> None:
    with pytest.raises(AgentViolation):
        await asyncio.wait_for(connect(folder, is_new=False), 0.2)
