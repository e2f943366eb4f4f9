"""A real agent as a plain process, and a lying one over a socket pair."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cove.agentlink.client import AgentClient
from cove.agentlink.frames import HEADER, Kind
from cove.engine import agentsocket
from cove.engine.agentbin import agent_path

HELLO = {"protocol": 1, "min_protocol": 1, "agent": "t", "build": "b", "pid": 1, "features": []}


def lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class Liar:
    """The other end of a connection: says what the test wants."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def say(self, kind: int, channel: int, payload: object = b"") -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.raw(HEADER.pack(len(data), kind, channel) + data)

    async def raw(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def hear(self) -> tuple[int, int, bytes]:
        length, kind, channel = HEADER.unpack(await self._exactly(HEADER.size))
        return kind, channel, await self._exactly(length)

    async def hear_call(self) -> tuple[int, dict]:
        while True:
            kind, channel, payload = await self.hear()
            if kind == Kind.CALL:
                return channel, json.loads(payload)

    async def hear_end(self) -> None:
        """Return when the host has closed."""
        try:
            while await asyncio.get_running_loop().sock_recv(self._sock, 65536):
                pass
        except ConnectionError:
            pass

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await asyncio.get_running_loop().sock_recv(self._sock, count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[socket.socket, Liar]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    liar = Liar(theirs)
    yield ours, liar
    liar.close()
    ours.close()


@pytest.fixture
async def lied_to(pair: tuple[socket.socket, Liar]) -> AsyncIterator[tuple[AgentClient, Liar]]:
    ours, liar = pair
    await liar.say(Kind.HELLO, 0, HELLO)
    client = await AgentClient.connect(ours)
    await liar.hear()
    yield client, liar
    await client.close()


class RunningAgent:
    """The built agent with its socket in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "a.sock"
        self._process = subprocess.Popen([agent_path(), "-socket", str(self.path)])
        self.pid = self._process.pid
        self.peer = agentsocket.Peer(pid=self.pid, uid=os.getuid())

    async def connect(self) -> AgentClient:
        for _ in range(10_000):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                sock.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                await asyncio.sleep(0.005)
            else:
                return await AgentClient.connect(sock)
        raise AssertionError("the agent does not listen")

    def stop(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()


@asynccontextmanager
async def suspension(client: AgentClient, agent: RunningAgent) -> AsyncIterator[None]:
    """What a driver does around a checkpoint."""
    marker = agent.path.with_name("quiesce")
    marker.touch()
    await client.suspend()
    assert client.is_suspended
    assert not client.is_closed
    assert not agent.path.exists()
    yield
    marker.unlink()
    await agentsocket.resume(client, agent.path.parent, agent.peer, timeout_s=5)
    assert not client.is_suspended


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[RunningAgent]:
    one = RunningAgent(tmp_path)
    yield one
    one.stop()


@pytest.fixture
async def client(agent: RunningAgent) -> AsyncIterator[AgentClient]:
    one = await agent.connect()
    yield one
    await one.close()
