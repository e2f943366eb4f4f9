"""What a hostile agent can do around a suspension: it ends the session, in bounded time and memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from cove.agentlink.client import AgentClient
from cove.agentlink.frames import Kind
from cove.model.errors import AgentTimeout, AgentViolation, Conflict, CoveError, SandboxGone
from cove.model.execs import ExecSpec

from .conftest import HELLO, Liar

HELLO_KEEPS = HELLO | {"features": ["session"]}
TOKEN = "00112233445566778899aabbccddeeff"
EXIT = {"code": 0, "signal": None, "timed_out": False, "duration_us": 1, "cpu_us": 1, "max_rss_bytes": 1, "pid": 2}


@pytest.fixture
async def keeper(pair: tuple[socket.socket, Liar]) -> AsyncIterator[tuple[AgentClient, Liar]]:
    ours, liar = pair
    await liar.say(Kind.HELLO, 0, HELLO_KEEPS)
    client = await AgentClient.connect(ours)
    await liar.hear()
    yield client, liar
    client.drop()


async def suspended(keeper: tuple[AgentClient, Liar]) -> asyncio.Task[object]:
    """A client whose one call waits."""
    client, liar = keeper
    call = asyncio.ensure_future(client.exec(ExecSpec(argv=("true",))))
    assert (await liar.hear_call())[0] == 1

    async def answer() -> None:
        channel, said = await liar.hear_call()
        assert said == {"op": "quiesce", "keep": True}
        await liar.say(Kind.RESULT, channel, {"session": TOKEN})
        liar.close()

    await asyncio.gather(client.suspend(), answer())
    return call


def another() -> tuple[socket.socket, Liar]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, Liar(theirs)


@pytest.mark.parametrize("answer", [{"session": "x" * 65}, {"session": 5}, []])
async def test_a_token_that_is_none_ends_the_session(keeper: tuple[AgentClient, Liar], answer: object) -> None:
    client, liar = keeper

    async def lie() -> None:
        channel, _ = await liar.hear_call()
        await liar.say(Kind.RESULT, channel, answer)

    with pytest.raises(AgentViolation):
        await asyncio.gather(client.suspend(), lie())
    assert client.is_closed


@pytest.mark.parametrize(
    ("after", "error"),
    [
        ((Kind.DATA, 1, b"late"), AgentViolation),
        ((Kind.RESULT, 1, EXIT), AgentViolation),
        (b"\0\0\0\4", SandboxGone),  # half a frame, then the end
        (None, AgentTimeout),  # nothing, and no end
    ],
)
async def test_an_answer_that_is_not_the_last_word_ends_the_session(
    keeper: tuple[AgentClient, Liar], after: object, error: type[CoveError]
) -> None:
    client, liar = keeper
    call = asyncio.ensure_future(client.exec(ExecSpec(argv=("true",))))
    await liar.hear_call()

    async def lie() -> None:
        channel, _ = await liar.hear_call()
        await liar.say(Kind.RESULT, channel, {"session": TOKEN})
        if isinstance(after, tuple):
            await liar.say(*after)
        elif isinstance(after, bytes):
            await liar.raw(after)
            liar.close()

    with pytest.raises(error):
        await asyncio.gather(client.suspend(timeout_s=0.3), lie())
    assert client.is_closed
    with pytest.raises(error):
        await call


async def test_a_refusal_leaves_everything_as_it_was(keeper: tuple[AgentClient, Liar]) -> None:
    client, liar = keeper
    call = asyncio.ensure_future(client.exec(ExecSpec(argv=("true",))))
    await liar.hear_call()

    async def refuse() -> None:
        channel, _ = await liar.hear_call()
        await liar.say(Kind.FAIL, channel, {"kind": "busy", "text": "not now"})

    with pytest.raises(Conflict):
        await asyncio.gather(client.suspend(), refuse())
    assert not client.is_suspended
    await liar.say(Kind.RESULT, 1, EXIT)
    assert (await call).exit.code == 0  # type: ignore[attr-defined]


async def test_calls_go_on_where_the_session_is_taken_up(keeper: tuple[AgentClient, Liar]) -> None:
    client, _ = keeper
    call = await suspended(keeper)
    assert (client.is_suspended, client.is_closed) == (True, False)
    with pytest.raises(Conflict):
        await client.suspend()
    new = asyncio.ensure_future(client.stats())
    dropped = asyncio.ensure_future(client.stats())
    await asyncio.sleep(0)
    dropped.cancel()
    ours, liar = another()

    async def tell() -> None:
        await liar.say(Kind.HELLO, 0, HELLO_KEEPS)
        assert (await liar.hear())[2] == b'{"protocol":1,"resume":"%s"}' % TOKEN.encode()
        kind, _, token = await liar.hear()
        assert kind == Kind.PING
        await liar.say(Kind.PONG, 0, token)
        channel, said = await liar.hear_call()
        assert (channel, said["op"]) == (3, "stats")  # and not the one that was given up meanwhile
        await liar.say(Kind.RESULT, 1, EXIT)
        await liar.say(Kind.RESULT, 3, {"commands": 0, "attached": 0, "goroutines": 1, "heap_bytes": 1, "uptime_ms": 1})

    await asyncio.gather(client.resume_on(ours), tell())
    assert (await call).exit.code == 0  # type: ignore[attr-defined]
    await new
    with pytest.raises(asyncio.CancelledError):
        await dropped
    client.drop()
    liar.close()


@pytest.mark.parametrize("what", ["closes", "silent", "early", "other protocol"])
async def test_a_session_that_is_not_taken_up_ends_its_calls(keeper: tuple[AgentClient, Liar], what: str) -> None:
    client, _ = keeper
    call = await suspended(keeper)
    ours, liar = another()

    async def lie() -> None:
        if what == "early":
            await liar.say(Kind.RESULT, 1, EXIT)
        elif what == "other protocol":
            await liar.say(Kind.HELLO, 0, HELLO_KEEPS | {"protocol": 9})
        elif what == "closes":
            await liar.say(Kind.HELLO, 0, HELLO_KEEPS)
            await liar.hear()
            liar.close()

    with pytest.raises(CoveError):
        await asyncio.gather(client.resume_on(ours, timeout_s=0.3), lie())
    assert client.is_closed
    with pytest.raises(CoveError):
        await call
    liar.close()


async def test_a_dropped_session_ends_every_call(keeper: tuple[AgentClient, Liar]) -> None:
    client, _ = keeper
    call = await suspended(keeper)
    new = asyncio.ensure_future(client.stats())
    await asyncio.sleep(0)
    client.drop()
    for one in (call, new):
        with pytest.raises(SandboxGone):
            await one
    await client.wait_closed()
    ours, liar = another()
    with pytest.raises(SandboxGone):
        await client.resume_on(ours)
    liar.close()


async def test_what_waits_is_bounded(keeper: tuple[AgentClient, Liar]) -> None:
    client, _ = keeper
    await suspended(keeper)
    big = ExecSpec(argv=("true", "x" * 1_000_000))
    waiting = [asyncio.ensure_future(client.exec(big)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Conflict):
        await client.exec(big)
    client.drop()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_older_agent_is_not_asked_while_calls_are_under_way(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    call = asyncio.ensure_future(client.exec(ExecSpec(argv=("true",))))
    await liar.hear_call()
    with pytest.raises(Conflict, match="older"):
        await client.suspend()
    await liar.say(Kind.RESULT, 1, EXIT)
    assert (await call).exit.code == 0

    async def answer() -> None:
        channel, _ = await liar.hear_call()
        await liar.say(Kind.RESULT, channel, {})
        liar.close()

    await asyncio.gather(client.suspend(), answer())
    ours, again = another()
    await again.say(Kind.HELLO, 0, HELLO)

    async def greet() -> None:
        assert (await again.hear())[2] == b'{"protocol":1}'
        _, _, token = await again.hear()
        await again.say(Kind.PONG, 0, token)

    await asyncio.gather(client.resume_on(ours), greet())
    assert not client.is_suspended
    again.close()
