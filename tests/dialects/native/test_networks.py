"""Networks and profiles over the wire. The fake driver connects nobody: tests/system has sandboxes that are."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import httpx2
import pytest


@pytest.fixture(autouse=True)
def _only_the_fake_driver(driver) -> None:
    # Not by a parametrization of `driver`: pytest would go on with the server of another module's last driver.
    if driver != "fake":
        pytest.skip("a real driver would lead out by this machine's own network: tests/system has a world for that")


NOTHING = {
    "mode": "none", "profile": None, "rules": [], "default": None, "dry_run": False, "links": [],
    "bandwidth_mbps": None, "connections_per_s": None,
}  # fmt: skip


def test_a_sandbox_has_no_network_unless_it_asks(server, box):
    view = server.client.get(f"/sandboxes/{box}/network").json()
    assert view == {
        "sandbox": box, "policy": NOTHING, "address": None, "links": {}, "sent_bytes": 0, "received_bytes": 0,
    }  # fmt: skip
    assert server.client.put(f"/sandboxes/{box}/network", json=view["policy"]).json() == view
    assert server.client.get(f"/sandboxes/{box}/network/refusals").json() == {"refusals": []}


@pytest.mark.parametrize("network", ["open", "claude-code", {"rules": [{"action": "allow", "target": "a.example"}]}])
def test_a_driver_that_connects_nobody_says_so(server, network):
    answer = server.client.post("/sandboxes", json={"network": network})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (501, "unsupported", "network")


@pytest.mark.parametrize(
    ("network", "field", "words"),
    [
        ("nope", "network.profile", "no network profile 'nope'; there is: unrestricted, locked-down"),
        ({"mode": "closed"}, "network.mode", "invalid enum value"),
        ({"rules": [{"action": "allow"}]}, "network.rules.target", "is missing"),
        ({"rules": [{"action": "allow", "target": "10.0.0.1"}]}, "network.rules", "10.0.0.1/32 cannot be allowed"),
        ({"rules": [{"action": "allow", "target": "a", "ports": [0]}]}, "network.rules.ports", "expected int >= 1"),
        ({"rules": [{"action": "allow", "target": "a", "ports": ["9-8"]}]}, "network.rules", "rule 1: ports"),
        ({"rules": [{"action": "deny", "target": "a..b"}]}, "network.rules", "rule 1: a host name is labels"),
        ({"rules": [{"action": "deny", "target": "a", "port": 1}]}, "network.rules.port", "is not known here"),
        ({"rules": [{"action": "deny", "target": "a"}] * 257}, "network.rules", "expected array of length <= 256"),
        ({"links": ["nobody"]}, "network.links", "there is no sandbox nobody in this project"),
        ({"mode": "open", "default": "allow"}, "network.mode", "count in the mode policy only"),
        ({"bandwidth_mbps": 0}, "network.bandwidth_mbps", "expected float >= 0.01"),
        (7, "network", "expected"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_is_refused_by_its_field(server, network, field, words):
    answer = server.client.post("/sandboxes", json={"network": network})
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (400, field), problem
    assert words in problem["detail"]


def test_why_is_told_without_a_connection(server, box):
    said = server.client.post(f"/sandboxes/{box}/network/why", json={"host": "A.Example."}).json()
    assert said == {
        "action": "deny", "rule": "mode none", "let_through": False, "addresses": None,
        "steps": [{"step": "packet", "action": "deny", "rule": "mode none", "address": None}],
    }  # fmt: skip
    for body, field in (({"host": "a b"}, "host"), ({"host": "a", "port": 70000}, "port"), ({}, "host")):
        answer = server.client.post(f"/sandboxes/{box}/network/why", json=body)
        assert (answer.status_code, answer.json()["field"]) == (400, field)


def test_profiles_are_the_operators_to_change(server):
    client = server.client
    listed = client.get("/network-profiles").json()["profiles"]
    assert [one["name"] for one in listed[:2]] == ["unrestricted", "locked-down"]
    rule = {"action": "allow", "target": "api.example", "ports": [443, "8000-8010"], "protocol": "tcp"}
    body = {"description": "ours", "rules": [rule]}
    made = client.put("/network-profiles/ours", json=body).json()
    assert made == {
        "name": "ours", "description": "ours", "mode": "policy", "rules": [rule], "default": "deny", "registries": [],
        "builtin": False, "changed": True,
    }  # fmt: skip
    assert client.get("/network-profiles/ours").json() == made
    reader = client.post("/keys", json={"name": "r", "scopes": ["read", "create"]}).json()["key"]
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": reader}) as other:
        assert other.get("/network-profiles/ours").json() == made
        assert other.put("/network-profiles/ours", json={}).status_code == 403
        assert other.delete("/network-profiles/ours").status_code == 403
    assert client.delete("/network-profiles/ours").status_code == 204
    assert client.get("/network-profiles/ours").status_code == 404
    assert client.delete("/network-profiles/locked-down").json()["code"] == "conflict"
    assert client.put("/network-profiles/Bad_Name", json={}).json()["field"] == "name"
    assert client.put("/network-profiles/x", json={"mode": "open", "registries": ["pip"]}).json()["field"] == "mode"


def test_a_projects_default_is_set_shown_and_taken_away(server):
    client = server.client
    client.post("/projects", json={"id": "nets"})
    assert client.get("/projects/nets/network").json() == {"network": None}
    rule = {"action": "allow", "target": "a.example", "ports": [], "protocol": None}
    shown = client.put("/projects/nets/network", json={"rules": [rule]}).json()
    assert shown["network"]["rules"] == [rule]
    assert client.get("/projects/nets/network").json() == shown
    assert client.put("/projects/nets/network", json={"links": ["a"]}).json()["field"] == "network.links"
    assert client.get("/projects/nope/network").status_code == 404
    assert client.put("/projects/nope/network", json={}).status_code == 404
    body = {"name": "m", "project": "nets", "scopes": ["read", "create"]}
    member = client.post("/keys", json=body).json()["key"]
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": member}) as other:
        assert other.get("/projects/nets/network").json() == shown
        assert other.get("/projects/default/network").status_code == 404
        assert other.delete("/projects/nets/network").status_code == 403
        assert other.post("/sandboxes", json={}).json()["code"] == "unsupported", "the default is applied"
        assert other.post("/sandboxes", json={"network": "none"}).status_code == 201
    assert client.delete("/projects/nets/network").status_code == 204
    assert client.get("/projects/nets/network").json() == {"network": None}
