"""Credentials in the SDK: requests as data, answers as values, and a key that is seen nowhere else."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from cove.sdk import calls, credential_calls, credentials
from cove.sdk.aio import credentials as awaited
from cove.sdk.errors import BadRequest
from cove.sdk.transport import Retry
from cove.sdk.units import UNSET

REF = "sb_0000000000000000"
RULES = [{"methods": ["POST"], "paths": ["/v1/chat"]}]
WIRE = {
    "service": "openai",
    "key": "own",
    "upstream": "https://api.openai.com/v1",
    "url": "http://169.254.1.1:3130/proxy/openai",
    "env": {"OPENAI_API_KEY": "sk-cove-proxy-managed"},
    "endpoints": RULES,
    "created_at": "2026-01-01T00:00:00.000Z",
    "changed_at": "2026-01-02T00:00:00.000Z",
    "of_a_newer_server": 1,
}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, None),
        ({}, {}),
        ({"openai": "sk-1"}, {"openai": "sk-1"}),
        ({"openai": {"key": "sk-1", "endpoints": RULES}}, {"openai": {"key": "sk-1", "endpoints": RULES}}),
        ({"github": None}, {"github": {}}),
        (["github", "openai"], {"github": {}, "openai": {}}),
        (("github",), {"github": {}}),
    ],
)
def test_what_a_create_sends(given: Any, sent: Any) -> None:
    assert credential_calls.wishes(given) == sent
    call = calls.create("base", credentials=given)
    assert isinstance(call.json, dict)
    assert call.json.get("credentials") == sent


def test_a_key_alone_is_no_list_of_services() -> None:
    with pytest.raises(BadRequest) as raised:
        calls.create("base", credentials="sk-secret")
    assert "sk-secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "endpoints", "body"),
    [
        (UNSET, UNSET, {}),
        ("sk-1", UNSET, {"key": "sk-1"}),
        (None, UNSET, {"key": None}),
        (UNSET, RULES, {"endpoints": RULES}),
        (UNSET, [{"methods": ("GET",)}], {"endpoints": [{"methods": ["GET"]}]}),
        (UNSET, [], {"endpoints": []}),
    ],
)
def test_what_is_not_given_is_not_sent(key: Any, endpoints: Any, body: dict[str, Any]) -> None:
    call = credential_calls.set_of_box(REF, "openai", key, endpoints)
    assert (call.method, call.path) == ("PUT", f"/api/v1/sandboxes/{REF}/credentials/openai")
    assert call.json == body
    assert call.retry is Retry.LOST
    if key is not None:
        shared = credential_calls.set_shared("openai", key, endpoints, "lab")
        assert (shared.path, shared.json) == ("/api/v1/credentials/openai", {**body, "project": "lab"})


def test_requests_go_to_their_paths() -> None:
    assert credential_calls.of_box(REF).path == f"/api/v1/sandboxes/{REF}/credentials"
    removed = credential_calls.remove_of_box(REF, "a/b")
    assert (removed.method, removed.path) == ("DELETE", f"/api/v1/sandboxes/{REF}/credentials/a%2Fb")
    assert credential_calls.shared("lab").query == {"project": "lab"}
    assert credential_calls.shared(None).query == {}
    assert credential_calls.remove_shared("x", "lab").query == {"project": "lab"}
    assert credential_calls.services().path == "/api/v1/credential-services"
    put = credential_calls.put_service("mine", "https://a.example", {"header": None, "value": "{key}"})
    assert put.json == {"upstream": "https://a.example", "value": "{key}"}
    assert credential_calls.remove_service("mine").path == "/api/v1/credential-services/mine"
    assert credential_calls.rekey().parse({"secrets": 3}) == 3


def test_answers_are_read() -> None:
    (found,) = credential_calls.of_box(REF).parse(json.loads(json.dumps({"credentials": [WIRE]})))
    assert (found.service, found.key, found.url) == ("openai", "own", WIRE["url"])
    assert found.endpoints == tuple(RULES)
    assert found.changed_at is not None
    assert found.changed_at.day == 2
    bare = credential_calls.of_box(REF).parse({"credentials": [{}]})[0]
    assert (bare.upstream, bare.env, bare.endpoints) == (None, {}, ())
    (service,) = credential_calls.services().parse({"services": [{"name": "mine", "builtin": True}]})
    assert (service.name, service.builtin, service.env) == ("mine", True, {})


@pytest.mark.parametrize("name", ["Credentials", "ProjectCredentials", "Services"])
def test_the_awaited_ones_are_alike(name: str) -> None:
    ours, twin = vars(getattr(credentials, name)), vars(getattr(awaited, name))
    public = {member for member in ours if not member.startswith("_")}
    assert public == {member for member in twin if not member.startswith("_")}
    for member in public:
        assert inspect.signature(ours[member]).parameters.keys() == inspect.signature(twin[member]).parameters.keys()
        assert inspect.iscoroutinefunction(twin[member])
