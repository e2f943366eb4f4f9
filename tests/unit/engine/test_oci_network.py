"""What a box made by an OCI runtime keeps of its network, where the machine fails half-way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from cove.engine.driver import BoxFacts
from cove.engine.network.port import Endpoint
from cove.engine.oci.driver import OciBox, OciDriver
from cove.engine.oci.ground import Ground
from cove.model.errors import EngineFailure
from cove.model.network import NO_NETWORK, OPEN_NETWORK, NetworkPolicy
from cove.model.sandbox import Isolation, Limits

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

    def by_box(self, box: str) -> Endpoint | None:
        return self.joined.get(box)

    async def join(self, box: str, _: int) -> str:
        self.joined[box] = Endpoint(box=box, address="10.213.0.2", index=2)
        return "10.213.0.2"

    async def apply(self, _: str, policy: NetworkPolicy, __: object) -> None:
        self.holds = policy
        if self.fails:
            raise EngineFailure("the sandbox's connections cannot be ended")


async def test_a_network_that_failed_half_way_is_taken_away_again() -> None:
    network = HalfWay()
    ground = SimpleNamespace(network=network, cgroups=SimpleNamespace(of=str), write_facts=repr)
    driver = SimpleNamespace(own_kernel=False)
    box = OciBox(cast("OciDriver", driver), cast("Ground", ground), FACTS, None)
    with pytest.raises(EngineFailure):
        await box.set_network(OPEN_NETWORK, {})
    network.fails = False
    await box.set_network(NO_NETWORK, {})
    assert network.holds == NO_NETWORK
