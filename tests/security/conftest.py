"""Every test of this folder that asks for `driver` runs once on each isolation driver."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from network_lab_support import Lab
from tests_support import RunningServer
from world_support import World

DRIVERS = ("runc", "crun", "gvisor")


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """The name of an isolation driver."""
    return str(request.param)


@pytest.fixture
def driven_sandbox(client: httpx2.Client, driver: str) -> Iterator[str]:
    """A fresh sandbox on each driver in turn, by id; deleted afterwards."""
    made = client.post("/sandboxes", json={"driver": driver})
    assert made.status_code == 201, made.text
    assert made.json()["isolation"]["driver"] == driver
    yield made.json()["id"]
    client.delete(f"/sandboxes/{made.json()['id']}")


@pytest.fixture(scope="module")
def module_lab(world: World, world_server: RunningServer) -> Iterator[Lab]:
    made = Lab(world_server, world)
    yield made
    made.close()


@pytest.fixture
def lab(module_lab: Lab) -> Iterator[Lab]:
    """Sandboxes in a test world; those of each test go with it, and the world forgets them."""
    yield module_lab
    module_lab.drop()
