"""Connects to a box's agent without trusting the directory the socket lies in.

The sandbox owns that directory: it may put a link to any socket of the host there, or a socket of its own. So: one
descriptor of the directory, opened without following links; `openat` of the name with O_PATH|O_NOFOLLOW; it must be a
socket; connect through /proc/self/fd (the inode that was checked, not a name); the peer must be the box's own init, by
pid and by uid (SO_PEERCRED tells who called listen(2)).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.agentlink.client import AgentClient
from cove.model.errors import AgentTimeout, AgentViolation, SandboxGone

SOCKET_NAME: Final = "a.sock"
_POLL_S: Final = 0.001


class Peer(Struct, frozen=True):
    """Who must be listening: the box's init, by its pid and its uid outside."""

    pid: int
    uid: int


async def connect(directory: Path, peer: Peer, *, is_new: bool, timeout_s: float) -> AgentClient:
    """A client of the agent whose socket lies in `directory`.

    Args:
        directory: the host's side of the sandbox's socket directory.
        peer: who must be listening.
        is_new: the box was just made, so the socket may take a moment to appear; otherwise its absence is final.
        timeout_s: for the socket to appear, and again for the agent's greeting.

    Raises: AgentTimeout (it did not), AgentViolation (something else is there), SandboxGone (it closed on us).
    """
    found = await _find(directory, peer, is_new=is_new, timeout_s=timeout_s)
    return await AgentClient.connect(found, timeout_s=timeout_s)


async def resume(client: AgentClient, directory: Path, peer: Peer, *, timeout_s: float) -> None:
    """Take a suspended client's session up again, once the file `quiesce` is gone. Arguments as of `connect`.

    On failure the client is closed, with all its calls. Raises: as `connect`.
    """
    try:
        found = await _find(directory, peer, is_new=True, timeout_s=timeout_s)
    except BaseException:
        client.drop()
        raise
    await client.resume_on(found, timeout_s=timeout_s)


async def _find(directory: Path, peer: Peer, *, is_new: bool, timeout_s: float) -> socket.socket:
    try:
        async with asyncio.timeout(timeout_s):
            while (found := _try_connect(directory, peer)) is None:
                if not _is_alive(peer.pid):
                    raise SandboxGone("the sandbox ended while it started")
                if not is_new:
                    raise AgentViolation("the sandbox removed its agent's socket", internal=f"pid {peer.pid}")
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise AgentTimeout("the sandbox's agent did not come up", internal=f"pid {peer.pid}") from error
    return found


def is_bound(directory: Path) -> bool:
    """Whether something lies where the agent's socket would; it is not looked at."""
    return os.path.lexists(directory / SOCKET_NAME)


def _require_peer(found: tuple[int, int], wanted: Peer) -> None:
    if found != (wanted.pid, wanted.uid):
        raise AgentViolation("the sandbox replaced its agent's socket", internal=f"peer {found}")


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _try_connect(directory: Path, peer: Peer) -> socket.socket | None:
    """A connected socket; None: not there yet. Raises: AgentViolation."""
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            node = os.open(SOCKET_NAME, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            stack.callback(os.close, node)
        except FileNotFoundError:
            return None
        if not stat.S_ISSOCK(os.fstat(node).st_mode):
            raise AgentViolation("the sandbox replaced its agent's socket", internal="not a socket")
        return _connect_checked(f"/proc/self/fd/{node}", peer)


def _connect_checked(path: str, peer: Peer) -> socket.socket | None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        link.connect(path)
        peer_pid, peer_uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        _require_peer((peer_pid, peer_uid), peer)
    except (ConnectionRefusedError, BlockingIOError):
        # Bound but not listening yet, or its backlog is full: both pass.
        link.close()
        return None
    except BaseException:
        link.close()
        raise
    return link
