"""Every operation against another project's objects, without its scopes, and with bombs for bodies (cases 62-64, 72).

The matrix is made of the table of operations, so an operation that is added is in it: if it takes what no example here
fits, its row fails and says so.
"""

# ruff: noqa: ANN001, ANN003, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator

import httpx2
import msgspec
import pytest
from msgspec import inspect
from tests.dialects.conftest import started

from cove.dialects.native.routes import dialect
from cove.edge.ops import Op
from cove.model.access import Scope

PARAMETER = re.compile(r"\{(\w+)\}")
OPS = [op for op in dialect().ops if not op.at_root]
NESTED = {"command", "shell", "terminal", "watch"}
"""Ids that mean something in their sandbox only."""

HOME = f"/tmp/cove-matrix-{os.getpid()}"
"""In the sandbox; with the driver `fake` that is this machine."""

FILE = f"{HOME}/file"
TYPICAL: dict[str, object] = {
    "path": FILE,
    "from": FILE,
    "to": f"{HOME}/other",
    "target": f"{HOME}/other",
    "pattern": "x",
    "destination": "203.0.113.7:443",
    "signal": "TERM",
    "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO1T6mL2xS0cYpS7C8w9q1m0l9u0h3d5rQf6bqk7N2aE matrix",
    "upstream": "https://upstream.example",
    "header": "Authorization",
    "value": "Bearer {key}",
    "key": "a-key-of-nobody",
    "host": "host.example",
    "url": "https://hook.example/",
}
FILL = {"port": "8000", "service": "openai", "profile": "locked-down"}
WEBSOCKET = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def named(op: Op) -> str:
    return f"{op.method} {op.path}"


def with_parameters(*names: str, without: str = "") -> list[Op]:
    return [op for op in OPS if set(names) & set(PARAMETER.findall(op.path)) and f"{{{without}}}" not in op.path]


def example(kind: inspect.Type) -> object:
    """The smallest value of a type."""
    found: object = []
    match kind:
        case inspect.StrType():
            found = "x" * max(kind.min_length or 1, 1)
        case inspect.IntType() | inspect.FloatType():
            found = kind.ge or 1
        case inspect.BoolType():
            found = False
        case inspect.LiteralType():
            found = kind.values[0]
        case inspect.UnionType():
            found = example(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
        case inspect.DictType():
            found = {}
        case inspect.StructType():
            found = smallest(kind.cls)
        case inspect.Metadata():
            found = example(kind.type)
    return found


def smallest(kind: type[msgspec.Struct] | None) -> dict[str, object]:
    """The required fields of a body or query. Where none is required, the first that has an example is given."""
    if kind is None:
        return {}
    facts = inspect.type_info(kind)
    assert isinstance(facts, inspect.StructType)
    fields = {one.encode_name: one for one in facts.fields}
    wanted = {name for name, one in fields.items() if one.required}
    return {name: TYPICAL[name] if name in TYPICAL else example(fields[name].type) for name in wanted}


def request(client, op: Op, parameters: dict[str, str], **more) -> httpx2.Response:
    """One request as the table describes it. Streams are not read."""
    path = PARAMETER.sub(lambda match: parameters.get(match[1]) or FILL.get(match[1], "x"), op.path)
    options: dict[str, object] = {"params": smallest(op.query), **more}
    if "content" not in options and op.method not in {"GET", "HEAD"}:
        if op.upload:
            options["content"] = b"x"
        elif op.body is not None and "json" not in options:
            options["json"] = smallest(op.body)
    if op.websocket:
        options["headers"] = WEBSOCKET
    with client.stream(op.method, path, timeout=60, **options) as answer:
        if answer.status_code >= 400:
            answer.read()
        return answer


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"] if answer.status_code >= 400 and answer.content else ""


@contextlib.contextmanager
def key_of(server, project: str, scopes: list[str]) -> Iterator[httpx2.Client]:
    made = server.client.post("/keys", json={"name": "m", "project": project, "scopes": scopes}).json()
    head = {"Authorization": f"Bearer {made['key']}"}
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers=head, timeout=60) as one:
        one.key_id = made["id"]  # type: ignore[attr-defined]
        yield one


TENANT = [scope.value for scope in Scope if scope is not Scope.ADMIN]


class Victim:
    """A project with one of everything, and what can be seen of it."""

    def __init__(self, client: httpx2.Client, project: str) -> None:
        self.client, self.project = client, project
        made = client.post("/sandboxes", json={"metadata": {"a": "b"}}).json()
        self.id, self.name = made["id"], made["name"]
        at = f"/sandboxes/{self.id}"
        client.put(f"{at}/files/content", params={"path": FILE}, content=b"mine")
        command = client.post(f"{at}/commands", json={"command": "exec sleep 1000"}).json()["id"]
        shell = client.post(f"{at}/shells", json={}).json()["id"]
        terminal = client.post(f"{at}/terminals", json={}).json()["id"]
        watch = client.post(f"{at}/watches", json={"path": HOME}).json()["id"]
        ssh_key = client.post("/ssh-keys", json={"public_key": TYPICAL["public_key"]}).json()["id"]
        client.put(f"{at}/ports/8000", json={"access": "key"})
        key = client.key_id  # type: ignore[attr-defined]
        self.ids = {
            "command": command, "shell": shell, "terminal": terminal, "watch": watch, "ssh_key": ssh_key,
            "key": key, "project": project,
        }  # fmt: skip
        self.before = self.seen()

    def seen(self) -> dict[str, object]:
        """All that its owner can see and that does not change by itself."""
        facts = self.client.get(f"/sandboxes/{self.id}").json()
        for name in ("usage", "last_active_at"):
            facts.pop(name)
        found: dict[str, object] = {"facts": facts, "list": len(self.client.get("/sandboxes").json()["sandboxes"])}
        for noun in ("commands", "shells", "terminals", "watches", "ports"):
            listed = self.client.get(f"/sandboxes/{self.id}/{noun}").json()[noun]
            found[noun] = [one.get("id") or one["port"] for one in listed if one.get("port") in {None, 8000}]
        read = self.client.get(f"/sandboxes/{self.id}/files/content", params={"path": FILE})
        keys = self.client.get("/keys").json()["keys"]
        found |= {"file": read.content, "keys": [one["revoked_at"] for one in keys if one["id"] == self.ids["key"]]}
        found |= {
            "ssh": self.client.get("/ssh-keys").json(),
            "quota": self.client.get("/quota").json()["quotas"][0]["quota"],
        }
        for noun in ("network", "credentials"):
            found[noun] = self.client.get(f"/sandboxes/{self.id}/{noun}").json()
        return found


@pytest.fixture(scope="module")
def server():
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def places(server):
    """A victim in one project, and an attacker with every scope of a tenant in another, with a sandbox of its own."""
    names = [f"matrix-{who}-{time.monotonic_ns()}" for who in ("victim", "attacker")]
    for name in names:
        assert server.client.post("/projects", json={"id": name}).status_code == 201
    with key_of(server, names[0], TENANT) as owner, key_of(server, names[1], TENANT) as attacker:
        victim = Victim(owner, names[0])
        own = attacker.post("/sandboxes", json={}).json()["id"]
        yield victim, attacker, own
        owner.delete(f"/sandboxes/{victim.id}")
        attacker.delete(f"/sandboxes/{own}")
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.mark.parametrize("op", with_parameters("id"), ids=named)
def test_another_projects_sandbox_is_not_there(places, op):
    """Case 62: by its id and by its name, whatever else the request says."""
    victim, attacker, _ = places
    for ref in (victim.id, victim.name):
        answer = request(attacker, op, {**victim.ids, "id": ref})
        assert answer.status_code == 404, (answer.status_code, answer.text)
        if op.method != "HEAD":
            assert answer.json()["code"] == "not-found"
            assert victim.project not in answer.text
    assert victim.seen() == victim.before


@pytest.mark.parametrize("op", with_parameters(*NESTED), ids=named)
def test_what_is_in_anothers_sandbox_is_not_in_ones_own(places, op):
    victim, attacker, own = places
    assert request(attacker, op, {**victim.ids, "id": own}).status_code == 404
    assert victim.seen() == victim.before


@pytest.mark.parametrize("op", with_parameters("key", "ssh_key", "project", without="id"), ids=named)
def test_what_is_anothers_looks_like_what_is_not_there(places, op):
    victim, attacker, _ = places
    theirs = request(attacker, op, victim.ids)
    nobodys = request(attacker, op, dict.fromkeys(victim.ids, "0f0f0f0f"))
    assert code(theirs) == code(nobodys)
    assert theirs.status_code in {403, 404}
    assert victim.seen() == victim.before


def has_project(kind: type[msgspec.Struct] | None) -> bool:
    return kind is not None and "project" in kind.__struct_fields__


@pytest.mark.parametrize("op", [op for op in OPS if has_project(op.body) or has_project(op.query)], ids=named)
def test_another_project_cannot_be_named(places, op):
    """What a body or query says of the project is not believed."""
    victim, attacker, _ = places
    for project in (victim.project, "no-such-project"):
        if has_project(op.body):
            answer = request(attacker, op, {}, json={**smallest(op.body), "project": project})
        else:
            answer = request(attacker, op, {}, params={**smallest(op.query), "project": project})
        assert answer.status_code in {403, 404}, (answer.status_code, answer.text)
    assert victim.seen() == victim.before


@pytest.mark.parametrize("op", [op for op in OPS if op.scopes], ids=named)
def test_without_its_scope_an_operation_is_forbidden(server, places, op):
    """Case 63: no other scope, nor all of them, stands in for the one that is missing."""
    victim, _, _ = places
    for missing in op.scopes:
        scopes = [scope for scope in TENANT if scope != missing.value]
        with key_of(server, victim.project, scopes) as one:
            answer = request(one, op, {**victim.ids, "id": victim.id})
            assert code(answer) in {(403, "forbidden"), (403, "")}, (answer.status_code, answer.text)
    assert victim.seen() == victim.before


def test_no_key_gives_itself_more(server, places):
    victim, _, _ = places
    with key_of(server, victim.project, ["read", "keys"]) as one:
        for scopes in (["admin"], ["exec"], ["read", "keys", "destroy"]):
            assert one.post("/keys", json={"name": "up", "scopes": scopes}).status_code == 403
        made = one.post("/keys", json={"name": "same"}).json()
        assert set(made["scopes"]) == {"read", "keys"}
        assert one.delete(f"/keys/{made['id']}").status_code == 204


def test_pages_tell_of_ones_own_only(places):
    """Case 64: no filter and no cursor reaches past the project."""
    victim, attacker, own = places
    for query in (
        {},
        {"name": victim.name},
        {"metadata.a": "b"},
        {"state": ["running", "paused", "terminated", "failed"]},
        {"limit": "1000"},
        {"image": "base"},
    ):
        found = attacker.get("/sandboxes", params=query).json()["sandboxes"]
        assert {one["id"] for one in found} <= {own}, query
    for cursor in (victim.id, victim.id.removeprefix("sb_"), victim.name, "0", "' OR 1=1 --"):
        answer = attacker.get("/sandboxes", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["field"]) == (400, "cursor"), cursor
    for noun, kind in (("keys", "keys"), ("ssh-keys", "ssh_keys")):
        assert all(one["project"] != victim.project for one in attacker.get(f"/{noun}").json()[kind])


def test_an_idempotency_key_of_another_project_replays_nothing(places):
    """Case 65."""
    victim, attacker, own = places
    head = {"Idempotency-Key": f"matrix-{time.monotonic_ns()}"}
    first = victim.client.post("/sandboxes", json={}, headers=head)
    again = victim.client.post("/sandboxes", json={}, headers=head)
    other = attacker.post("/sandboxes", json={}, headers=head)
    assert [one.status_code for one in (first, again, other)] == [201] * 3
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    changed = victim.client.post("/sandboxes", json={"cpus": 0.5}, headers=head)
    assert (changed.status_code, changed.json()["code"]) == (409, "idempotency-conflict")
    victim.client.delete(f"/sandboxes/{first.json()['id']}")
    attacker.delete(f"/sandboxes/{other.json()['id']}")
    assert own


BOMBS = {
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep value of a field": b'{"metadata":' + b"[" * 100_000,
    "unknown fields": b"{" + b",".join(b'"k%d":1' % number for number in range(100_000)) + b"}",
    "no number": b'{"timeout_s":NaN}',
    "half a surrogate": b'{"name":"\\ud800"}',
    "no UTF-8": b'{"name":"\xff"}',
    "two bodies": b"{}{}",
    "a list": b"[]",
    "a number of 100 000 digits": b'{"timeout_s":' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("op", [op for op in OPS if op.body is not None and not op.upload], ids=named)
def test_bombs_are_refused_at_once(places, op):
    """Case 72, before anything is looked for: the body is decoded first."""
    victim, _, _ = places
    begun = time.monotonic()
    for name, body in BOMBS.items():
        answer = request(victim.client, op, {**victim.ids, "id": victim.id}, content=body)
        assert answer.status_code in {400, 403}, (name, answer.status_code, answer.text[:300])
        assert len(answer.content) < 2000, name
    big = request(victim.client, op, {**victim.ids, "id": victim.id}, content=b" " * (3 * 1024 * 1024))
    assert (big.status_code, big.json()["code"]) == (413, "too-large")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("op", [op for op in OPS if not op.public and not op.websocket], ids=named)
def test_queries_are_as_strict(places, op):
    victim, _, _ = places
    for params in ({"unknown": "1"}, {"limit": "1e9999"}, {"cursor": "\0"}):
        answer = request(victim.client, op, {**victim.ids, "id": victim.id}, params={**smallest(op.query), **params})
        assert answer.status_code in {400, 403}, (params, answer.status_code)
