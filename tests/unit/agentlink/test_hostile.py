"""What a hostile agent can send, and that each of it ends in one of three errors, quickly and in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from cove.agentlink import files
from cove.agentlink.client import AgentClient
from cove.agentlink.connection import Connection
from cove.agentlink.frames import HEADER, INITIAL_CREDIT_BYTES, Frame, Kind
from cove.model.errors import (
    AgentTimeout,
    AgentViolation,
    BadRequest,
    CoveError,
    FileError,
    NotFound,
    SandboxGone,
    TooLarge,
)
from cove.model.execs import Chunk, ExecSpec, Gap, Paused
from cove.model.shells import ShellCommand
from cove.model.watches import WatchEvent, WatchPaused

if TYPE_CHECKING:
    from conftest import Liar

TRUE = ExecSpec(argv=("true",))
EXIT = {"code": 0, "signal": None, "timed_out": False, "duration_us": 1, "cpu_us": 1, "max_rss_bytes": 1, "pid": 2}
STATS = {"commands": 0, "attached": 0, "goroutines": 1, "heap_bytes": 1, "uptime_ms": 1}
STAT = {"path": "/x", "name": "x", "kind": "file", "size": 1, "mode": 420, "uid": 0, "gid": 0, "mtime": 1.5}


async def fails(
    lied_to: tuple[AgentClient, Liar],
    answers: list[tuple[int, int, object]],
    call: Callable[[AgentClient], Awaitable[object]],
) -> CoveError:
    """Make `call` on the client, send `answers`, return the error; the connection must be closed by it."""
    client, liar = lied_to

    async def lie() -> None:
        await liar.hear_call()
        for kind, channel, payload in answers:
            try:
                await liar.say(kind, channel, payload)
            except ConnectionError:
                return

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(lie())
        with pytest.raises(CoveError) as caught:
            await call(client)
    return caught.value


BREACHES = {
    "a kind that is none": [(0x7F, 1, b"")],
    "a call from the agent": [(Kind.CALL, 1, b"{}")],
    "cancel from the agent": [(Kind.CANCEL, 1, b"")],
    "a channel that is not open": [(Kind.RESULT, 9, EXIT)],
    "a result on channel 0": [(Kind.RESULT, 0, EXIT)],
    "a second hello": [(Kind.HELLO, 0, b"{}")],
    "a pong that answers nothing": [(Kind.PONG, 0, b"x")],
    "credit of three bytes": [(Kind.CREDIT, 1, b"abc")],
    "end of output from a command": [(Kind.EOF, 1, b"")],
    "no JSON": [(Kind.RESULT, 1, b"{]")],
    "JSON that is not UTF-8": [(Kind.RESULT, 1, b'{"code":"\xff"}')],
    "a list for an object": [(Kind.RESULT, 1, b"[]")],
    "a text for a number": [(Kind.RESULT, 1, {**EXIT, "code": "0"})],
    "a number beyond 64 bits": [(Kind.RESULT, 1, {**EXIT, "max_rss_bytes": 2**63})],
    "a negative size": [(Kind.RESULT, 1, {**EXIT, "max_rss_bytes": -1})],
    "a missing field": [(Kind.RESULT, 1, {})],
    "nesting without end": [(Kind.RESULT, 1, b'{"x":' + b"[" * 100_000)],
    "a fail that is none": [(Kind.FAIL, 1, b"{}")],
    "a fail of 20 KB": [(Kind.FAIL, 1, {"kind": "io", "text": "x" * 20_000})],
    "ten thousand events": [(Kind.EVENT, 1, {"event": "started", "id": "c1", "pid": 1})] * 10_000,
}


@pytest.mark.parametrize("answers", BREACHES.values(), ids=BREACHES)
async def test_a_breach_is_a_violation_and_closes(
    lied_to: tuple[AgentClient, Liar], answers: list[tuple[int, int, object]]
) -> None:
    error = await fails(lied_to, answers, lambda client: client.exec(TRUE))
    assert isinstance(error, AgentViolation)
    client, liar = lied_to
    assert client.is_closed
    await liar.hear_end()
    with pytest.raises(AgentViolation):
        await client.stats()


async def test_output_beyond_the_credit_is_a_violation(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    async with client.exec_stream(TRUE) as events:
        await liar.hear_call()
        for _ in range(5):
            await liar.say(Kind.DATA, 1, bytes(INITIAL_CREDIT_BYTES // 4))
        await liar.hear_end()
        with pytest.raises(AgentViolation):
            async for _ in events:
                pass


async def test_output_on_a_call_without_output_is_a_violation(lied_to: tuple[AgentClient, Liar]) -> None:
    error = await fails(lied_to, [(Kind.DATA, 1, b"x")], lambda client: client.stat("/x"))
    assert isinstance(error, AgentViolation)


async def test_a_flood_of_one_byte_frames_stays_small_in_memory(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    frames = b"".join(HEADER.pack(1, kind, 1) + b"x" for kind in (Kind.DATA, Kind.DATA_ERR) * 2000)
    async with client.exec_stream(TRUE) as events:
        await liar.hear_call()
        tracemalloc.start()
        for _ in range(50):  # 200 000 bytes in as many frames
            await liar.raw(frames)
        await liar.say(Kind.RESULT, 1, EXIT)
        async with asyncio.TaskGroup() as group:  # frames are taken in their order: after this one all of them were
            group.create_task(client.stats())
            channel, _ = await liar.hear_call()
            await liar.say(Kind.RESULT, channel, STATS)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size < 4 * 1024 * 1024
        chunks = [event.data async for event in events if isinstance(event, Chunk)]
    assert sum(map(len, chunks)) == 200_000
    assert len(chunks) < 2000


async def test_tiny_frames_do_not_hold_the_loop(
    lied_to: tuple[AgentClient, Liar], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, liar = lied_to
    turns = [0]
    dispatch = Connection._dispatch

    def counted(connection: Connection, frame: Frame) -> None:
        turns[-1] += 1
        dispatch(connection, frame)

    async def tick() -> None:
        while True:
            turns.append(0)
            await asyncio.sleep(0)

    monkeypatch.setattr(Connection, "_dispatch", counted)
    event = json.dumps({"event": "gap", "lost": 1}).encode()
    frames = (HEADER.pack(len(event), Kind.EVENT, 1) + event + HEADER.pack(1, Kind.DATA, 1) + b"x") * 2000
    async with client.exec_stream(TRUE) as events:
        await liar.hear_call()
        ticking = asyncio.create_task(tick())
        await liar.raw(frames)
        await liar.say(Kind.RESULT, 1, EXIT)
        seen = [event async for event in events]
        ticking.cancel()
    assert sum(isinstance(one, Chunk) for one in seen) == sum(isinstance(one, Gap) for one in seen) == 2000
    assert max(turns) <= 2 * 256  # what was left, and a read, may meet in one turn


async def test_a_million_entries_are_a_violation(lied_to: tuple[AgentClient, Liar]) -> None:
    entry = b'{"path":"/","name":"","kind":"file","size":0,"mode":0,"uid":0,"gid":0,"mtime":0},'
    many = b'{"entries":[' + (entry * 12_000)[:-1] + b'],"more":false}'
    assert len(many) < 1024 * 1024
    error = await fails(lied_to, [(Kind.RESULT, 1, many)], lambda client: client.list("/"))
    assert isinstance(error, AgentViolation)
    # 1e6 of them do not fit into a frame: the header alone is refused.
    assert 1_000_000 * len(entry) > 1024 * 1024


async def test_half_a_frame_and_then_nothing_ends_as_gone(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to

    async def break_off() -> None:
        await liar.hear_call()
        await liar.raw(HEADER.pack(100, Kind.RESULT, 1) + b"{")
        liar.close()

    async with asyncio.TaskGroup() as group:
        group.create_task(break_off())
        with pytest.raises(SandboxGone):
            await client.exec(TRUE)


async def test_silence_ends_as_a_timeout_and_a_cancel(
    lied_to: tuple[AgentClient, Liar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CALL_TIMEOUT_S", 0.05)
    client, liar = lied_to
    with pytest.raises(AgentTimeout):
        async with client.read("/x"):
            pass
    assert [(await liar.hear())[0] for _ in range(2)] == [Kind.CALL, Kind.CANCEL]
    assert not client.is_closed


async def test_a_timed_command_without_an_answer_ends_soon_after_its_limit(
    lied_to: tuple[AgentClient, Liar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.agentlink.commands.GUARD_S", 0.05)
    client, _ = lied_to
    with pytest.raises(AgentTimeout):
        await client.exec(ExecSpec(argv=("true",), timeout_s=0.05))


async def test_a_call_that_is_left_lets_go_of_who_still_uses_it(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to

    async def begin() -> None:
        await liar.hear_call()
        await liar.say(Kind.EVENT, 1, {"event": "started", "id": "c1", "pid": 1})

    beginning = asyncio.create_task(begin())
    async with client.exec_session(TRUE) as session:
        await beginning
        assert await anext(session)
        writing = asyncio.create_task(session.write(bytes(2 * INITIAL_CREDIT_BYTES)))
        reading = asyncio.create_task(anext(session))
        await asyncio.sleep(0.02)
    async with asyncio.timeout(60):  # although the agent never says that it has ended
        assert await writing is False
        with pytest.raises(SandboxGone):
            await reading


async def test_a_shells_command_is_limited_however_slowly_its_output_drips(
    lied_to: tuple[AgentClient, Liar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.agentlink.shells.STOP_S", 0.3)
    client, liar = lied_to
    running = asyncio.create_task(client.shell_exec("s1", "c1", ShellCommand(text="x", timeout_s=0.1)))
    await liar.hear_call()
    await liar.say(Kind.EVENT, 1, {"event": "started", "id": "c1", "pid": 1})
    for _ in range(200):
        if running.done():
            break
        await liar.say(Kind.DATA, 1, b"x")
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(AgentTimeout):
        await running


async def test_output_of_a_canceled_call_is_dropped_until_its_end(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    async with client.exec_stream(TRUE):
        await liar.hear_call()
    for _ in range(20):  # far beyond any credit: it may all have been on its way
        await liar.say(Kind.DATA, 1, bytes(200_000))
    await liar.say(Kind.FAIL, 1, {"kind": "canceled", "text": ""})
    await liar.say(Kind.DATA, 1, b"x")
    await asyncio.wait_for(client.wait_closed(), 60)  # after the end it is a breach again


async def test_a_silent_stranger_is_no_agent(pair: tuple[socket.socket, Liar]) -> None:
    with pytest.raises(AgentTimeout):
        await AgentClient.connect(pair[0], timeout_s=0.05)


@pytest.mark.parametrize("hello", [{"protocol": 2, "agent": "", "build": ""}, {}, [], {"protocol": "1"}])
async def test_a_hello_that_is_none_is_a_violation(pair: tuple[socket.socket, Liar], hello: object) -> None:
    ours, liar = pair
    await liar.say(Kind.HELLO, 0, hello)
    with pytest.raises(AgentViolation):
        await AgentClient.connect(ours)


async def test_a_closed_socket_is_a_sandbox_that_is_gone(pair: tuple[socket.socket, Liar]) -> None:
    ours, liar = pair
    liar.close()
    with pytest.raises(SandboxGone):
        await AgentClient.connect(ours)


@pytest.mark.parametrize(
    ("kind", "call", "expected"),
    [
        ("not_found", lambda c: c.command("x"), NotFound),
        ("invalid", lambda c: c.exec(TRUE), BadRequest),
        ("not_found", lambda c: c.stat("/x"), FileError),
        ("os.system", lambda c: c.stat("/x"), FileError),
    ],
)
async def test_a_refusal_keeps_the_connection_and_cuts_its_text(
    lied_to: tuple[AgentClient, Liar],
    kind: str,
    call: Callable[[AgentClient], Awaitable[object]],
    expected: type[CoveError],
) -> None:
    error = await fails(lied_to, [(Kind.FAIL, 1, {"kind": kind, "text": "\x1b[31m" * 1000})], call)
    assert isinstance(error, expected)
    assert len(error.public) <= 1024
    assert error.internal == ""
    assert not lied_to[0].is_closed
    if isinstance(error, FileError) and kind == "os.system":
        assert error.reason == "io"


async def test_an_absurd_time_is_no_time(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(client.stat("/x"))
        await liar.hear_call()
        await liar.say(Kind.RESULT, 1, {**STAT, "mtime": 1e300})
    assert asked.result().mtime == 0.0


@pytest.mark.parametrize(
    "frames",
    [
        [(Kind.EOF, b""), (Kind.EOF, b"")],
        [(Kind.EOF, b""), (Kind.DATA, b"x")],
        [(Kind.DATA, b"")],
        [(Kind.DATA_ERR, b"")],
        [(Kind.CREDIT, (0).to_bytes(4, "big"))],
        [(Kind.CREDIT, (1).to_bytes(4, "big"))],
    ],
    ids=["second-eof", "data-after-eof", "empty-data", "empty-data-err", "no-credit", "credit-for-nothing"],
)
async def test_frames_that_cost_nothing_cannot_be_repeated(lied_to: tuple[AgentClient, Liar], frames: list) -> None:
    client, liar = lied_to
    async with client.exec_stream(TRUE) as events:
        await liar.hear_call()
        for kind, payload in frames:
            await liar.say(kind, 1, payload)
        with pytest.raises(AgentViolation):
            async for _ in events:
                pass


async def test_a_command_beyond_one_frame_is_too_large_and_hurts_nothing(lied_to: tuple[AgentClient, Liar]) -> None:
    client, _ = lied_to
    with pytest.raises(TooLarge) as caught:
        await client.exec(ExecSpec(argv=("echo", "\x01" * 200_000)))
    assert caught.value.field == "command"
    assert not client.is_closed


async def test_a_page_of_output_is_no_more_than_was_asked_for(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    async with client.output("c1", limit_bytes=100) as events:
        await liar.hear_call()
        await liar.say(Kind.DATA, 1, b"x" * 101)
        with pytest.raises(AgentViolation):
            async for _ in events:
                pass


async def test_a_page_of_tiny_pieces_ends_early_and_says_where(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    gap = json.dumps({"event": "gap", "lost": 2}).encode()
    pair = HEADER.pack(len(gap), Kind.EVENT, 1) + gap + HEADER.pack(1, Kind.DATA, 1) + b"x"

    async def lie() -> None:
        await liar.hear_call()
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                await liar.raw(pair * 100)
            await liar.say(Kind.RESULT, 1, {"cursor": 60_000, "ended": False})

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        lying = group.create_task(lie())
        async with client.output("c1", cursor=7, limit_bytes=1 << 20) as events:
            seen = [event async for event in events]
        lying.cancel()
    assert len(seen) == 16 * 1024 + 1
    assert seen[-1] == Paused(cursor=7 + 8 * 1024 * 3)


LINE = {"kind": "create", "path": "/w/f", "at": 1.0, "directory": False}


async def events_of(lied_to: tuple[AgentClient, Liar], *data: bytes, limit: int = 10) -> list[WatchEvent]:
    """A page of a watch whose agent says `data` and then that all was well."""
    client, liar = lied_to

    async def lie() -> None:
        channel, _ = await liar.hear_call()
        with contextlib.suppress(ConnectionError):
            for one in data:
                await liar.say(Kind.DATA, channel, one)
            await liar.say(Kind.RESULT, channel, {"cursor": 3, "ended": False})

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(lie())
        async with client.watch_events("w1", limit=limit) as events:
            return [event async for event in events]


def line(**more: object) -> bytes:
    return json.dumps(LINE | more).encode() + b"\n"


async def test_events_may_come_in_any_pieces(lied_to: tuple[AgentClient, Liar]) -> None:
    both = line() + line(kind="gap", lost=4) + line(kind="move", source="/w/e", directory=True)
    *changes, last = await events_of(lied_to, both[:10], both[10:11], both[11:-1], b"\n")
    assert [(one.cursor, type(one).__name__) for one in changes] == [(1, "Change"), (5, "Lost"), (6, "Change")]
    assert last == WatchPaused(3)


@pytest.mark.parametrize(
    "said",
    [
        line(kind="open"),
        line(path="/" + "x" * 9000),
        line(path=5),
        b"[]\n",
        b"\n",
        b"{}\n",
        b"x" * 70_000,
        line()[:-1],
        line(kind="gap", lost=-1),
        line() * 21,
        line(kind="gap", lost=1) * 21,
    ],
)
async def test_events_that_are_none_are_a_violation(lied_to: tuple[AgentClient, Liar], said: bytes) -> None:
    with pytest.raises((AgentViolation, ExceptionGroup)) as caught:
        await events_of(lied_to, said)
    assert caught.group_contains(AgentViolation) if isinstance(caught.value, ExceptionGroup) else True
    assert lied_to[0].is_closed


async def test_a_page_of_long_paths_ends_early_and_says_where(lied_to: tuple[AgentClient, Liar]) -> None:
    long = line(path="/" + "x" * 8000)
    *changes, last = await events_of(lied_to, *[long * 20] * 20, limit=1000)
    assert len(changes) == 132
    assert last == WatchPaused(132)


async def test_a_watch_says_of_itself_what_it_may_and_no_more(lied_to: tuple[AgentClient, Liar]) -> None:
    watch = {"id": "w1", "path": "/w", "recursive": True, "kinds": ["create"], "started_at": 1.0, "running": True}
    watch |= {"cursor": 0, "oldest_cursor": 0}
    error = await fails(lied_to, [(Kind.RESULT, 1, {"watches": [watch] * 65})], lambda client: client.watches())
    assert isinstance(error, AgentViolation)
