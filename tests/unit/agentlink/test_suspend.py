"""Sessions that survive a quiesce, with the real agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cove.agentlink.client import AgentClient
from cove.model.errors import Conflict, SandboxGone
from cove.model.execs import Chunk, ExecSpec, Started, Stream
from cove.model.shells import ShellCommand, ShellSpec
from cove.model.terminals import TerminalSize
from waiting_support import comes_true

from .conftest import RunningAgent, lives, suspension


async def test_a_command_does_not_notice(client: AgentClient, agent: RunningAgent, tmp_path: Path) -> None:
    spec = ExecSpec(shell="for i in $(seq 200); do echo $i; sleep 0.005; done")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(client.exec(spec))
        while not running.done():
            async with suspension(client, agent):
                pass
    assert running.result().stdout.split() == [b"%d" % n for n in range(1, 201)]


async def test_a_released_session_leaves_its_commands_in_the_background(
    client: AgentClient, agent: RunningAgent, tmp_path: Path
) -> None:
    script = f"read line; echo got $line; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo end; exit 3"
    async with client.exec_session(ExecSpec(shell=script)) as session:
        started = await anext(session)
        assert isinstance(started, Started)
        await session.write(b"this\n")
        assert await anext(session) == Chunk(Stream.STDOUT, b"got this\n")
        await leave(client, agent)
        with pytest.raises(SandboxGone):
            await anext(session)
    other = await agent.connect()
    try:
        revived = await other.revive(hostname=None, env={"A": "1"}, is_copy=True)
        assert revived == await other.revive(hostname=None, env={"A": "1"}, is_copy=True)
        assert revived.released == 1
        with pytest.raises(Conflict):
            await other.revive(hostname=None, env={"A": "2"}, is_copy=True)
        (tmp_path / "go").touch()
        ended = await other.wait(started.id, 5)
        assert ended.exit is not None
        assert ended.exit.code == 3
        async with other.output(started.id) as pieces:
            said = [piece async for piece in pieces]
        assert Chunk(Stream.STDOUT, b"end\n") in said
        assert (await other.environment()).env == {"A": "1"}
    finally:
        await other.close()


async def test_a_session_that_a_new_host_does_not_take_up_ends(client: AgentClient, agent: RunningAgent) -> None:
    async with client.exec_stream(ExecSpec(shell="sleep 300")) as events:
        started = await anext(events)
        assert isinstance(started, Started)
        await leave(client, agent)
    other = await agent.connect()
    assert await other.commands() == []
    await comes_true(lambda: not lives(started.pid))
    await other.close()


async def leave(client: AgentClient, agent: RunningAgent) -> None:
    """As a server does for a hibernation, or one that made a copy and has ended since."""
    marker = agent.path.with_name("quiesce")
    marker.touch()
    await client.suspend()
    client.drop()
    marker.unlink()


async def test_a_release_ends_what_has_an_owner_and_nothing_else(
    client: AgentClient, agent: RunningAgent, tmp_path: Path
) -> None:
    """A half upload and a dialled connection end; a terminal, a shell and its attached command go on."""
    heard = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b"half of it"
        heard.set()
        await asyncio.Event().wait()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()
        closed.set()

    closed = asyncio.Event()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    await client.start_terminal(
        "t1", ExecSpec(shell="exec cat"), size=TerminalSize(cols=80, rows=24), keep_bytes=1 << 20
    )
    await client.open_shell("s1", ShellSpec())
    text = f"echo one; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo two; (exit 6)"
    upload = asyncio.ensure_future(client.write(f"{tmp_path}/up", half()))
    async with (
        client.attach("t1", cursor=None) as looks,
        client.shell_stream("s1", "k1", ShellCommand(text=text)) as says,
        client.dial(server.sockets[0].getsockname()[1]) as stream,
    ):
        assert isinstance(await anext(says), Started)
        assert await anext(says) == Chunk(Stream.STDOUT, b"one\n")
        await looks.write(b"typed\n")
        assert isinstance(await anext(looks), Chunk)
        await stream.write(b"x")
        assert await anext(stream) == b"x"
        await heard.wait()
        await leave(client, agent)
    upload.cancel()
    other = await agent.connect()
    try:
        assert (await other.revive(hostname=None, env=None, is_copy=False)).released == 1
        async with asyncio.timeout(60):
            await closed.wait()
        assert [one.id for one in await other.terminals()] == ["t1"]
        async with other.attach("t1", cursor=None) as looks:
            assert isinstance(await anext(looks), Chunk)
            await looks.write(b"again\n")
        (tmp_path / "go").touch()
        ended = await other.wait("k1", 5)
        assert ended.exit is not None
        assert ended.exit.code == 6
        assert (await other.shell_exec("s1", "k2", ShellCommand(text="echo $?"))).stdout == b"6\n"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.sock", "go"]
        assert (await other.stats()).attached == 0
    finally:
        server.close()
        await other.close()
