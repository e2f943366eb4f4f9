"""Commands that somebody talks to while they run, and the programs that the agent brings, with the real agent."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from cove.agentlink.client import AgentClient
from cove.agentlink.session import ExecSession
from cove.model.errors import Conflict, Unsupported
from cove.model.execs import Chunk, Ended, ExecExit, ExecSpec, Started, Stream, Why
from waiting_support import comes_true

from .conftest import lives


def sh(script: str, **more: Any) -> ExecSpec:
    return ExecSpec(shell=script, **more)


async def rest(session: ExecSession) -> tuple[bytes, bytes, ExecExit]:
    out, err = bytearray(), bytearray()
    async for event in session:
        if isinstance(event, Chunk):
            (out if event.stream is Stream.STDOUT else err).extend(event.data)
        if isinstance(event, Ended):
            return bytes(out), bytes(err), event.exit
    raise AssertionError("no end")


async def test_each_line_is_answered_while_the_input_is_open(client: AgentClient) -> None:
    async with client.exec_session(sh("while read line; do echo got $line; done; exit 4")) as session:
        assert isinstance(await anext(session), Started)
        for number in range(3):
            assert await session.write(f"{number}\n".encode())
            event = await anext(session)
            assert event == Chunk(Stream.STDOUT, f"got {number}\n".encode())
        session.write_eof()
        session.write_eof()
        assert (await rest(session))[2].code == 4
        assert not await session.write(b"late")


async def test_both_directions_carry_more_than_the_credit_at_once(client: AgentClient) -> None:
    data = bytes(range(256)) * 40_000  # 10 MB
    async with client.exec_session(ExecSpec(argv=("cat",))) as session, asyncio.TaskGroup() as tasks:

        async def write() -> None:
            for start in range(0, len(data), 100_000):
                assert await session.write(data[start : start + 100_000])
            session.write_eof()

        tasks.create_task(write())
        out, _, ended = await rest(session)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert ended.code == 0


async def test_a_command_that_does_not_read_holds_up_the_writer_only(client: AgentClient) -> None:
    async with client.exec_session(sh("echo ready; sleep 0.3; echo done")) as session, asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(session.write(bytes(5_000_000)))
        out, _, ended = await rest(session)
        assert (out, ended.code) == (b"ready\ndone\n", 0)
        await writing  # the rest is dropped by the agent or by us, whoever learns of the end first


async def test_a_signal_reaches_the_group_and_an_ended_command_refuses_it(client: AgentClient) -> None:
    async with client.exec_session(sh("trap 'echo caught; exit 5' USR1; echo on; while :; do sleep 0.01; done")) as one:
        assert [type(await anext(one)), await anext(one)] == [Started, Chunk(Stream.STDOUT, b"on\n")]
        await one.signal(10)
        out, _, ended = await rest(one)
        assert (out, ended.code) == (b"caught\n", 5)
        with pytest.raises(Conflict):
            await one.signal(10)


async def test_leaving_a_session_kills_the_command(client: AgentClient) -> None:
    async with client.exec_session(sh("sleep 300")) as session:
        started = await anext(session)
    assert isinstance(started, Started)
    await comes_true(lambda: not lives(started.pid))
    async with asyncio.timeout(60):
        while (await client.stats()).attached:
            await asyncio.sleep(0.01)


async def test_a_program_that_cannot_start_ends_like_a_shells(client: AgentClient) -> None:
    async with client.exec_session(ExecSpec(argv=("no-such-program",))) as session:
        assert not await session.write(b"x")
        with pytest.raises(Conflict):
            await session.signal(15)
        _, err, ended = await rest(session)
    assert (ended.code, ended.why) == (127, Why.EXITED)
    assert b"no-such-program" in err


async def test_a_tool_runs_whatever_the_sandbox_has(client: AgentClient, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    async with client.exec_session(ExecSpec(argv=("login", "-c", "pwd; echo $USER"), tool=True, env=env)) as session:
        out, err, ended = await rest(session)
    assert (out, err, ended.code) == (f"{tmp_path}\nroot\n".encode(), b"", 0)


async def test_a_tool_that_there_is_not_is_refused(client: AgentClient) -> None:
    with pytest.raises(Unsupported):
        async with client.exec_session(ExecSpec(argv=("cat",), tool=True)):
            pass
