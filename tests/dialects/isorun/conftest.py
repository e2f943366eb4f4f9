"""Callers of the isorun protocol, over loopback HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests.dialects.conftest import KEY, DialectServer

Make = Callable[..., str]


def caller(server: DialectServer, *, key: str = KEY, prefix: str = "/isorun") -> httpx2.Client:
    return httpx2.Client(base_url=server.url + prefix, headers={"authorization": f"Bearer {key}"}, timeout=60)


@pytest.fixture(scope="session")
def runs(server: DialectServer) -> Iterator[httpx2.Client]:
    """The protocol below its prefix."""
    with caller(server) as client:
        yield client


@pytest.fixture
def make(runs: httpx2.Client) -> Iterator[Make]:
    """Makes runs, which end with the test."""
    made: list[str] = []

    def one(**body: object) -> str:
        answer = runs.post("/v1/runs", json={"image": "base", **body})
        assert answer.status_code == 200, answer.text
        made.append(answer.json()["id"])
        return made[-1]

    yield one
    for run in made:
        with contextlib.suppress(httpx2.HTTPError):
            runs.delete(f"/v1/runs/{run}")


@pytest.fixture(scope="session")
def run(runs: httpx2.Client) -> str:
    """A run that all tests of a session may use and none may end."""
    answer = runs.post("/v1/runs", json={"image": "base", "timeout": 0})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def make_path(tmp_path: Path, driver: str) -> str:
    """A path of a file that is not there, in a sandbox: those of the driver `fake` have the machine's files."""
    return str(tmp_path / "made") if driver == "fake" else f"/tmp/{tmp_path.name}"
