"""What a box made by an OCI runtime does around a checkpoint of its files: it stands still, and is then as it was."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from cove.engine import kernel
from cove.engine.checkpoints.model import Draft
from cove.engine.driver import BoxFacts
from cove.engine.oci.box import OciBox
from cove.engine.oci.driver import OciDriver
from cove.engine.oci.ground import Ground
from cove.model.errors import CapacityExceeded, EngineFailure, SandboxGone, Unsupported
from cove.model.sandbox import Isolation, Limits

ISOLATION = Isolation(driver="crun", driver_version="1", user_namespace=True, seccomp="", quota="", cgroup="")
FACTS = BoxFacts(
    id="one", driver="crun", image="base", image_digest="d", uid_base=0, init_pid=os.getpid(),
    init_start=kernel.process_start(os.getpid()) or 0, limits=Limits(), isolation=ISOLATION, agent_build="b",
    created_at=0.0,
)  # fmt: skip
DRAFT = Draft(id="ck", memory=Path("/nowhere"), layer="s-ck")


class Machine:
    """A cgroup, layers and a mount thread that note what is asked of them."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.frozen = False
        self.failure: BaseException | None = None

    async def freeze(self) -> None:
        self.frozen = True
        self.did.append("freeze")

    async def thaw(self) -> None:
        self.frozen = False
        self.did.append("thaw")

    def is_frozen(self) -> bool:
        return self.frozen

    def directories(self) -> list[Path]:
        return []

    async def flush_layer(self, name: str) -> None:
        assert name == "one"

    async def keep_layer(self, source: str, name: str) -> None:
        assert self.frozen
        self.did.append(f"keep {source} {name}")
        if self.failure is not None:
            raise self.failure

    def used_bytes(self, name: str) -> int:
        return 7 if name == "s-ck" else 0

    async def quickly(self, work: Callable[[], object]) -> object:
        return work()


def box_on(machine: Machine, facts: BoxFacts = FACTS) -> OciBox:
    def of(_: str) -> Machine:
        return machine

    cgroups = SimpleNamespace(of=of)
    parts = {"flush_layer": machine.flush_layer, "keep_layer": machine.keep_layer, "quickly": machine.quickly}
    ground = SimpleNamespace(cgroups=cgroups, layers=machine, **parts)
    driver = SimpleNamespace(own_kernel=False, memory_gaps=("no memory here",))
    box = OciBox(cast("OciDriver", driver), cast("Ground", ground), facts, None)

    async def hostname() -> str:
        return "h"

    box.hostname = hostname  # type: ignore[method-assign]
    return box


async def test_the_layer_is_copied_while_nothing_runs() -> None:
    machine = Machine()
    facts = await box_on(machine).checkpoint(DRAFT, with_memory=False)
    assert machine.did == ["freeze", "keep one s-ck", "thaw"]
    assert (facts.has_memory, facts.image, facts.inherited_bytes, facts.hostname) == (False, "base", 7, "h")


@pytest.mark.parametrize(("was_frozen", "stay_paused"), [(True, False), (True, True), (False, True)])
async def test_it_stays_stopped_where_it_was_or_shall_be(*, was_frozen: bool, stay_paused: bool) -> None:
    machine = Machine()
    machine.frozen = was_frozen
    await box_on(machine).checkpoint(DRAFT, with_memory=False, stay_paused=stay_paused)
    assert machine.frozen


@pytest.mark.parametrize("was_frozen", [True, False])
@pytest.mark.parametrize("failure", [OSError(28, "full"), OSError(5, "broken"), asyncio.CancelledError()])
async def test_a_failed_one_leaves_the_box_as_it_was(*, was_frozen: bool, failure: BaseException) -> None:
    machine = Machine()
    machine.frozen, machine.failure = was_frozen, failure
    expected = (CapacityExceeded, EngineFailure) if isinstance(failure, OSError) else asyncio.CancelledError
    with pytest.raises(expected):
        await box_on(machine).checkpoint(DRAFT, with_memory=False, stay_paused=True)
    assert machine.frozen is was_frozen


async def test_memory_is_refused_with_the_drivers_reason() -> None:
    machine = Machine()
    with pytest.raises(Unsupported, match="no memory here") as caught:
        await box_on(machine).checkpoint(DRAFT, with_memory=True)
    assert caught.value.field == "memory"
    assert machine.did == []


async def test_a_dead_box_has_nothing_to_keep() -> None:
    dead = msgspec.structs.replace(FACTS, init_start=1)
    with pytest.raises(SandboxGone):
        await box_on(Machine(), dead).checkpoint(DRAFT, with_memory=False)
