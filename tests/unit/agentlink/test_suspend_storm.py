"""Random interleavings of calls with suspensions: nothing is lost, nothing comes twice. With the real agent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest
import uvloop
from tests.tests_support import SOAK

from cove.agentlink.client import AgentClient
from cove.model.errors import AgentTimeout
from cove.model.execs import Chunk, ExecSpec
from cove.model.shells import ShellCommand, ShellSpec
from cove.model.terminals import TerminalSize
from cove.model.watches import Change, WatchSpec

from .conftest import RunningAgent, suspension

_SUSPENSIONS = 4000 if SOAK else 120
_KEEP = 4 * 1024 * 1024

Work = Callable[[AgentClient, Path, random.Random], Coroutine[None, None, None]]


async def _output_is_whole(client: AgentClient, home: Path, dice: random.Random) -> None:
    count = dice.choice((1, 300, 20_000))
    code = dice.randrange(5)
    done = await client.exec(ExecSpec(shell=f"seq {count}; echo $$ >&2; exit {code}"))
    assert done.stdout == b"".join(b"%d\n" % n for n in range(1, count + 1)), home
    assert done.exit.code == code
    assert done.stderr.strip().isdigit()


async def _input_comes_back(client: AgentClient, home: Path, dice: random.Random) -> None:
    data = dice.randbytes(dice.choice((1, 70_000, 2_500_000)))
    async with client.exec_session(ExecSpec(argv=("cat",))) as session, asyncio.TaskGroup() as tasks:

        async def write() -> None:
            for start in range(0, len(data), 65_536):
                assert await session.write(data[start : start + 65_536]), home
            session.write_eof()

        tasks.create_task(write())
        back = bytearray()
        async for event in session:
            if isinstance(event, Chunk):
                back += event.data
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


async def _files_are_whole(client: AgentClient, home: Path, dice: random.Random) -> None:
    data = dice.randbytes(dice.choice((0, 10, 300_000, 3_000_000)))
    path = str(home / f"file-{dice.random()}")

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]
            await asyncio.sleep(0)

    assert (await client.write(path, pieces())).size == len(data)
    async with client.read(path) as reader:
        assert b"".join([piece async for piece in reader]) == data
    assert await client.remove(path) == 1


async def _a_terminal_answers(client: AgentClient, home: Path, dice: random.Random) -> None:
    name = f"t{dice.randrange(1 << 40)}"
    spec = ExecSpec(shell="stty raw -echo; echo ready; exec cat", cwd=str(home))
    await client.start_terminal(name, spec, size=TerminalSize(cols=80, rows=24), keep_bytes=_KEEP)
    sent = b"".join(b"<%d>" % n for n in range(dice.choice((10, 3000))))
    got = bytearray()
    async with client.attach(name, cursor=None) as looks:
        while b"ready\r\n" not in got and b"ready\n" not in got:
            event = await anext(looks)
            assert isinstance(event, Chunk)
            got += event.data
        got.clear()
        for start in range(0, len(sent), 1000):
            assert await looks.write(sent[start : start + 1000])
        while len(got) < len(sent):
            event = await anext(looks)
            assert isinstance(event, Chunk)
            got += event.data
    assert got == sent
    await client.forget(name)


async def _a_cursor_counts_right(client: AgentClient, home: Path, dice: random.Random) -> None:
    name = f"k{dice.randrange(1 << 40)}"
    script = "for i in 1 2 3 4 5 6 7 8; do seq $i 2000; sleep 0.002; done"
    await client.start(name, ExecSpec(shell=script, cwd=str(home)), keep_bytes=_KEEP, stdin_open=False)
    async with client.output(name, cursor=0, follow=True) as events:
        got = b"".join([event.data async for event in events if isinstance(event, Chunk)])
    assert got == b"".join(b"%d\n" % n for first in range(1, 9) for n in range(first, 2001))
    await client.forget(name)


async def _a_shell_goes_on(client: AgentClient, home: Path, dice: random.Random) -> None:
    name = f"s{dice.randrange(1 << 40)}"
    await client.open_shell(name, ShellSpec(cwd=str(home)))
    await client.shell_exec(name, name + "a", ShellCommand(text="n=7"))
    done = await client.shell_exec(name, name + "b", ShellCommand(text="seq 3000; (exit $n)", timeout_s=60))
    assert (done.exit.code, done.stdout.count(b"\n")) == (7, 3000)
    await client.close_shell(name)


async def _an_abandoned_call_leaves_nothing(client: AgentClient, home: Path, dice: random.Random) -> None:
    mark = home / f"mark-{dice.random()}"
    try:
        async with asyncio.timeout(dice.random() / 50):
            await client.exec(ExecSpec(shell=f"sleep 5; touch {mark}"))
    except TimeoutError:
        pass
    try:
        await client.exec(ExecSpec(shell="sleep 5", timeout_s=0.01))
    except AgentTimeout as error:
        raise AssertionError("the limit of a caller ran while the sandbox did not") from error
    assert not mark.exists()


async def _changes_are_told(client: AgentClient, home: Path, dice: random.Random) -> None:
    """Each file, or that something was missed."""
    name = f"w{dice.randrange(1 << 40)}"
    place = home / name
    place.mkdir()
    await client.watch_start(name, WatchSpec(path=str(place)))
    async with client.watch_events(name, follow=True) as events:
        for number in range(5):
            (place / str(number)).touch()
            async with asyncio.timeout(60):
                while True:
                    event = await anext(events)
                    if isinstance(event, Change) and (event.path.endswith(f"/{number}") or event.kind == "overflow"):
                        break
    await client.watch_stop(name)


WORK: tuple[Work, ...] = (
    _output_is_whole,
    _input_comes_back,
    _files_are_whole,
    _a_terminal_answers,
    _a_cursor_counts_right,
    _a_shell_goes_on,
    _an_abandoned_call_leaves_nothing,
    _changes_are_told,
)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=("asyncio", "uvloop"))
def test_calls_lose_and_double_nothing(tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On the server's own kind of loop, and on the one with which all other tests of this directory run."""
    agent = RunningAgent(tmp_path)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_storm(agent, tmp_path))
    finally:
        agent.stop()


async def _storm(agent: RunningAgent, home: Path) -> None:
    client = await agent.connect()
    try:
        await _suspend_at_random(client, agent, home)
    finally:
        await client.close()


async def _suspend_at_random(client: AgentClient, agent: RunningAgent, home: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)  # noqa: S311 - a test
    is_over = False
    rounds = [0] * len(WORK)

    async def again_and_again(number: int) -> None:
        own = random.Random(seed + number)  # noqa: S311 - a test
        while not is_over or rounds[number] == 0:
            await WORK[number](client, home, own)
            rounds[number] += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(len(WORK)):
            tasks.create_task(again_and_again(number))
        for _ in range(_SUSPENSIONS):
            await asyncio.sleep(dice.choice((0, 0, 0.001, 0.02)) * dice.random())
            async with suspension(client, agent):
                await asyncio.sleep(dice.choice((0, 0.001, 0.01)) * dice.random())
        is_over = True
    assert min(rounds) > 0, (seed, rounds)
    assert await client.commands() == []
    stats = await client.stats()
    assert (stats.commands, stats.attached) == (0, 0), seed
