"""Sessions of executions: whose turn it is, what is kept, when they end, and who may see them."""

# ruff: noqa: ANN001, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio

import pytest

from cove.core.executionsessions import ID_BYTES, KEPT, WAITING
from cove.core.secrets import Secrets, new_master_key
from cove.model.access import FULL, Principal, Scope
from cove.model.errors import BadRequest, CapacityExceeded, FileError, Forbidden, NotFound, SandboxGone
from cove.model.execs import ExecSpec
from cove.model.execution import ExecutionSettings, WrongRuntime
from cove.model.sandbox import IdleAction, SandboxSpec
from cove.model.state import State

ALICE = Principal(key_id="k1", name="ci", project="alice", scopes=FULL - {Scope.ADMIN})
BOB = Principal(key_id="k2", name="ci", project="bob", scopes=FULL - {Scope.ADMIN})
SETTINGS = ExecutionSettings(secrets={"TOKEN": "hunter2-secret"}, pids=77)
ODD_IDS = ("a/b", "a%2Fb", "ä b", "..", "'; DROP TABLE x; --", "\n", "0", "A", "a", "x" * ID_BYTES)


def maker(core, who=ALICE):
    """Makes a session's sandbox as an execution does."""

    async def make(settings, idle_s, metadata):
        spec = SandboxSpec(metadata=metadata, idle_timeout_s=idle_s, idle_action=IdleAction.TERMINATE)
        assert settings.pids
        return await core.sandboxes.create(who, spec, dialect="isol8")

    return make


async def turn(core, session="s", runtime="python", *, who=ALICE, settings=SETTINGS):
    """One execution, as far as the session sees it."""
    async with core.execution_sessions.take(who, session, runtime, settings, maker(core, who)) as taken:
        sandbox = await taken.sandbox()
        await core.execs.run(who, sandbox, ExecSpec(argv=("true",)))
        return sandbox, taken


async def test_the_second_turn_finds_the_sandbox_and_the_settings_of_the_first(core) -> None:
    first, taken = await turn(core)
    assert taken.is_fresh
    second, again = await turn(core, settings=ExecutionSettings(pids=5))
    assert second == first
    assert not again.is_fresh
    assert again.settings == SETTINGS


async def test_a_session_outlives_the_server(opened, tmp_path) -> None:
    secrets = Secrets((new_master_key(),), lambda _: None)
    async with opened(secrets=secrets) as core:
        first, _ = await turn(core)
    for path in tmp_path.iterdir():
        assert b"hunter2" not in path.read_bytes(), "its secrets are sealed"
    async with opened(secrets=secrets) as core:
        found = core.execution_sessions.list(ALICE)
        assert [(one.id, one.sandbox, one.is_active) for one in found] == [("s", first, False)]
        second, taken = await turn(core, settings=ExecutionSettings(pids=5))
        assert (second, taken.settings) == (first, SETTINGS)


async def test_ids_are_any_text_and_never_meet(core) -> None:
    made = {session: (await turn(core, session))[0] for session in ODD_IDS}
    assert len(set(made.values())) == len(ODD_IDS)
    assert {one.id for one in core.execution_sessions.list(ALICE)} == set(ODD_IDS)
    for session, sandbox in made.items():
        assert (await turn(core, session))[0] == sandbox


@pytest.mark.parametrize("session", ["", "x" * (ID_BYTES + 1), "\ud800"])
async def test_what_is_no_id_is_refused(core, session) -> None:
    with pytest.raises(BadRequest):
        await turn(core, session)
    assert not await core.execution_sessions.remove(ALICE, session)


async def test_turns_are_taken_one_at_a_time_in_order(core, eventually) -> None:
    order: list[int] = []
    running: list[int] = []
    go = asyncio.Event()

    async def one(number):
        async with core.execution_sessions.take(ALICE, "s", "python", SETTINGS, maker(core)) as taken:
            running.append(number)
            assert len(running) == 1
            await taken.sandbox()
            await go.wait()
            order.append(number)
            running.remove(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(one(number))
            await asyncio.sleep(0)
        await eventually(lambda: bool(core.execution_sessions.list(ALICE)))
        assert core.execution_sessions.list(ALICE)[0].is_active
        go.set()
    assert order == list(range(5))
    assert len({one.sandbox for one in core.execution_sessions.list(ALICE)}) == 1
    assert not core.execution_sessions.list(ALICE)[0].is_active


async def test_parallel_first_turns_make_one_sandbox(core, driver) -> None:
    found = await asyncio.gather(*(turn(core) for _ in range(8)))
    assert len({sandbox for sandbox, _ in found}) == 1
    assert len(driver.boxes) == 1


async def test_too_many_do_not_wait(core) -> None:
    go = asyncio.Event()

    async def hold():
        async with core.execution_sessions.take(ALICE, "s", "python", SETTINGS, maker(core)):
            await go.wait()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WAITING + 1):
            tasks.create_task(hold())
        await asyncio.sleep(0)
        with pytest.raises(CapacityExceeded):
            await turn(core)
        go.set()


async def test_another_runtime_is_refused_at_once(core) -> None:
    await turn(core)
    with pytest.raises(WrongRuntime) as caught:
        await turn(core, runtime="node")
    assert (caught.value.had, caught.value.asked) == ("python", "node")


async def test_a_session_whose_first_run_was_refused_is_listed_and_has_no_files(core) -> None:
    with pytest.raises(BadRequest):
        async with core.execution_sessions.take(ALICE, "s", "python", SETTINGS, maker(core)):
            raise BadRequest("no")
    assert [one.sandbox for one in core.execution_sessions.list(ALICE)] == [None]
    with pytest.raises(FileError):
        await core.execution_sessions.use(ALICE, "s")
    sandbox, taken = await turn(core)
    assert taken.is_fresh
    assert await core.execution_sessions.use(ALICE, "s") == sandbox


async def test_removing_ends_the_sandbox_and_the_same_id_is_fresh(core) -> None:
    first, _ = await turn(core)
    assert await core.execution_sessions.remove(ALICE, "s")
    assert not await core.execution_sessions.remove(ALICE, "s")
    assert core.sandboxes.get(ALICE, first).state is State.TERMINATED
    with pytest.raises(NotFound):
        await core.execution_sessions.use(ALICE, "s")
    second, taken = await turn(core, runtime="node")
    assert second != first
    assert taken.is_fresh


async def test_a_session_removed_while_its_sandbox_is_made_leaves_none(core, driver) -> None:
    async with core.execution_sessions.take(ALICE, "s", "python", SETTINGS, maker(core)) as taken:
        assert await core.execution_sessions.remove(ALICE, "s")
        with pytest.raises(SandboxGone):
            await taken.sandbox()
    assert not driver.living()


async def test_who_waits_while_the_session_is_removed_gets_a_fresh_one(core, clock) -> None:
    await turn(core)
    clock.advance(1)
    release = asyncio.Event()

    async def first():
        async with core.execution_sessions.take(ALICE, "s", "python", SETTINGS, maker(core)) as taken:
            was = await taken.sandbox()
            await release.wait()
            return was

    async with asyncio.TaskGroup() as tasks:
        held = tasks.create_task(first())
        await asyncio.sleep(0.01)
        waiting = tasks.create_task(turn(core))
        await asyncio.sleep(0.01)
        await core.execution_sessions.remove(ALICE, "s")
        release.set()
    assert waiting.result()[0] != held.result()
    assert waiting.result()[1].is_fresh


async def test_an_idle_session_ends_and_is_forgotten(core, clock, eventually) -> None:
    sandbox, _ = await turn(core)
    clock.advance(3500)
    await turn(core)
    clock.advance(3500)
    await asyncio.sleep(0.01)
    assert core.execution_sessions.list(ALICE), "its time counts from its last use"
    clock.advance(200)
    await eventually(lambda: core.sandboxes.get(ALICE, sandbox).state is State.TERMINATED)
    assert core.execution_sessions.list(ALICE) == []
    clock.advance(61)
    await asyncio.sleep(0.01)
    assert (await turn(core))[0] != sandbox


async def test_a_session_that_never_got_a_sandbox_is_pruned_when_it_is_idle(core, clock) -> None:
    async with core.execution_sessions.take(ALICE, "s", "python", SETTINGS, maker(core)):
        pass
    clock.advance(3599)
    await core.execution_sessions.prune()
    assert core.execution_sessions.list(ALICE)
    clock.advance(2)
    await core.execution_sessions.prune()
    assert core.execution_sessions.list(ALICE) == []


async def test_projects_do_not_see_each_others_sessions(core) -> None:
    mine, _ = await turn(core)
    theirs, _ = await turn(core, who=BOB, settings=ExecutionSettings(pids=5))
    assert mine != theirs
    await core.execution_sessions.remove(BOB, "s")
    assert core.execution_sessions.list(BOB) == []
    assert await core.execution_sessions.use(ALICE, "s") == mine


async def test_clearing_ends_what_is_the_projects_and_nothing_else(core) -> None:
    await turn(core, "a")
    await turn(core, "b")
    await turn(core, who=BOB)
    kept = await core.sandboxes.create(ALICE, SandboxSpec(metadata=dict(KEPT)))
    other = await core.sandboxes.create(ALICE, SandboxSpec())
    sessions, left = await core.execution_sessions.clear(ALICE)
    assert (sessions.removed, sessions.errors, left.removed, left.errors) == (2, (), 1, ())
    assert core.sandboxes.get(ALICE, kept.id).state is State.TERMINATED
    assert core.sandboxes.get(ALICE, other.id).state is State.RUNNING
    assert core.execution_sessions.list(ALICE) == []
    assert len(core.execution_sessions.list(BOB)) == 1


async def test_clearings_at_the_same_time_share_what_comes_of_it(core) -> None:
    await turn(core, "a")
    found = await asyncio.gather(*(core.execution_sessions.clear(ALICE) for _ in range(3)))
    assert [sessions.removed for sessions, _ in found] == [1, 1, 1]


async def test_each_operation_needs_its_scope(core) -> None:
    await turn(core)
    reader = Principal(key_id="k3", name="r", project="alice", scopes=frozenset({Scope.READ}))
    assert core.execution_sessions.list(reader)
    for call in (
        turn(core, who=reader),
        core.execution_sessions.use(reader, "s"),
        core.execution_sessions.remove(reader, "s"),
        core.execution_sessions.clear(reader),
    ):
        with pytest.raises(Forbidden):
            await call


async def test_a_new_secrets_key_keeps_sessions_readable(core) -> None:
    await turn(core)
    await core.credentials.rekey(Principal(key_id="k", name="a", project="default", scopes=FULL))
    _, again = await turn(core)
    assert again.settings == SETTINGS
