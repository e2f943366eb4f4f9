"""A server with real sandboxes, in which executions are ready."""

# ruff: noqa: ANN001, ANN003, ANN201, ANN202 - fixtures are typed where they are defined

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from isol8_support import RemoteIsol8
from tests_support import RunningServer, make_server


@pytest.fixture(scope="session")
def machine(tmp_path_factory) -> Iterator[RunningServer]:
    running = make_server(
        tmp_path_factory.mktemp("isol8"),
        COVE_POOL_SIZE="0",
        COVE_EXECUTION_READY="4",
        COVE_EXECUTION_OUTPUT_MIB="2",
        COVE_REMOTE_CODE_HOSTS="*",
    )
    running.start()
    yield running
    running.down()


@pytest.fixture(scope="session")
def client(machine) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {machine.key}"}
    with httpx2.Client(base_url=f"{machine.url}/isol8", headers=headers, timeout=120) as one:
        yield one


Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def run(client) -> Run:
    """Run code: its result, or `{"status", "error"}` of a refusal."""

    def run_it(code: str | None = None, runtime: str = "bash", *, options: object = None, **request: object):
        body: dict[str, object] = {"runtime": runtime, **request}
        if code is not None:
            body["code"] = code
        answer = client.post("/execute", json={"request": body, "options": options or {}})
        found: dict[str, Any] = answer.json()
        return found if answer.status_code == 200 else {"status": answer.status_code, **found}

    return run_it


@pytest.fixture
def remote(machine) -> Iterator[Callable[..., RemoteIsol8]]:
    """A client as the original's."""
    made: list[RemoteIsol8] = []

    def make(session: str | None = None, *, ws: bool = True, **options: object) -> RemoteIsol8:
        made.append(RemoteIsol8(f"{machine.url}/isol8/", machine.key, session, options or None, ws=ws))
        return made[-1]

    yield make
    for one in made:
        one.stop()
        one.close()


SCOPES = ("read", "create", "exec", "files", "destroy", "keys")


@dataclass
class Caller:
    """One key's way to a server. `http` is below `/isol8`."""

    http: httpx2.Client

    def execute(self, code: str | None = None, *, session: str | None = None, runtime: str = "bash", **more: Any):
        """The answer to one execution. `options` among `more` are the options, the rest belongs to the request."""
        options = more.pop("options", None)
        request = {"runtime": runtime, **({} if code is None else {"code": code}), **more}
        body: dict[str, Any] = {"request": request}
        if options is not None:
            body["options"] = options
        if session is not None:
            body["sessionId"] = session
        return self.http.post("/execute", json=body)

    def run(self, code: str, **more: Any) -> dict[str, Any]:
        """The result of one execution that is not refused."""
        answer = self.execute(code, **more)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def sessions(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in self.http.get("/sessions").json()["sessions"]}


@dataclass
class Native:
    """The same server's native API, with all rights."""

    url: str
    key: str
    client: httpx2.Client


@pytest.fixture
def server(machine) -> Iterator[Native]:
    """In place of the server that tests of other dialects have: executions need real sandboxes."""
    head = {"Authorization": f"Bearer {machine.key}"}
    with httpx2.Client(base_url=f"{machine.url}/api/v1", headers=head, timeout=60) as client:
        yield Native(machine.url, machine.key, client)


@pytest.fixture
def isol8(server) -> Iterator[Caller]:
    """The operator's."""
    with httpx2.Client(base_url=f"{server.url}/isol8", headers={"Authorization": server.key}, timeout=60) as client:
        yield Caller(client)


def caller_of(server, **more) -> tuple[Caller, str]:
    """A key of a new project with all that a key of a project may do."""
    name = f"p{uuid.uuid4().hex[:12]}"
    assert server.client.post("/projects", json={"id": name}).status_code == 201
    made = server.client.post("/keys", json={"name": "master", "project": name, "scopes": list(SCOPES)} | more)
    assert made.status_code == 201, made.text
    head = {"Authorization": f"Bearer {made.json()['key']}"}
    return Caller(httpx2.Client(base_url=f"{server.url}/isol8", headers=head, timeout=60)), name


@pytest.fixture
def mine(server) -> Iterator[Caller]:
    """A project of its own."""
    made, _ = caller_of(server)
    with made.http:
        yield made
        made.http.post("/cleanup")


@pytest.fixture
def theirs(server) -> Iterator[Caller]:
    """Another project."""
    made, _ = caller_of(server)
    with made.http:
        yield made
        made.http.post("/cleanup")
