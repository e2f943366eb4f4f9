"""Fixtures of tests with a real server.

`server` is one server for the whole session; `new_server` makes one that a test may kill.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx2
import pytest
from hypothesis import HealthCheck, settings

from tests_support import SOAK, NewServer, RunningServer, make_server
from world_support import World, running_world

LONG_ID: Final = 32

# The same examples each time, however slow the machine is; a soak tries others.
settings.register_profile("cove", deadline=None, derandomize=not SOAK, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cove")

# A run in the background of a script, or below nohup, ignores them, and so would every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One running server for all tests of the session that only need one."""
    running = make_server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[NewServer]:
    """Makes servers that a test may kill; each is ended with all it made, and what it leaves is an error."""
    made: list[RunningServer] = []

    def make(**env: str) -> RunningServer:
        made.append(make_server(tmp_path, **env))
        made[-1].start()
        return made[-1]

    yield make
    for running in made:
        running.down()
        assert not running.run_dir.exists(), f"left behind: {sorted(running.run_dir.rglob('*'))[:20]}"
        shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An internet of its own for the sandboxes of one module's tests."""
    with running_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def world_server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A running server whose sandboxes' internet is `world`."""
    running = world.server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx2.Client]:
    """A client of the session's server."""
    with server.client() as client:
        yield client


@pytest.fixture
def sandbox(client: httpx2.Client) -> Iterator[str]:
    """A fresh sandbox of the session's server, by id; deleted afterwards."""
    made = client.post("/sandboxes", json={})
    assert made.status_code == 201, made.text
    yield made.json()["id"]
    client.delete(f"/sandboxes/{made.json()['id']}")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long bytes (an archive holds the time of its making) must not name a test: two processes would differ."""
    return argname if isinstance(val, bytes) and len(val) > LONG_ID else None
