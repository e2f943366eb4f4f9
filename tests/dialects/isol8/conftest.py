"""Clients of isol8: the operator's, a project's own, and what an execution is sent as."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

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
