"""What a create may say of the network, and the profiles: section 10 of docs/protocols/isorun.md."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from tests.dialects.conftest import DialectServer
from tests.dialects.isorun.conftest import Make


@pytest.fixture(scope="module")
def profiles(runs: httpx2.Client) -> dict[str, dict[str, Any]]:
    answer = runs.get("/v1/network-profiles")
    found = answer.json()
    assert (answer.status_code, type(found)) == (200, list)
    return {one["name"]: one for one in found}


def test_the_catalogue_is_a_bare_array(profiles: dict[str, dict[str, Any]]) -> None:
    assert {"unrestricted", "locked-down", "claude-code", "openai", "data-science", "web-dev"} <= set(profiles)
    for one in profiles.values():
        assert set(one) == {"name", "description", "allow", "deny"}


def test_profiles_are_shown_as_lists(profiles: dict[str, dict[str, Any]]) -> None:
    assert (profiles["unrestricted"]["allow"], profiles["unrestricted"]["deny"]) == ([], [])
    assert (profiles["locked-down"]["allow"], profiles["locked-down"]["deny"]) == ([], ["0.0.0.0/0"])
    assert "api.anthropic.com" in profiles["claude-code"]["allow"]
    assert "api.openai.com" in profiles["openai"]["allow"]
    assert profiles["openai"]["deny"] == ["0.0.0.0/0"]


@pytest.mark.parametrize(
    "body",
    [
        {"network": {"allow": ["not a host"]}},
        {"network": {"deny": ["*.*.example"]}},
        {"network": {"deny": ["10.0.0.0/99"]}},
        {"network_profile": "no-such-profile"},
        {"network_profile": "openai", "network": {"allow": ["a.example"]}},
        {"network_profile": "openai", "network": {}},
    ],
)
def test_a_wrong_policy_is_400_and_named(runs: httpx2.Client, body: dict[str, object]) -> None:
    answer = runs.post("/v1/runs", json={"image": "base", **body})
    assert (answer.status_code, set(answer.json())) == (400, {"error"})
    assert "network" in answer.json()["error"]


def test_nothing_asked_is_the_internet_where_the_machine_has_it(server: DialectServer, make: Make, driver: str) -> None:
    nothing: tuple[dict[str, object], ...] = ({}, {"network": {}}, {"network": {"allow": [], "deny": []}})
    for body in (*nothing, {"network": None}):
        box = server.client.get(f"/sandboxes/sb_{make(**body)[3:]}/network").json()
        assert box["policy"]["mode"] == ("none" if driver == "fake" else "open")


def test_a_policy_is_what_the_protocol_says(server: DialectServer, make: Make, driver: str) -> None:
    if driver == "fake":
        pytest.skip("its sandboxes have no network of their own")
    run = make(network={"allow": ["*.a.example"], "deny": ["x.a.example", "0.0.0.0/0"]})
    policy = server.client.get(f"/sandboxes/sb_{run[3:]}/network").json()["policy"]
    assert policy["mode"] == "policy"
    run = make(network_profile="locked-down")
    policy = server.client.get(f"/sandboxes/sb_{run[3:]}/network").json()["policy"]
    assert (policy["mode"], policy["profile"]) == ("policy", "locked-down")
