"""What a box made by an OCI runtime keeps of its network, where the machine fails half-way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from cove.engine.driver import BoxFacts
from cove.engine.network.port import Endpoint
from cove.engine.oci.box import OciBox
from cove.engine.oci.driver import OciDriver
from cove.engine.oci.ground import Ground
from cove.model.errors import EngineFailure
from cove.model.network import NO_NETWORK, OPEN_NETWORK, NetworkPolicy
from cove.model.sandbox import Isolation, Limits, Usage

ISOLATION = Isolation(driver="runc", driver_version="1", user_namespace=True, seccomp="", quota="", cgroup="")
FACTS = BoxFacts(
    id="one", driver="runc", image="base", image_digest="", uid_base=0, init_pid=1, init_start=1,
    limits=Limits(), isolation=ISOLATION, agent_build="", created_at=0.0,
)  # fmt: skip


class HalfWay:
    """A network whose rules hold, although it says that they could not be applied."""

    def __init__(self) -> None:
        self.endpoints = SimpleNamespace(by_box=self.by_box)
        self.joined: dict[str, Endpoint] = {}
        self.holds = NO_NETWORK
        self.fails = True
        self.missing = ()
        self.may_join = asyncio.Event()
        self.may_join.set()

    def by_box(self, box: str) -> Endpoint | None:
        return self.joined.get(box)

    async def join(self, box: str, _: int) -> str:
        await self.may_join.wait()
        self.joined[box] = Endpoint(box=box, address="10.213.0.2", index=2)
        return "10.213.0.2"

    async def apply(self, _: str, policy: NetworkPolicy, __: object) -> None:
        self.holds = policy
        if self.fails:
            raise EngineFailure("the sandbox's connections cannot be ended")


def box_on(network: HalfWay) -> OciBox:
    async def free(box: str, _: int, __: int | None) -> None:
        network.joined.pop(box, None)

    ground = SimpleNamespace(network=network, cgroups=SimpleNamespace(of=str), write_facts=repr, free=free)
    return OciBox(cast("OciDriver", SimpleNamespace(own_kernel=False)), cast("Ground", ground), FACTS, None)


async def test_a_network_that_failed_half_way_is_taken_away_again() -> None:
    network = HalfWay()
    box = box_on(network)
    with pytest.raises(EngineFailure):
        await box.set_network(OPEN_NETWORK, {})
    network.fails = False
    await box.set_network(NO_NETWORK, {})
    assert network.holds == NO_NETWORK


async def test_a_spare_that_ends_while_it_gets_its_interface_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    network = HalfWay()
    network.may_join.clear()
    box = box_on(network)

    async def nothing() -> Usage:
        return Usage()

    monkeypatch.setattr(box, "usage", nothing)
    await box.rest()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(box.prepare_network())
        await asyncio.sleep(0)
        tasks.create_task(box.destroy())
        await asyncio.sleep(0.01)
        network.may_join.set()
    assert not network.joined
    await box.prepare_network()
    assert not network.joined
