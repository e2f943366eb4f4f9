"""From what callers ask of the network to the policy that holds."""

from __future__ import annotations

import pytest

from cove.core.networkrules import RULES, checked_profile, checked_request, policy_of, request_of
from cove.model.closed import ClosedRanges, parse_opening
from cove.model.errors import BadRequest, TooLarge
from cove.model.network import (
    NO_NETWORK,
    OPEN_NETWORK,
    NetworkMode,
    NetworkPolicy,
    NetworkProfile,
    NetworkRequest,
    NetworkRule,
    PortRange,
    Protocol,
    Verdict,
)

CLOSED = ClosedRanges([parse_opening("10.9.0.0/16:5432"), parse_opening("192.168.7.0/24")])
ALLOW, DENY = Verdict.ALLOW, Verdict.DENY


def allow(target: str, *ports: tuple[int, int], protocol: Protocol | None = None) -> NetworkRule:
    ranges = tuple(PortRange(*one) for one in ports)
    return NetworkRule(verdict=ALLOW, target=target, ports=ranges, protocol=protocol)


def checked(*rules: NetworkRule, **fields) -> NetworkRequest:  # noqa: ANN003 - fields of the request
    return checked_request(NetworkRequest(rules=rules, **fields), CLOSED)


def test_targets_and_ports_come_into_their_one_form() -> None:
    found = checked(allow("Bücher.Example.", (443, 443), (80, 80), (80, 80)), allow("8.8.8.8"))
    assert found.rules == (allow("xn--bcher-kva.example", (80, 80), (443, 443)), allow("8.8.8.8/32"))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (allow("10.0.0.1"), "rule 2: 10.0.0.1/32 cannot be allowed (closed: 10.0.0.0/8)"),
        (allow("169.254.169.254"), "rule 2: 169.254.169.254/32 cannot be allowed (closed: 169.254.169.254 (metadata))"),
        (allow("127.0.0.0/8"), "rule 2: 127.0.0.0/8 cannot be allowed"),
        (allow("224.0.0.0/4"), "rule 2: 224.0.0.0/4 cannot be allowed"),
        (allow("8.8.8.8/24"), "rule 2: 8.8.8.8/24 has bits set behind its prefix: write 8.8.8.0/24"),
        (allow("fd00:ec2::254"), "rule 2: IPv6 is closed"),
        (allow("evil.example\0.ok.example"), "rule 2: a host name is labels"),
        (allow("0x7f000001"), "rule 2: a host name does not end in a number"),
        (allow("re:("), "rule 2: this pattern is no RE2 expression"),
        (allow("a.example", (0, 80)), "rule 2: ports are 1-65535"),
        (allow("a.example", (80, 79)), "rule 2: ports are 1-65535"),
        (allow("a.example", (80, 80), protocol=Protocol.ICMP), "rule 2: icmp has no ports"),
    ],
)
def test_a_rule_that_cannot_be_is_named_by_its_number(rule: NetworkRule, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        checked(allow("ok.example"), rule)
    assert caught.value.public.startswith(words)
    assert caught.value.field == "network.rules"


def test_what_the_operator_opened_can_be_allowed_and_what_is_closed_can_be_denied() -> None:
    checked(
        allow("10.9.1.1", (5432, 5432)),
        allow("192.168.7.0/24"),
        allow("0.0.0.0/0"),
        NetworkRule(verdict=DENY, target="10.0.0.0/8"),
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (NetworkRequest(mode=NetworkMode.OPEN, rules=(allow("a.example"),)), "network.mode"),
        (NetworkRequest(mode=NetworkMode.NONE, default=ALLOW), "network.mode"),
        (NetworkRequest(mode=NetworkMode.NONE, profile="packages"), "network.mode"),
        (NetworkRequest(rules=(allow("a.example"),) * (RULES + 1)), "network.rules"),
        (NetworkRequest(rules=(allow("a.example", *[(1, 1)] * 33),)), "network.rules"),
        (NetworkRequest(rules=(allow("re:a"),) * 33), "network.rules"),
        (NetworkRequest(links=("a",) * 33), "network.links"),
        (NetworkRequest(links=("No Name",)), "network.links"),
        (NetworkRequest(bandwidth_bps=1), "network.bandwidth"),
        (NetworkRequest(connections_per_s=0), "network.connections_per_s"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_its_field(request_: NetworkRequest, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        checked_request(request_, CLOSED)
    assert caught.value.field == field


def test_the_mode_follows_from_what_is_given() -> None:
    assert policy_of(NetworkRequest()) == NO_NETWORK
    assert policy_of(NetworkRequest(mode=NetworkMode.OPEN)) == OPEN_NETWORK
    assert policy_of(NetworkRequest(rules=(allow("a.example"),))) == NetworkPolicy(
        mode=NetworkMode.POLICY, rules=(allow("a.example"),)
    )
    assert policy_of(NetworkRequest(default=ALLOW)).mode is NetworkMode.POLICY
    assert policy_of(NetworkRequest(links=("db",))) == NetworkPolicy(links=("db",))


PACKAGES = NetworkProfile(name="packages", rules=(allow("p.example"), allow("q.example")))
UNRESTRICTED = NetworkProfile(name="unrestricted", mode=NetworkMode.OPEN)


def test_a_profiles_rules_stand_behind_the_callers_own() -> None:
    own = NetworkRule(verdict=DENY, target="p.example")
    found = policy_of(NetworkRequest(profile="packages", rules=(own,)), PACKAGES)
    assert found.rules == (own, *PACKAGES.rules)
    assert (found.mode, found.default, found.profile) == (NetworkMode.POLICY, DENY, "packages")


def test_own_rules_on_an_open_profile_are_exceptions_from_it() -> None:
    assert policy_of(NetworkRequest(profile="unrestricted"), UNRESTRICTED).mode is NetworkMode.OPEN
    own = NetworkRule(verdict=DENY, target="p.example")
    found = policy_of(NetworkRequest(profile="unrestricted", rules=(own,)), UNRESTRICTED)
    assert (found.mode, found.rules, found.default) == (NetworkMode.POLICY, (own,), ALLOW)


def test_a_profile_with_rules_cannot_be_opened_by_the_mode() -> None:
    with pytest.raises(BadRequest, match="leave mode out"):
        policy_of(NetworkRequest(mode=NetworkMode.OPEN, profile="packages"), PACKAGES)


@pytest.mark.parametrize("profile", [None, PACKAGES, UNRESTRICTED])
@pytest.mark.parametrize(
    "request_",
    [
        NetworkRequest(),
        NetworkRequest(rules=(allow("a.example"),), dry_run=True, links=("db",), bandwidth_bps=10**6),
        NetworkRequest(default=ALLOW, connections_per_s=5),
    ],
)
def test_what_is_shown_can_be_sent_back(request_: NetworkRequest, profile: NetworkProfile | None) -> None:
    named = NetworkRequest(**{f: getattr(request_, f) for f in request_.__struct_fields__} | {
        "profile": None if profile is None else profile.name
    })  # fmt: skip
    policy = policy_of(named, profile)
    shown = request_of(policy)
    assert policy_of(checked_request(shown, CLOSED), profile) == policy


def test_with_its_profile_a_policy_has_no_more_rules_than_any() -> None:
    request = NetworkRequest(profile="packages", rules=(allow("a.example"),) * (RULES - 1))
    with pytest.raises(TooLarge):
        policy_of(request, PACKAGES)


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        (NetworkProfile(name="No"), "name"),
        (NetworkProfile(name="open"), "name"),
        (NetworkProfile(name="a", description="x\x1b[2J"), "description"),
        (NetworkProfile(name="a", mode=NetworkMode.NONE), "mode"),
        (NetworkProfile(name="a", mode=NetworkMode.OPEN, rules=(allow("a.example"),)), "mode"),
        (NetworkProfile(name="a", registries=("cargo",)), "registries"),
        (NetworkProfile(name="a", rules=(allow("10.0.0.1"),)), "network.rules"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_with_its_field(profile: NetworkProfile, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        checked_profile(profile, CLOSED)
    assert caught.value.field == field


def test_rules_that_the_packet_filter_could_not_hold_are_refused() -> None:
    rules = tuple(
        allow(f"11.{n}.0.0/16", *((100 * port + n % 90, 100 * port + n % 90) for port in range(1, 32)))
        for n in range(256)
    )
    with pytest.raises(BadRequest) as caught:
        policy_of(NetworkRequest(rules=rules))
    assert caught.value.field == "network"
