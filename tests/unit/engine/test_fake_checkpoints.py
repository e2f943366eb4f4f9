"""What the fake driver says of checkpoints, and what a test can make it do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.engine.agentbin import agent_path
from cove.engine.checkpoints.model import Checkpoint, Draft
from cove.engine.driver import Box, BoxImage, BoxSpec
from cove.engine.drivers.fake import NO_MEMORY, FakeDriver, Staged, stage
from cove.model.errors import EngineFailure, Unsupported
from cove.model.execs import ExecSpec
from cove.model.ids import new_core_id
from cove.model.sandbox import Limits

try:
    AGENT = agent_path()
except EngineFailure:
    pytest.skip("the agent is not built", allow_module_level=True)


def spec(origin: Checkpoint | None = None, *, with_memory: bool = False) -> BoxSpec:
    image = BoxImage(name="base", digest="d1", rootfs=Path("/"))
    new = new_core_id()
    return BoxSpec(id=new, image=image, limits=Limits(), hostname="s", origin=origin, with_memory=with_memory)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakeDriver]:
    yield FakeDriver(tmp_path / "f", AGENT)
    await FakeDriver(tmp_path / "f", AGENT).reap(None)


@pytest.fixture
def draft(tmp_path: Path) -> Draft:
    (tmp_path / "memory").mkdir()
    return Draft(id=new_core_id(), memory=tmp_path / "memory", layer="s-x")


async def taken(box: Box, draft: Draft, *, with_memory: bool) -> Checkpoint:
    facts = await box.checkpoint(draft, with_memory=with_memory)
    return Checkpoint(id=draft.id, memory=draft.memory, layer=draft.layer, facts=facts)


async def test_it_keeps_no_memory_and_says_so(fake: FakeDriver, draft: Draft) -> None:
    box = await fake.create(spec())
    assert fake.memory_gaps == (NO_MEMORY,)
    with pytest.raises(Unsupported):
        await box.checkpoint(draft, with_memory=True)
    origin = await taken(box, draft, with_memory=False)
    assert (origin.facts.has_memory, origin.facts.why_no_memory, origin.facts.engine) == (False, NO_MEMORY, {})
    assert not list(draft.memory.iterdir())
    assert (await box.agent.exec(ExecSpec(shell="echo on"))).stdout == b"on\n"
    again = await fake.create(spec(origin))
    await again.agent.claim({"A": "b"}, None, None)
    assert (await again.agent.exec(ExecSpec(shell="echo $A"))).stdout == b"b\n"
    with pytest.raises(Unsupported):
        await fake.create(spec(origin, with_memory=True))
    await again.destroy()
    await box.destroy()


async def test_a_test_can_make_it_claim_memory(fake: FakeDriver, draft: Draft, tmp_path: Path) -> None:
    stage(tmp_path, Staged(keeps_memory=True))
    assert fake.memory_gaps == ()
    box = await fake.create(spec())
    origin = await taken(box, draft, with_memory=True)
    assert origin.facts.has_memory
    assert origin.facts.memory_bytes > 0
    assert fake.origin_gaps(origin) == ()
    facts = replace(origin.facts, env={"A": "old", "B": "old"})
    copy = await fake.create(spec(replace(origin, facts=facts), with_memory=True))
    machine = [Path(path).read_bytes() for path in ("/etc/hostname", "/etc/machine-id") if Path(path).exists()]
    await copy.agent.revive(hostname="otter", env={"A": "new"}, is_copy=True)
    assert (await copy.agent.exec(ExecSpec(shell="echo $A $B"))).stdout == b"new old\n"
    assert machine == [Path(path).read_bytes() for path in ("/etc/hostname", "/etc/machine-id") if Path(path).exists()]
    await copy.destroy()
    with pytest.raises(Unsupported):
        await box.agent.revive(hostname=None, env=None, is_copy=True)
    next(draft.memory.iterdir()).unlink()
    with pytest.raises(EngineFailure, match="damaged"):
        await fake.create(spec(origin, with_memory=True))
    assert [one.id for one in await fake.remains()] == [box.facts.id]
    await box.destroy()


async def test_a_test_can_make_it_fail(fake: FakeDriver, draft: Draft, tmp_path: Path) -> None:
    box = await fake.create(spec())
    origin = await taken(box, draft, with_memory=False)
    stage(tmp_path, Staged(fails="no ink", restore_fails="no paper"))
    with pytest.raises(EngineFailure, match="no ink"):
        await box.checkpoint(draft, with_memory=False)
    assert (await box.agent.exec(ExecSpec(shell="echo on"))).stdout == b"on\n"
    with pytest.raises(EngineFailure, match="no paper"):
        await fake.create(spec(origin))
    await box.destroy()


async def test_a_test_can_make_it_hang_and_cancel_it(fake: FakeDriver, draft: Draft, tmp_path: Path) -> None:
    box = await fake.create(spec())
    stage(tmp_path, Staged(hangs=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await box.checkpoint(draft, with_memory=False)
    assert (await box.agent.exec(ExecSpec(shell="echo on"))).stdout == b"on\n", "it goes on"
    await box.destroy()


@pytest.mark.parametrize("stay_paused", [True, False])
@pytest.mark.parametrize("was_paused", [True, False])
async def test_it_goes_on_as_it_was(fake: FakeDriver, draft: Draft, *, was_paused: bool, stay_paused: bool) -> None:
    box = await fake.create(spec())
    if was_paused:
        await box.pause()
    await box.checkpoint(draft, with_memory=False, stay_paused=stay_paused)
    state = Path(f"/proc/{box.facts.init_pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert (state == "T") is (was_paused or stay_paused)
    await box.destroy()
