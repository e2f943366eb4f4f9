"""Shells over the client: the real agent, run as a plain process, and one that lies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cove.agentlink.client import AgentClient
from cove.agentlink.frames import Kind
from cove.model.errors import AgentViolation, BadRequest, Conflict, NotFound, Unsupported
from cove.model.execs import Chunk, Ended, Started, Stream, Why
from cove.model.shells import ShellCommand, ShellProgram, ShellSpec

if TYPE_CHECKING:
    from conftest import Liar

SHELL = {
    "id": "s1",
    "pid": 5,
    "program": "bash",
    "cwd": "/",
    "started_at": 1.5,
    "running": "",
    "queued": 0,
    "job_control": True,
    "exit": None,
}


def text(command: str, **more: float) -> ShellCommand:
    return ShellCommand(text=command, **more)  # type: ignore[arg-type]


@pytest.fixture(params=list(ShellProgram))
async def shell(request: pytest.FixtureRequest, client: AgentClient) -> str:
    opened = await client.open_shell("s1", ShellSpec(program=request.param, cwd="/usr", env={"A": "1"}))
    assert (opened.id, opened.program, opened.cwd, opened.running, opened.exit) == (
        "s1",
        request.param,
        "/usr",
        None,
        None,
    )
    return "s1"


async def test_a_shell_is_opened_once_listed_and_closed(client: AgentClient, shell: str) -> None:
    with pytest.raises(Conflict):
        await client.open_shell(shell, ShellSpec())
    assert [one.id for one in await client.shells()] == [shell]
    await client.close_shell(shell)
    assert await client.shells() == []
    with pytest.raises(NotFound):
        await client.shell(shell)


async def test_what_cannot_be_opened_is_refused(client: AgentClient) -> None:
    for spec in (ShellSpec(cwd="/no/such"), ShellSpec(user="no-such-user"), ShellSpec(env={"PATH": "/nowhere"})):
        with pytest.raises(BadRequest):
            await client.open_shell("s1", spec)
    assert await client.shells() == []


async def test_an_attached_command_gives_its_events_and_result(client: AgentClient, shell: str) -> None:
    found = await client.shell_exec(shell, "c1", text("x=1; echo $A; echo e >&2; (exit 3)"))
    assert (found.stdout, found.stderr, found.exit.code, found.exit.why) == (b"1\n", b"e\n", 3, Why.EXITED)
    async with client.shell_stream(shell, "c2", text("echo $x")) as events:
        seen = [event async for event in events]
    assert isinstance(seen[0], Started)
    assert seen[1] == Chunk(Stream.STDOUT, b"1\n")
    assert isinstance(seen[-1], Ended)
    assert await client.commands() == []


async def test_the_tail_of_long_output_wins(client: AgentClient, shell: str) -> None:
    command = ShellCommand(text="head -c 3000000 /dev/zero; printf end", output_limit_bytes=1000)
    found = await client.shell_exec(shell, "c1", command)
    assert (found.stdout[-3:], len(found.stdout), found.stdout_dropped_bytes) == (b"end", 1000, 3000003 - 1000)


async def test_cancelling_ends_the_command_whether_it_runs_or_waits(client: AgentClient, shell: str) -> None:
    running = asyncio.create_task(client.shell_exec(shell, "c1", text("sleep 60")))
    waiting = asyncio.create_task(client.shell_exec(shell, "c2", text("echo never >&2; sleep 60")))
    while (await client.shell(shell)).queued < 1:
        await asyncio.sleep(0.01)
    for task in (waiting, running):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(60):
        assert (await client.shell_exec(shell, "c3", text("echo on"))).stdout == b"on\n"


async def test_a_kept_command_is_one_of_the_shell(client: AgentClient, shell: str) -> None:
    await client.shell_start(shell, "c1", text("sleep 60"), keep_bytes=4096)
    await client.shell_start(shell, "c2", text("true"), keep_bytes=4096)
    first, second = await client.commands()
    assert (first.shell, first.queued, second.queued, second.argv) == (shell, False, True, ("true",))
    await client.forget("c1")
    assert (await client.wait("c2", 10)).exit is not None
    with pytest.raises(Conflict):
        await client.shell_start(shell, "c2", text("true"), keep_bytes=4096)


async def test_sixty_four_commands_wait_and_no_more(client: AgentClient, shell: str) -> None:
    for number in range(65):
        await client.shell_start(shell, f"c{number}", text("sleep 60"), keep_bytes=4096)
    with pytest.raises(Conflict, match="wait"):
        await client.shell_start(shell, "c65", text("true"), keep_bytes=4096)
    await client.close_shell(shell)
    ends = [one.exit for one in await client.commands()]
    assert [end.why for end in ends if end] == [Why.KILLED] + [Why.CANCELED] * 64


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "s" * 65},
        {"pid": -1},
        {"cwd": "x" * 13000},
        {"queued": 2**64},
        {"running": None},
        {"exit": {"code": 256}},
        {"job_control": 1},
    ],
)
async def test_a_shell_that_is_none_is_a_breach(lied_to: tuple[AgentClient, Liar], wrong: dict[str, object]) -> None:
    client, liar = lied_to

    async def lie() -> None:
        channel, _ = await liar.hear_call()
        await liar.say(Kind.RESULT, channel, SHELL | wrong)

    lying = asyncio.create_task(lie())
    with pytest.raises(AgentViolation):
        await client.shell("s1")
    await lying
    assert client.is_closed


async def test_too_many_shells_are_a_breach(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to

    async def lie() -> None:
        channel, _ = await liar.hear_call()
        await liar.say(Kind.RESULT, channel, {"shells": [SHELL] * 65})

    lying = asyncio.create_task(lie())
    with pytest.raises(AgentViolation):
        await client.shells()
    await lying


async def test_a_gap_in_buffered_output_drops_what_was_before(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to

    async def lie() -> None:
        channel, call = await liar.hear_call()
        assert (call["op"], call["attach"], call["timeout_ms"]) == ("shell_run", True, 1500)
        await liar.say(Kind.EVENT, channel, {"event": "started", "id": "c1", "pid": 5})
        await liar.say(Kind.DATA, channel, b"before")
        await liar.say(Kind.EVENT, channel, {"event": "gap", "lost": 10})
        await liar.say(Kind.DATA, channel, b"after")
        await liar.say(Kind.RESULT, channel, {"code": 0})

    lying = asyncio.create_task(lie())
    found = await client.shell_exec("s1", "c1", text("x", timeout_s=1.5))
    await lying
    assert (found.stdout, found.stdout_dropped_bytes, found.stderr_dropped_bytes) == (b"after", 16, 0)


async def test_an_older_agent_has_no_shells(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to

    async def lie() -> None:
        channel, _ = await liar.hear_call()
        await liar.say(Kind.FAIL, channel, {"kind": "unsupported", "text": "no such operation"})

    lying = asyncio.create_task(lie())
    with pytest.raises(Unsupported):
        await client.open_shell("s1", ShellSpec())
    await lying
