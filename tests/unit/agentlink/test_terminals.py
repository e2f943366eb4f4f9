"""Terminals with the real agent, run as a plain process, and with a lying one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from cove.agentlink.client import AgentClient, TerminalStream
from cove.agentlink.frames import Kind
from cove.model.errors import AgentViolation, BadRequest, Conflict, NotFound, Unsupported
from cove.model.execs import Chunk, Ended, ExecSpec, Gap, Why
from cove.model.terminals import Terminal, TerminalSize

if TYPE_CHECKING:
    from conftest import Liar, RunningAgent

SIZE = TerminalSize(80, 24)


async def opened(client: AgentClient, script: str, id_: str = "t1", keep_bytes: int = 65536, **more: Any) -> str:
    await client.start_terminal(id_, ExecSpec(shell=script, **more), size=SIZE, keep_bytes=keep_bytes)
    return id_


async def until(stream: TerminalStream, want: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(60):
        while want not in seen:
            event = await anext(stream)
            assert isinstance(event, Chunk), event
            seen += event.data
    return seen


async def rest(stream: TerminalStream) -> tuple[bytes, int, Ended]:
    seen, lost = b"", 0
    async with asyncio.timeout(60):
        async for event in stream:
            match event:
                case Chunk(_, data):
                    seen += data
                case Gap(lost_bytes):
                    lost += lost_bytes
                case Ended():
                    return seen, lost, event
                case _:
                    raise AssertionError(event)
    raise AssertionError("no end")


async def test_who_attaches_sees_types_and_learns_the_end(client: AgentClient) -> None:
    await opened(client, "echo hello; read a; echo got $a; exit 7")
    async with client.attach("t1", cursor=None) as stream:
        assert (stream.cursor, stream.size) == (0, SIZE)
        await until(stream, b"hello\r\n")
        assert await stream.write(b"x\r")
        seen, lost, ended = await rest(stream)
        assert (seen, lost, ended.exit.code) == (b"x\r\ngot x\r\n", 0, 7)
        assert ended.cursor == len(b"hello\r\n" + seen)
        assert not await stream.write(b"more")


async def test_several_look_and_each_may_type(client: AgentClient) -> None:
    await opened(client, "stty -echo; echo go; read a; read b; echo $a$b")
    async with client.attach("t1", cursor=None) as one, client.attach("t1", cursor=None) as two:
        await until(one, b"go\r\n")
        await one.write(b"a\r")
        await two.write(b"b\r")
        last = (await rest(one))[0]
        assert last in {b"ab\r\n", b"ba\r\n"}
        assert (await rest(two))[0].endswith(last)


async def test_who_comes_back_goes_on_where_it_was(client: AgentClient, agent: RunningAgent) -> None:
    await opened(client, "echo one; read a; echo two")
    async with client.attach("t1", cursor=None) as stream:
        seen = await until(stream, b"one\r\n")
        cursor = stream.cursor + len(seen)
    await client.close()
    again = await agent.connect()
    async with again.attach("t1", cursor=cursor) as stream:
        assert stream.cursor == cursor
        await stream.write(b"\r")
        assert (await rest(stream))[0] == b"\r\ntwo\r\n"
    async with again.attach("t1", cursor=None) as stream:
        assert (await rest(stream))[0] == b"one\r\n\r\ntwo\r\n"
    await again.close()


async def test_output_waits_for_a_viewer_who_reads_and_loses_nothing(client: AgentClient) -> None:
    await opened(client, "seq 400000", keep_bytes=4096)
    async with client.attach("t1", cursor=None) as stream:
        seen, lost, _ = await rest(stream)
    # What came before the attach may be lost; from then on nothing is.
    first = int(seen[:20].split(b"\r\n")[1])
    assert seen[seen.index(b"\r\n") + 2 :].split() == [b"%d" % n for n in range(first, 400001)]
    assert lost < 400000


async def test_a_viewer_who_is_away_for_a_moment_loses_nothing(client: AgentClient, agent: RunningAgent) -> None:
    await opened(client, "read a; seq 300000", keep_bytes=1 << 20)
    seen = b""
    async with client.attach("t1", cursor=0) as stream:
        await stream.write(b"\r")
        while len(seen) < 200_000:
            event = await anext(stream)
            assert isinstance(event, Chunk)
            seen += event.data
    await client.close()
    await asyncio.sleep(0.5)
    again = await agent.connect()
    async with again.attach("t1", cursor=len(seen)) as stream:
        more, lost, ended = await rest(stream)
    assert lost == 0
    assert (seen + more).split() == [b"%d" % n for n in range(1, 300001)]
    assert ended.exit.code == 0
    await again.close()


async def test_without_anybody_the_program_goes_on_and_the_oldest_is_dropped(client: AgentClient) -> None:
    await opened(client, "seq 100000; echo end", keep_bytes=4096)
    async with asyncio.timeout(60):
        await client.wait("t1", None)
    async with client.attach("t1", cursor=0) as stream:
        seen, lost, _ = await rest(stream)
    assert seen.endswith(b"100000\r\nend\r\n")
    assert (len(seen), lost > 0) == (4096, True)


async def test_a_program_that_does_not_read_holds_up_who_types_only(client: AgentClient) -> None:
    await opened(client, "stty raw -echo; echo ready; sleep 60")
    async with client.attach("t1", cursor=None) as one, client.attach("t1", cursor=None) as two:
        await until(one, b"ready")
        typing = asyncio.create_task(one.write(bytes(5_000_000)))
        await asyncio.sleep(0.2)
        assert not typing.done()
        await client.signal("t1", 9)
        assert (await rest(two))[2].exit.signal == 9
        assert not await typing


async def test_its_facts_and_its_size_are_told(client: AgentClient) -> None:
    await opened(client, "sleep 60")
    await client.start("c1", ExecSpec(argv=("sleep", "60")), keep_bytes=4096, stdin_open=False)
    await client.resize("t1", TerminalSize(132, 50))
    found = await client.terminal("t1")
    assert isinstance(found, Terminal)
    assert (found.size, found.running, found.id) == (TerminalSize(132, 50), True, "t1")
    assert [one.id for one in await client.terminals()] == ["t1"]
    assert [one.id for one in await client.commands()] == ["c1"]
    with pytest.raises(NotFound):
        await client.terminal("c1")
    with pytest.raises(BadRequest):
        await client.resize("c1", SIZE)
    with pytest.raises(BadRequest):
        async with client.attach("c1", cursor=None):
            pass
    with pytest.raises(NotFound):
        async with client.attach("t2", cursor=None):
            pass
    with pytest.raises(BadRequest):
        async with client.attach("t1", cursor=10**6):
            pass
    await client.forget("t1")
    with pytest.raises(NotFound):
        await client.resize("t1", SIZE)


async def test_many_resizes_are_cheap(client: AgentClient) -> None:
    await opened(client, "trap 'n=$((n+1))' WINCH; echo ready; while :; do read line && echo $n && stty size; done")
    async with client.attach("t1", cursor=None) as stream, asyncio.timeout(60):
        await until(stream, b"ready")
        for number in range(2000):
            await client.resize("t1", TerminalSize(80 + number % 100, 24))
        await stream.write(b"\r")
        await until(stream, b"24 179")


async def test_a_terminal_that_has_ended_is_a_conflict(client: AgentClient) -> None:
    await opened(client, "true")
    await client.wait("t1", None)
    for call in (client.resize("t1", SIZE), client.signal("t1", 2)):
        with pytest.raises(Conflict):
            await call


async def test_a_time_limit_ends_every_job_of_its_session(client: AgentClient) -> None:
    await opened(client, "sleep 61 & sleep 62", timeout_s=0.2)
    async with client.attach("t1", cursor=None) as stream:
        assert (await rest(stream))[2].exit.why is Why.TIMEOUT


async def test_a_page_waits_for_the_first_byte(client: AgentClient) -> None:
    await opened(client, "sleep 0.3; printf x; sleep 60")
    async with client.output("t1", wait_s=10) as events:
        chunk, paused = [one async for one in events]
    assert isinstance(chunk, Chunk)
    assert chunk.data == b"x"
    assert not isinstance(paused, Ended)


async def test_an_agent_without_terminals_is_named(lied_to: tuple[AgentClient, Liar]) -> None:
    client, _ = lied_to
    with pytest.raises(Unsupported):
        await client.start_terminal("t1", ExecSpec(), size=SIZE, keep_bytes=4096)


@pytest.fixture
async def modern(pair: Any) -> AsyncIterator[tuple[AgentClient, Liar]]:
    ours, liar = pair
    await liar.say(Kind.HELLO, 0, {"protocol": 1, "agent": "t", "build": "b", "pid": 1, "features": ["pty"]})
    client = await AgentClient.connect(ours)
    await liar.hear()
    yield client, liar
    await client.close()


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.DATA, b"x"),
        (Kind.EVENT, b"{}"),
        (Kind.EVENT, json.dumps({"event": "attached", "cursor": -1, "pty": {"cols": 1, "rows": 1}}).encode()),
        (Kind.EVENT, json.dumps({"event": "attached", "cursor": 1, "pty": {"cols": 65536, "rows": 1}}).encode()),
        (Kind.EVENT, json.dumps({"event": "gap", "cursor": 1, "pty": {"cols": 1, "rows": 1}}).encode()),
        (Kind.EVENT, json.dumps({"event": "attached", "cursor": 1, "pty": None}).encode()),
        (Kind.RESULT, b"{}"),
    ],
)
async def test_an_attach_that_begins_with_anything_else_is_a_breach(
    modern: tuple[AgentClient, Liar], kind: Kind, payload: bytes
) -> None:
    client, liar = modern

    async def attach() -> None:
        async with client.attach("t1", cursor=None):
            pass

    attaching = asyncio.create_task(attach())
    channel, _ = await liar.hear_call()
    await liar.say(kind, channel, payload)
    with pytest.raises(AgentViolation):
        await attaching
    assert client.is_closed


async def test_credit_goes_back_when_what_was_got_is_passed_on(modern: tuple[AgentClient, Liar]) -> None:
    client, liar = modern

    async def look() -> list[object]:
        seen: list[object] = []
        async with client.attach("t1", cursor=None) as stream:
            seen += [await anext(stream), await anext(stream)]
            pending = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            pending.cancel()
        return seen

    looking = asyncio.create_task(look())
    channel, _ = await liar.hear_call()
    await liar.say(
        Kind.EVENT, channel, json.dumps({"event": "attached", "cursor": 0, "pty": {"cols": 1, "rows": 1}}).encode()
    )
    await liar.say(Kind.DATA, channel, b"abc")
    await liar.say(Kind.DATA, channel, b"de")
    heard = []
    while not heard or heard[-1][0] != Kind.CANCEL:
        heard.append(await liar.hear())
    await looking
    credit = [int.from_bytes(payload, "big") for kind, _, payload in heard if kind == Kind.CREDIT]
    assert sum(credit) == 5
