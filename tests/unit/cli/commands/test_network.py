"""`cove network`, and the options of a network at `run` and `new`: what is asked for, and what is printed."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import json
from typing import Any

import pytest

from cove.cli.networking import network_of
from cove.sdk.errors import BadRequest
from cove.sdk.network_calls import policy_of, rule_of

PATH = "/sandboxes/brave-otter/network"
RULE = {"action": "allow", "target": "a.example", "ports": [443, "8000-8010"], "protocol": "tcp"}


def network(**policy: Any) -> dict[str, Any]:
    base = {"mode": "policy", "profile": None, "rules": [RULE], "default": "deny", "dry_run": False, "links": []}
    return {
        "sandbox": "sb_1", "policy": base | policy, "address": "10.213.0.7", "links": {}, "sent_bytes": 2048,
        "received_bytes": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a.example", {"action": "allow", "target": "a.example"}),
        ("deny *.a.example", {"action": "deny", "target": "*.a.example"}),
        ("a.example:443,8000-8010/tcp", {**RULE, "action": "allow"}),
        ("allow 203.0.113.0/24", {"action": "allow", "target": "203.0.113.0/24"}),
        ("203.0.113.0/24:53/udp", {"action": "allow", "target": "203.0.113.0/24", "ports": [53], "protocol": "udp"}),
        ("allow */icmp", {"action": "allow", "target": "*", "protocol": "icmp"}),
        ("re:a[.]b:c", {"action": "allow", "target": "re:a[.]b:c"}),
    ],
)
def test_a_rule_is_written_as_one_word_or_two(text: str, rule: dict[str, Any]) -> None:
    assert rule_of(text) == rule


@pytest.mark.parametrize("text", ["a.example:", "a.example:http", "a.example:1-", "a.example:1,", "a.example:٣"])
def test_ports_that_are_none_are_refused_here(text: str) -> None:
    with pytest.raises(BadRequest, match="ports are"):
        rule_of(text)


@pytest.mark.parametrize(
    ("policy", "body"),
    [
        ("none", {"mode": "none"}),
        ("open", {"mode": "open"}),
        ("packages", {"profile": "packages"}),
        (["a.example"], {"mode": "policy", "rules": [{"action": "allow", "target": "a.example"}]}),
        ([], {"mode": "policy", "rules": []}),
        ({"rules": ["deny a.example"], "default": "allow"},
         {"rules": [{"action": "deny", "target": "a.example"}], "default": "allow"}),
    ],
)  # fmt: skip
def test_a_policy_is_a_word_a_list_or_the_whole(policy: Any, body: dict[str, Any]) -> None:
    assert policy_of(policy) == body
    assert policy_of(policy, bandwidth="1m") == {**body, "bandwidth_mbps": 1.0}


@pytest.mark.parametrize(
    ("said", "policy"),
    [
        ((None, (), (), ()), None),
        (("open", (), (), ()), "open"),
        ((None, ("a",), (), ()), {"rules": [rule_of("a")]}),
        ((None, ("a",), ("b",), ()), {"rules": [rule_of("deny b"), rule_of("a")]}),
        (("open", (), ("b",), ()), {"rules": [rule_of("deny b")], "default": "allow"}),
        (("packages", ("a",), (), ()), {"rules": [rule_of("a")], "profile": "packages"}),
        ((None, (), (), ("db",)), {"links": ["db"]}),
        (("open", (), (), ("db",)), {"links": ["db"], "mode": "open"}),
    ],
)
def test_options_become_a_policy_with_the_refusals_first(said: Any, policy: Any) -> None:
    assert network_of(*said) == policy


def test_a_new_sandbox_is_made_with_its_network(cove, stub) -> None:
    cove("new", "--allow", "a.example:443")
    assert stub.seen[-1][2]["network"] == {"rules": [{"action": "allow", "target": "a.example", "ports": [443]}]}
    cove("new", "--network", "packages")
    assert stub.seen[-1][2]["network"] == {"profile": "packages"}
    cove("new")
    assert "network" not in stub.seen[-1][2]
    for words in (["--deny", "a.example"], ["--network", "none", "--allow", "a.example"], ["--allow", "a:b"]):
        assert cove("new", *words).code == 2, words


def test_a_network_is_shown_with_its_rules_numbered(cove, stub) -> None:
    shown = network(dry_run=True, profile="ours", links=["db"], bandwidth_mbps=1.5) | {"links": {"db": None}}
    stub.extra["GET", PATH] = shown
    assert cove("network", "show", "brave-otter").out.splitlines() == [
        "mode      policy (profile ours), dry run",
        "rule 1    allow a.example:443,8000-8010/tcp",
        "default   deny",
        "bandwidth 1.5 MiB/s in each direction",
        "link      db.cove.internal  has no network now",
        "address   10.213.0.7, 2.0K out, 0B in",
    ]
    assert cove("network", "show", "brave-otter", "--json", "address").objects == [{"address": "10.213.0.7"}]


def test_a_network_is_set_whole(cove, stub, tmp_path) -> None:
    stub.extra["PUT", PATH] = network()
    cove("network", "set", "brave-otter", "--network", "open", "--deny", "b.example", "--dry-run", "--bandwidth", "1m")
    assert stub.seen[-1] == (
        "PUT",
        f"/api/v1{PATH}",
        {
            "rules": [{"action": "deny", "target": "b.example"}],
            "default": "allow",
            "dry_run": True,
            "bandwidth_mbps": 1.0,
        },
    )
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"mode": "none"}))
    cove("network", "set", "brave-otter", "--from", str(file))
    assert stub.seen[-1][2] == {"mode": "none"}
    file.write_text("[]")
    for words in ([], ["--from", str(file)], ["--from", "/nonexistent"], ["--from", str(file), "--network", "none"]):
        assert cove("network", "set", "brave-otter", *words).code == 2, words


def test_a_rule_is_put_in_front_of_the_others(cove, stub) -> None:
    stub.extra["GET", PATH], stub.extra["PUT", PATH] = network(), network()
    cove("network", "allow", "brave-otter", "b.example", "c.example:22")
    assert [rule["target"] for rule in stub.seen[-1][2]["rules"]] == ["b.example", "c.example", "a.example"]
    stub.extra["GET", PATH] = network(mode="open", rules=[], default=None)
    cove("network", "deny", "brave-otter", "b.example")
    assert stub.seen[-1][2]["rules"] == [{"action": "deny", "target": "b.example"}]
    assert stub.seen[-1][2]["default"] == "allow"
    stub.extra["GET", PATH] = network(mode="none", rules=[], default=None)
    assert cove("network", "deny", "brave-otter", "b.example").code == 2


def test_why_tells_the_rule_alone_on_stdout(cove, stub) -> None:
    steps = [{"step": "dns", "action": "deny", "rule": "default: deny\x1b[2J", "address": None}]
    said = {"action": "deny", "rule": "default: deny\x1b[2J", "let_through": False, "addresses": None, "steps": steps}
    stub.extra["POST", f"{PATH}/why"] = said
    ran = cove("network", "why", "brave-otter", "b.example:8443")
    assert ran.out == "refused: default: deny[2J\n"
    assert "cove network allow brave-otter b.example:8443" in ran.err
    assert stub.seen[-1][2] == {"host": "b.example", "port": 8443, "protocol": "tcp"}
    cove("network", "why", "brave-otter", "203.0.113.7", "--port", "53", "--protocol", "udp")
    assert stub.seen[-1][2] == {"host": "203.0.113.7", "port": 53, "protocol": "udp"}
    assert cove("network", "why", "brave-otter", "a:b").code == 2
    stub.extra["POST", f"{PATH}/why"] = said | {"let_through": True}
    assert cove("network", "why", "brave-otter", "b.example").out.startswith("let through by the dry run: ")


def test_refusals_are_listed_without_control_characters(cove, stub) -> None:
    one = {
        "at": "2026-01-02T03:04:05.000Z", "layer": "dns", "name": "evil\x1b]0;x\x07.example", "address": None,
        "port": 0, "protocol": "udp", "rule": "default: deny", "count": 3, "dry_run": False,
    }  # fmt: skip
    stub.extra["GET", f"{PATH}/refusals"] = {"refusals": [one]}
    out = cove("network", "refusals", "brave-otter").out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "evil]0;x.example" in out
    stub.extra["GET", f"{PATH}/refusals"] = {"refusals": []}
    assert cove("network", "refusals", "brave-otter").err == "Nothing was refused.\n"


def test_profiles_and_defaults_are_managed(cove, stub) -> None:
    profile = {
        "name": "ours", "description": "for us", "mode": "policy", "rules": [RULE], "default": "deny",
        "registries": ["pip"], "builtin": False, "changed": True,
    }  # fmt: skip
    stub.extra["GET", "/network-profiles"] = {"profiles": [profile]}
    assert cove("network", "profiles", "ls").out.splitlines()[1].split() == ["ours", "1", "rules", "for", "us"]
    stub.extra["GET", "/network-profiles/ours"] = profile
    assert "rule 1    allow a.example:443" in cove("network", "profiles", "show", "ours").out
    stub.extra["PUT", "/network-profiles/ours"] = profile
    cove("network", "profiles", "set", "ours", "--allow", "a.example", "--deny", "b.example", "--registries", "pip,npm")
    assert stub.seen[-1][2] == {
        "description": "", "mode": "policy", "default": "deny", "registries": ["pip", "npm"],
        "rules": [{"action": "deny", "target": "b.example"}, {"action": "allow", "target": "a.example"}],
    }  # fmt: skip
    stub.extra["DELETE", "/network-profiles/ours"] = b""
    assert cove("network", "profiles", "rm", "ours").code == 0
    stub.extra["GET", "/projects/lab/network"] = {"network": None}
    assert cove("network", "default", "lab").out == "mode      none\n"
    stub.extra["PUT", "/projects/lab/network"] = {"network": {"profile": "ours", "rules": []}}
    cove("network", "default", "lab", "--network", "ours")
    assert stub.seen[-1] == ("PUT", "/api/v1/projects/lab/network", {"profile": "ours"})
