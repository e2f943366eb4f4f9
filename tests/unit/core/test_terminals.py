# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest

from cove.core.access import LOCAL
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Conflict, Forbidden, NotFound, TooLarge
from cove.model.execs import Chunk, Ended, ExecExit, ExecSpec, Why
from cove.model.sandbox import SandboxSpec
from cove.model.terminals import TerminalSize

SHELL = ExecSpec()
SIZE = TerminalSize(80, 24)


def caller(*scopes: Scope) -> Principal:
    return Principal(key_id="k", name="k", project=LOCAL.project, scopes=frozenset(scopes))


@pytest.fixture
async def made(core):
    return await core.sandboxes.create(LOCAL, SandboxSpec())


@pytest.fixture
def box(driver, made):
    return driver.boxes[made.id]


@pytest.fixture
async def terminal(core, made):
    return await core.terminals.open(LOCAL, made.id, SHELL, size=SIZE)


async def test_a_terminal_has_an_id_of_its_kind_and_is_no_command(core, made, terminal) -> None:
    assert terminal.id.startswith("t")
    assert await core.terminals.list(LOCAL, made.id) == [terminal]
    assert await core.terminals.get(LOCAL, made.id, terminal.id) == terminal
    with pytest.raises(NotFound):
        await core.execs.get(LOCAL, made.id, terminal.id)
    with pytest.raises(NotFound):
        await core.execs.remove(LOCAL, made.id, terminal.id)


@pytest.mark.parametrize("id_", ["c0123456789ab", "t", "t0123456789AB", "../t0123456789ab", ""])
async def test_what_is_no_terminals_id_is_not_found(core, made, id_) -> None:
    for call in (
        core.terminals.get(LOCAL, made.id, id_),
        core.terminals.remove(LOCAL, made.id, id_),
        core.terminals.resize(LOCAL, made.id, id_, SIZE),
        core.terminals.signal(LOCAL, made.id, id_, 2),
    ):
        with pytest.raises(NotFound):
            await call


@pytest.mark.parametrize(
    ("spec", "size", "field"),
    [
        (SHELL, TerminalSize(0, 24), "cols"),
        (SHELL, TerminalSize(80, 10001), "rows"),
        (ExecSpec(argv=()), SIZE, "command"),
        (ExecSpec(argv=("a",), shell="b"), SIZE, "command"),
        (ExecSpec(stdin=b""), SIZE, "stdin"),
        (ExecSpec(env={"A=": ""}), SIZE, "env"),
        (ExecSpec(env={"A": "x" * 200_000}), SIZE, "env"),
        (ExecSpec(cwd="x"), SIZE, "cwd"),
        (ExecSpec(user="a b"), SIZE, "user"),
        (ExecSpec(timeout_s=0.0), SIZE, "timeout_s"),
    ],
)
async def test_a_bad_terminal_names_its_field(core, made, spec, size, field) -> None:
    with pytest.raises((BadRequest, TooLarge)) as caught:
        await core.terminals.open(LOCAL, made.id, spec, size=size)
    assert caught.value.field == field


async def test_looking_needs_read_and_the_rest_needs_exec(core, made, terminal) -> None:
    reader, other = caller(Scope.READ), caller(Scope.CREATE, Scope.FILES, Scope.DESTROY)
    assert await core.terminals.list(reader, made.id) == [terminal]
    with pytest.raises(Forbidden):
        await core.terminals.list(other, made.id)
    for call in (
        core.terminals.open(reader, made.id, SHELL, size=SIZE),
        core.terminals.resize(reader, made.id, terminal.id, SIZE),
        core.terminals.signal(reader, made.id, terminal.id, 2),
        core.terminals.remove(reader, made.id, terminal.id),
        core.terminals.attach(reader, made.id, terminal.id).__aenter__(),
    ):
        with pytest.raises(Forbidden):
            await call


async def test_a_paused_sandbox_is_resumed_for_a_look_but_not_by_a_reader(core, made, terminal, box) -> None:
    await core.sandboxes.pause(LOCAL, made.id)
    with pytest.raises(Conflict):
        await core.terminals.list(caller(Scope.READ), made.id)
    assert await core.terminals.list(LOCAL, made.id) == [terminal]
    assert not box.is_paused


async def test_who_is_attached_gets_the_last_word_on_the_end(core, made, terminal, box) -> None:
    box.agent.exit = ExecExit(code=137, why=Why.KILLED, signal=9)
    box.ooms = 1
    async with core.terminals.attach(LOCAL, made.id, terminal.id, cursor=0) as stream:
        chunk, ended = [event async for event in stream]
        assert (stream.cursor, stream.size, type(chunk)) == (0, SIZE, Chunk)
    assert isinstance(ended, Ended)
    assert (ended.exit.why, ended.cursor) == (Why.OUT_OF_MEMORY, 3)


async def test_a_sandbox_that_dies_under_a_terminal_is_its_end(core, made, terminal, box) -> None:
    box.agent.block = asyncio.Event()
    async with core.terminals.attach(LOCAL, made.id, terminal.id) as stream:
        await anext(stream)
        box.die()
        box.agent.block.set()
        last = await anext(stream)
    assert isinstance(last, Ended)
    assert last.exit.why is Why.SANDBOX_GONE


async def test_an_attached_terminal_keeps_an_idle_sandbox_awake(core, clock, eventually, driver) -> None:
    made = await core.sandboxes.create(LOCAL, SandboxSpec(idle_timeout_s=60))
    box = driver.boxes[made.id]
    terminal = await core.terminals.open(LOCAL, made.id, SHELL, size=SIZE)
    async with core.terminals.attach(LOCAL, made.id, terminal.id) as stream:
        await anext(stream)
        clock.advance(600)
        await asyncio.sleep(0.01)
        assert not box.is_paused
    await asyncio.sleep(0)
    clock.advance(61)
    await eventually(lambda: box.is_paused)


async def test_a_bad_cursor_or_wait_names_the_field(core, made, terminal) -> None:
    for more, field in (({"cursor": -1}, "cursor"), ({"wait_s": 601.0}, "wait_s"), ({"limit_bytes": -1}, "limit")):
        with pytest.raises(BadRequest) as caught:
            async with core.terminals.output(LOCAL, made.id, terminal.id, **more):
                pass
        assert caught.value.field == field
