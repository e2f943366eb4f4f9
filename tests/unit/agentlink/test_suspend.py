"""Sessions that survive a quiesce, with the real agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cove.agentlink.client import AgentClient
from cove.model.errors import Conflict, SandboxGone
from cove.model.execs import Chunk, ExecSpec, Started, Stream

from .conftest import RunningAgent, suspension


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
    marker = agent.path.with_name("quiesce")
    async with client.exec_session(ExecSpec(shell=script)) as session:
        started = await anext(session)
        assert isinstance(started, Started)
        await session.write(b"this\n")
        assert await anext(session) == Chunk(Stream.STDOUT, b"got this\n")
        marker.touch()
        await client.suspend()
        client.drop()
        with pytest.raises(SandboxGone):
            await anext(session)
    marker.unlink()
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


async def test_a_session_that_a_new_host_does_not_take_up_ends(
    client: AgentClient, agent: RunningAgent, tmp_path: Path
) -> None:
    marker = agent.path.with_name("quiesce")
    async with client.exec_stream(ExecSpec(shell=f"sleep 0.3; touch {tmp_path}/alive")) as events:
        assert isinstance(await anext(events), Started)
        marker.touch()
        await client.suspend()
        client.drop()
    marker.unlink()
    other = await agent.connect()
    assert await other.commands() == []
    await asyncio.sleep(0.5)
    assert not (tmp_path / "alive").exists()
    await other.close()
