# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.core.verdict import judged
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Conflict, Forbidden, Gone, NotFound, Unsupported
from cove.model.execs import Chunk, Ended, ExecExit, ExecSpec, Started, Why
from cove.model.sandbox import SandboxSpec
from cove.model.state import State

TRUE = ExecSpec(argv=("true",))


@pytest.fixture
async def made(core):
    return await core.sandboxes.create(LOCAL, SandboxSpec())


@pytest.fixture
def box(driver, made):
    return driver.boxes[made.id]


async def test_a_command_runs_and_its_result_comes_back(core, made) -> None:
    result = await core.execs.run(LOCAL, made.name, TRUE)
    assert result.stdout == b"out"
    assert result.exit.why is Why.EXITED


async def test_a_kill_for_memory_is_told_as_such(core, made, box) -> None:
    box.agent.exit = ExecExit(code=137, why=Why.KILLED, signal=9)
    box.agent.on_exec = lambda: setattr(box, "ooms", box.ooms + 1)
    assert (await core.execs.run(LOCAL, made.id, TRUE)).exit.why is Why.OUT_OF_MEMORY
    async with core.execs.stream(LOCAL, made.id, TRUE) as events:
        *_, last = [event async for event in events]
    assert isinstance(last, Ended)
    assert last.exit.why is Why.OUT_OF_MEMORY


async def test_an_earlier_kill_for_memory_does_not_colour_a_later_kill(core, made, box) -> None:
    box.ooms = 3
    box.agent.exit = ExecExit(code=137, why=Why.KILLED, signal=9)
    assert (await core.execs.run(LOCAL, made.id, TRUE)).exit.why is Why.KILLED


async def test_a_sandbox_that_dies_under_a_command_is_a_result(core, made, box, eventually) -> None:
    box.agent.on_exec = box.die
    result = await core.execs.run(LOCAL, made.id, TRUE)
    assert result.exit.why is Why.SANDBOX_GONE
    await eventually(lambda: core.sandboxes.get(LOCAL, made.id).state is State.FAILED)
    with pytest.raises(Gone):
        await core.execs.run(LOCAL, made.id, TRUE)


async def test_a_stream_always_ends_in_ended(core, made, box) -> None:
    async with core.execs.stream(LOCAL, made.id, TRUE) as events:
        seen = [event async for event in events]
    assert [type(event) for event in seen] == [Started, Chunk, Ended]
    box.agent.on_exec = box.die
    async with core.execs.stream(LOCAL, made.id, TRUE) as events:
        seen = [event async for event in events]
    assert seen[-1] == Ended(exit=ExecExit(code=137, why=Why.SANDBOX_GONE, signal=9))


async def test_a_session_holds_the_sandbox_and_ends_with_the_last_word(core, made, box) -> None:
    async with core.execs.session(LOCAL, made.id, TRUE) as session:
        assert isinstance(await anext(session), Started)
        assert await session.write(b"in")
        session.write_eof()
        with pytest.raises(BadRequest):
            await session.signal(65)
        box.agent.exit = ExecExit(code=137, why=Why.KILLED, signal=9)
        box.ooms += 1
        *_, last = [event async for event in session]
    assert last.exit.why is Why.OUT_OF_MEMORY
    box.agent.on_exec = box.die
    async with core.execs.session(LOCAL, made.id, TRUE) as session:
        *_, last = [event async for event in session]
    assert last.exit.why is Why.SANDBOX_GONE


async def test_a_tool_that_an_older_agent_lacks_is_refused_with_what_helps(core, made, box) -> None:
    box.agent.hello = replace(box.agent.hello, features=())
    with pytest.raises(Unsupported, match="make it anew"):
        async with core.execs.session(LOCAL, made.id, ExecSpec(argv=("sftp",), tool=True)):
            pass


async def test_a_session_needs_the_scope(core, made) -> None:
    reader = Principal(key_id="k", name="k", project="default", scopes=frozenset({Scope.FILES}))
    with pytest.raises(Forbidden):
        async with core.execs.session(reader, made.id, TRUE):
            pass


async def test_a_command_keeps_an_idle_sandbox_awake_until_it_ends(core, driver, clock, eventually) -> None:
    made = await core.sandboxes.create(LOCAL, SandboxSpec(idle_timeout_s=10.0))
    agent = driver.boxes[made.id].agent
    agent.block = asyncio.Event()
    running = asyncio.create_task(core.execs.run(LOCAL, made.id, TRUE))
    await asyncio.sleep(0.01)
    clock.advance(60.0)
    await asyncio.sleep(0.01)
    assert core.sandboxes.get(LOCAL, made.id).state is State.RUNNING
    agent.block.set()
    await running
    await asyncio.sleep(0)
    clock.advance(11.0)
    await eventually(lambda: core.sandboxes.get(LOCAL, made.id).state is State.PAUSED)


async def test_a_background_command_alone_does_not_keep_it_awake(core, clock, eventually) -> None:
    made = await core.sandboxes.create(LOCAL, SandboxSpec(idle_timeout_s=10.0))
    command = await core.execs.start(LOCAL, made.id, ExecSpec(shell="sleep 1000"))
    assert command.running
    await asyncio.sleep(0)
    clock.advance(11.0)
    await eventually(lambda: core.sandboxes.get(LOCAL, made.id).state is State.PAUSED)
    assert (await core.execs.get(LOCAL, made.id, command.id)).id == command.id
    assert core.sandboxes.get(LOCAL, made.id).state is State.RUNNING


async def test_a_command_of_another_project_does_not_exist(core, made) -> None:
    stranger = Principal(key_id="k", name="k", project="other", scopes=frozenset(Scope) - {Scope.ADMIN})
    with pytest.raises(NotFound):
        await core.execs.run(stranger, made.id, TRUE)


async def test_reading_needs_read_and_running_needs_exec(core, made) -> None:
    reader = replace(LOCAL, scopes=frozenset({Scope.READ}))
    runner = replace(LOCAL, scopes=frozenset({Scope.EXEC}))
    with pytest.raises(Forbidden):
        await core.execs.run(reader, made.id, TRUE)
    with pytest.raises(Forbidden):
        await core.execs.start(reader, made.id, TRUE)
    with pytest.raises(Forbidden):
        await core.execs.list(runner, made.id)
    assert await core.execs.list(reader, made.id) == []
    assert (await core.execs.run(runner, made.id, TRUE)).exit.code == 0


@pytest.mark.parametrize("id_", ["", "UPPER", "../x", "x" * 33, "a\0b"])
async def test_what_is_no_command_id_is_a_bad_request(core, made, id_: str) -> None:
    with pytest.raises(BadRequest):
        await core.execs.get(LOCAL, made.id, id_)


async def test_signals_and_keep_bytes_have_their_ranges(core, made) -> None:
    for signal in (0, 65, -9):
        with pytest.raises(BadRequest, match="signal"):
            await core.execs.signal(LOCAL, made.id, "c1", signal)
    with pytest.raises(BadRequest, match="keep_bytes"):
        await core.execs.start(LOCAL, made.id, TRUE, keep_bytes=1)


@pytest.mark.parametrize(
    ("exit_", "was_memory", "code", "why"),
    [
        (ExecExit(code=0, why=Why.EXITED), True, 0, Why.EXITED),
        (ExecExit(code=137, why=Why.KILLED, signal=9), False, 137, Why.KILLED),
        (ExecExit(code=137, why=Why.KILLED, signal=9), True, 137, Why.OUT_OF_MEMORY),
        (ExecExit(code=137, why=Why.EXITED), True, 137, Why.OUT_OF_MEMORY),
        (ExecExit(code=143, why=Why.KILLED, signal=15), True, 143, Why.KILLED),
        (ExecExit(code=137, why=Why.TIMEOUT, signal=9), True, 124, Why.TIMEOUT),
        (ExecExit(code=1, why=Why.EXITED), True, 1, Why.EXITED),
    ],
)
def test_the_verdict_takes_the_first_cause_that_applies(
    exit_: ExecExit,
    was_memory: bool,  # noqa: FBT001 - a column of the table
    code: int,
    why: Why,
) -> None:
    verdict = judged(exit_, was_memory=was_memory)
    assert (verdict.code, verdict.why) == (code, why)


def test_a_driver_may_have_another_code_for_a_kill_for_memory() -> None:
    exit_ = ExecExit(code=1, why=Why.EXITED)
    assert judged(exit_, was_memory=True, oom_codes=frozenset((1, 137))).why is Why.OUT_OF_MEMORY
    assert judged(exit_, was_memory=False, oom_codes=frozenset((1, 137))).why is Why.EXITED


async def test_a_key_that_only_reads_cannot_wake_a_paused_sandbox(core, made) -> None:
    reader = replace(LOCAL, scopes=frozenset({Scope.READ}))
    await core.sandboxes.pause(LOCAL, made.id)
    with pytest.raises(Conflict):
        await core.execs.list(reader, made.id)
    with pytest.raises(Conflict):
        await core.execs.wait(reader, made.id, "c1")
    with pytest.raises(Conflict):
        async with core.execs.output(reader, made.id, "c1"):
            pass
    assert core.sandboxes.get(LOCAL, made.id).state is State.PAUSED
    runner = replace(LOCAL, scopes=frozenset({Scope.READ, Scope.EXEC}))
    assert await core.execs.list(runner, made.id) == []
    assert core.sandboxes.get(LOCAL, made.id).state is State.RUNNING
