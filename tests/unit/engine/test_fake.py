"""The fake driver with the real agent, as far as it goes beyond the drivers' conformance suite."""

# ruff: noqa: ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cove.core.access import LOCAL
from cove.core.facade import open_core
from cove.core.info import CoreSettings
from cove.engine.agentbin import agent_path
from cove.engine.driver import BoxImage, BoxSpec
from cove.engine.drivers.fake import FakeDriver
from cove.engine.pool import PoolConfig, PoolTarget
from cove.model.errors import AgentTimeout, EngineFailure, SandboxGone
from cove.model.execs import ExecSpec, Why
from cove.model.ids import new_core_id
from cove.model.sandbox import Limits, SandboxSpec
from cove.model.state import State
from cove.store.store import open_store
from waiting_support import comes_true

try:
    AGENT = agent_path()
except EngineFailure:
    pytest.skip("the agent is not built", allow_module_level=True)


def spec() -> BoxSpec:
    image = BoxImage(name="base", digest="d1", rootfs=Path("/"))
    return BoxSpec(id=new_core_id(), image=image, limits=Limits(), hostname="sandbox")


@pytest.fixture
async def fake(tmp_path: Path):
    one = FakeDriver(tmp_path / "f", AGENT)
    yield one
    await FakeDriver(tmp_path / "f", AGENT).reap(None)


def alive(pid: int) -> bool:
    """Whether it runs; a process that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_box_runs_commands_and_leaves_nothing(fake: FakeDriver, tmp_path: Path) -> None:
    box = await fake.create(spec())
    result = await box.agent.exec(ExecSpec(shell="echo hi; sleep 0 & exit 4"))
    assert (result.stdout, result.exit.code) == (b"hi\n", 4)
    await box.destroy()
    await box.destroy()
    assert not alive(box.facts.init_pid)
    assert await fake.remains() == []
    assert not (tmp_path / "f" / box.facts.id).exists()


async def test_destroy_takes_the_commands_with_it(fake: FakeDriver) -> None:
    box = await fake.create(spec())
    started = await box.agent.start("c1", ExecSpec(argv=("sleep", "1000")), keep_bytes=4096, stdin_open=False)
    await box.destroy()
    await comes_true(lambda: not alive(started.pid), "the command lives on")


async def test_a_box_outlives_its_driver_and_is_adopted_with_its_commands(fake: FakeDriver, tmp_path: Path) -> None:
    box = await fake.create(spec())
    await box.agent.start("c1", ExecSpec(argv=("sleep", "1000")), keep_bytes=4096, stdin_open=False)
    await box.pause()
    await box.agent.close()
    later = FakeDriver(tmp_path / "f", AGENT)
    (facts,) = await later.remains()
    assert facts.agent_build == box.facts.agent_build != ""
    adopted = await later.adopt(facts)
    assert [command.running for command in await adopted.agent.commands()] == [True]
    await later.reap(None)
    assert await later.remains() == [facts], "the sweep spares what is known"
    await adopted.destroy()


async def test_a_dead_box_is_noticed_not_adopted_and_reaped(fake: FakeDriver, tmp_path: Path) -> None:
    box = await fake.create(spec())
    os.kill(box.facts.init_pid, 9)
    async with asyncio.timeout(60):
        await box.wait_dead()
    later = FakeDriver(tmp_path / "f", AGENT)
    with pytest.raises(SandboxGone):
        await later.adopt(box.facts)
    await later.reap(box.facts)
    assert await later.remains() == []


async def test_a_pid_that_was_given_to_another_process_is_not_taken_for_the_box(fake: FakeDriver) -> None:
    from msgspec.structs import replace

    box = await fake.create(spec())
    stranger = replace(box.facts, init_start=box.facts.init_start - 1)
    with pytest.raises(SandboxGone):
        await fake.adopt(stranger)
    await box.destroy()


async def test_an_agent_that_cannot_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cove.engine.drivers.fake.READY_S", 0.2)
    driver = FakeDriver(tmp_path / "f", Path("/bin/true"))
    with pytest.raises(AgentTimeout):
        await driver.create(spec())
    assert await driver.remains() == []
    assert await FakeDriver(tmp_path / "f", tmp_path / "nothing").requirements() != ()


class Images:
    def get(self, name: str) -> BoxImage:
        return BoxImage(name=name, digest="d1", rootfs=Path("/"))

    def list(self) -> list[object]:
        return []


async def test_a_whole_life_through_the_core_with_a_restart_in_it(fake: FakeDriver, tmp_path: Path) -> None:
    config = PoolConfig(targets=(PoolTarget(image="base", driver="fake", size=1),))
    settings = CoreSettings(default_driver="fake", pool=config)
    async with open_store(tmp_path / "s.db") as store:
        async with open_core(settings, drivers={"fake": fake}, images=Images(), store=store) as core:
            made = await core.sandboxes.create(LOCAL, SandboxSpec(env={"A": "b"}))
            result = await core.execs.run(LOCAL, made.id, ExecSpec(shell="echo $A"))
            assert result.stdout == b"b\n"
            slow = await core.execs.run(LOCAL, made.id, ExecSpec(argv=("sleep", "9"), timeout_s=0.1))
            assert (slow.exit.code, slow.exit.why) == (124, Why.TIMEOUT)
            command = await core.execs.start(LOCAL, made.id, ExecSpec(shell="cat; exec sleep 1000", stdin=b"fed"))
            await core.sandboxes.pause(LOCAL, made.id)
        async with open_core(settings, drivers={"fake": fake}, images=Images(), store=store) as core:
            assert core.reconciled.adopted == 1
            assert (await core.execs.get(LOCAL, made.id, command.id)).running
            async with core.execs.output(LOCAL, made.id, command.id) as events:
                assert b"".join([event.data async for event in events if hasattr(event, "data")]) == b"fed"
            os.kill(fake_pid(tmp_path, made.id), 9)
            async with asyncio.timeout(60):
                while core.sandboxes.get(LOCAL, made.id).state is not State.FAILED:
                    await asyncio.sleep(0.01)


def fake_pid(tmp_path: Path, box_id: str) -> int:
    import json

    return json.loads((tmp_path / "f" / box_id / "facts.json").read_text())["init_pid"]
