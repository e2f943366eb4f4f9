"""Every test of this folder that asks for `driver` runs once on each isolation driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import httpx2
import pytest

from network_lab_support import Lab
from world_support import running_world

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


@pytest.fixture(scope="session")
def session_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One world and one server in it for all attacks on the network."""
    with running_world(tmp_path_factory.mktemp("world")) as world:
        server = world.server(tmp_path_factory.mktemp("server"))
        server.start()
        made = Lab(server, world)
        yield made
        made.close()
        server.down()
        shutil.rmtree(server.data_dir, ignore_errors=True)


@pytest.fixture
def lab(session_lab: Lab) -> Iterator[Lab]:
    """Sandboxes in a test world; those of each test go with it, and the world forgets them."""
    yield session_lab
    session_lab.drop()
