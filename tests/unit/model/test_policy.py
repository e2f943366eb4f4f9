"""What a policy says of a destination: the truth table of docs/guides/network.md, and properties."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.closed import ClosedRanges
from cove.model.network import (
    NO_NETWORK,
    OPEN_NETWORK,
    NetworkMode,
    NetworkPolicy,
    NetworkRule,
    PortRange,
    Protocol,
    Verdict,
)
from cove.model.policy import (
    Destination,
    canonical_target,
    could_allow,
    decide,
    guarded,
    names_matter,
    needs_name,
    rule_words,
)

CLOSED = ClosedRanges(inside=["10.213.0.0/16"])
ALLOW, DENY, TCP, UDP, ICMP = Verdict.ALLOW, Verdict.DENY, Protocol.TCP, Protocol.UDP, Protocol.ICMP


def rule(text: str) -> NetworkRule:
    """`deny *.evil.example:80,8000-8010/tcp`, as `rule_words` writes it."""
    verdict, _, rest = text.partition(" ")
    rest, has_protocol, protocol = rest.rpartition("/") if rest.endswith(("/tcp", "/udp", "/icmp")) else (rest, "", "")
    target, _, ports = rest.partition(":") if not rest.startswith("re:") else (rest, "", "")
    return NetworkRule(
        verdict=Verdict(verdict),
        target=canonical_target(target),
        ports=tuple(PortRange(int(one.split("-")[0]), int(one.split("-")[-1])) for one in ports.split(",") if one),
        protocol=Protocol(protocol) if has_protocol else None,
    )


def policy(*rules: str, default: Verdict = DENY) -> NetworkPolicy:
    return NetworkPolicy(mode=NetworkMode.POLICY, rules=tuple(map(rule, rules)), default=default)


def said(held: NetworkPolicy, name: str | None, address: str | None, port: int = 443, protocol: Protocol = TCP) -> str:
    decision = decide(held, Destination(name=name, address=address, port=port, protocol=protocol), CLOSED)
    return f"{decision.verdict} ({decision.rule})"


@pytest.mark.parametrize(
    ("held", "name", "address", "expected"),
    [
        (NO_NETWORK, "a.example", "8.8.8.8", "deny (mode none)"),
        (OPEN_NETWORK, "a.example", "8.8.8.8", "allow (mode open)"),
        (OPEN_NETWORK, None, "8.8.8.8", "allow (mode open)"),
        (OPEN_NETWORK, "a.example", "10.0.0.1", "deny (closed: 10.0.0.0/8)"),
        (OPEN_NETWORK, None, "169.254.169.254", "deny (closed: 169.254.169.254 (metadata))"),
        (OPEN_NETWORK, None, "10.213.0.9", "deny (closed: 10.213.0.0/16 (sandboxes))"),
        (OPEN_NETWORK, None, "2606:4700::1111", "deny (closed: IPv6)"),
        (policy(), None, "8.8.8.8", "deny (default: deny)"),
        (policy(default=ALLOW), None, "8.8.8.8", "allow (default: allow)"),
        (policy("allow 10.0.0.0/8"), None, "10.0.0.1", "deny (closed: 10.0.0.0/8)"),
        (policy("allow a.example"), "a.example", "127.0.0.1", "deny (closed: 127.0.0.0/8)"),
        (policy("allow a.example"), "a.example", "8.8.8.8", "allow (rule 1: allow a.example)"),
        (policy("allow a.example"), "a.example", None, "allow (rule 1: allow a.example)"),
        (policy("allow a.example"), "b.a.example", "8.8.8.8", "deny (default: deny)"),
        (policy("allow a.example"), "aa.example", "8.8.8.8", "deny (default: deny)"),
        (policy("allow a.example"), None, "8.8.8.8", "deny (default: deny)"),
        (policy("allow *.a.example"), "a.example", "8.8.8.8", "deny (default: deny)"),
        (policy("allow *.a.example"), "b.a.example", "8.8.8.8", "allow (rule 1: allow *.a.example)"),
        (policy("allow *.a.example"), "c.b.a.example", "8.8.8.8", "allow (rule 1: allow *.a.example)"),
        (policy("allow *.a.example"), "ba.example", "8.8.8.8", "deny (default: deny)"),
        (policy("deny b.a.example", "allow *.a.example"), "b.a.example", "8.8.8.8", "deny (rule 1: deny b.a.example)"),
        (policy("allow *.a.example", "deny b.a.example"), "b.a.example", "8.8.8.8",
         "allow (rule 1: allow *.a.example)"),
        (policy("deny b.example", default=ALLOW), "b.example", "8.8.8.8", "deny (rule 1: deny b.example)"),
        (policy("deny b.example", default=ALLOW), None, "8.8.8.8", "allow (default: allow)"),
        (policy("deny 8.8.8.0/24", "allow a.example"), "a.example", "8.8.8.8", "deny (rule 1: deny 8.8.8.0/24)"),
        (policy("allow a.example", "deny 8.8.8.0/24"), "a.example", "8.8.8.8", "allow (rule 1: allow a.example)"),
        (policy("allow 8.8.8.8"), None, "8.8.8.8", "allow (rule 1: allow 8.8.8.8/32)"),
        (policy("allow 8.8.8.8"), "any.example", "8.8.8.8", "allow (rule 1: allow 8.8.8.8/32)"),
        (policy("allow 8.8.8.8"), None, "8.8.8.9", "deny (default: deny)"),
        (policy("allow 8.8.8.8"), "a.example", None, "deny (default: deny)"),
        (policy("allow a.example:443/tcp"), "a.example", "8.8.8.8", "allow (rule 1: allow a.example:443/tcp)"),
        (policy("allow a.example:80"), "a.example", "8.8.8.8", "deny (default: deny)"),
        (policy("allow a.example/udp"), "a.example", "8.8.8.8", "deny (default: deny)"),
        (policy("allow a.example:400-500"), "a.example", "8.8.8.8", "allow (rule 1: allow a.example:400-500)"),
        (policy("deny *:25", "allow *"), None, "8.8.8.8", "allow (rule 2: allow *)"),
        (policy("deny *"), None, "8.8.8.8", "deny (rule 1: deny *)"),
        (policy("allow 0.0.0.0/0"), None, "8.8.8.8", "allow (rule 1: allow 0.0.0.0/0)"),
        (policy("allow re:api-[0-9]+"), "api-7", "8.8.8.8", "allow (rule 1: allow re:api-[0-9]+)"),
        (policy("allow re:api-[0-9]+"), "xapi-7", "8.8.8.8", "deny (default: deny)"),
    ],
)  # fmt: skip
def test_the_truth_table(held: NetworkPolicy, name: str | None, address: str | None, expected: str) -> None:
    assert said(held, name, address) == expected


def test_ports_do_not_match_what_has_none() -> None:
    assert said(policy("allow 8.8.8.8:0-65535"), None, "8.8.8.8", 0, ICMP).startswith("allow")
    assert said(policy("allow 8.8.8.8:1-65535"), None, "8.8.8.8", 0, ICMP).startswith("deny")
    assert said(policy("allow 8.8.8.8"), None, "8.8.8.8", 0, ICMP).startswith("allow")


@pytest.mark.parametrize(
    ("held", "name", "expected"),
    [
        (NO_NETWORK, "a.example", "mode none"),
        (OPEN_NETWORK, "a.example", "mode open"),
        (policy("allow 8.8.8.8"), "a.example", "default: deny"),
        (policy("allow 8.8.8.8", "allow a.example:22"), "a.example", "rule 2: allow a.example:22"),
        (policy("allow 0.0.0.0/0"), "a.example", "rule 1: allow 0.0.0.0/0"),
        (policy("allow *:443"), "a.example", "rule 1: allow *:443"),
        (policy("deny a.example", "allow *"), "a.example", "rule 1: deny a.example"),
        (policy("deny a.example:80", "allow *"), "a.example", "rule 2: allow *"),
        (policy("deny a.example/tcp", "deny a.example/udp", "allow a.example/icmp"), "a.example",
         "rule 3: allow a.example/icmp"),
        (policy("deny a.example/tcp", "deny a.example/udp", "allow a.example:80"), "a.example", "default: deny"),
        (policy("deny a.example:1-99", "deny a.example:100-65535", "deny a.example/icmp", default=ALLOW), "a.example",
         "rule 3: deny a.example/icmp"),
        (policy("deny 8.8.8.8", default=ALLOW), "a.example", "default: allow"),
    ],
)  # fmt: skip
def test_which_names_may_be_resolved_and_by_which_rule(held: NetworkPolicy, name: str, expected: str) -> None:
    decision = could_allow(held, name)
    assert decision.rule == expected
    assert decision.is_allowed == ("allow" in expected or expected == "mode open")


def test_an_answer_is_handed_out_where_some_port_of_it_would_be_allowed() -> None:
    held = policy("deny 8.8.8.0/24", "allow a.example")
    assert could_allow(held, "a.example", "9.9.9.9").is_allowed
    assert could_allow(held, "a.example", "8.8.8.8").rule == "rule 1: deny 8.8.8.0/24"
    assert could_allow(held, "a.example", "10.0.0.1", CLOSED).rule == "closed: 10.0.0.0/8"
    assert not could_allow(policy("allow 8.8.8.8"), "a.example", "8.8.8.8").is_allowed


def test_only_an_address_that_a_rule_decides_before_any_name_needs_no_name() -> None:
    held = policy("allow 8.8.8.8", "allow a.example:443", "allow 9.9.9.9")
    assert not needs_name(held, "8.8.8.8", 443, TCP)
    assert needs_name(held, "9.9.9.9", 443, TCP)
    assert not needs_name(held, "9.9.9.9", 80, TCP)
    assert needs_name(held, "1.1.1.1", 443, UDP)
    assert not needs_name(OPEN_NETWORK, "1.1.1.1", 443, TCP)


def test_names_stay_checkable_where_they_are_the_rule() -> None:
    def reason(held: NetworkPolicy, port: int, protocol: Protocol, address: str = "1.1.1.1") -> str | None:
        return guarded(held, Destination(name=None, address=address, port=port, protocol=protocol))

    names, addresses = policy("allow 8.8.8.8", "allow a.example"), policy("allow 8.8.8.8")
    assert names_matter(names)
    assert not names_matter(addresses)
    assert not names_matter(policy("deny *:25", "allow *"))
    for held in (OPEN_NETWORK, names, addresses):
        assert reason(held, 53, UDP, "8.8.8.8")
        assert reason(held, 53, TCP)
        assert reason(held, 443, TCP) is None
        assert reason(held, 53, ICMP) is None
    assert reason(names, 853, TCP, "8.8.8.8")
    assert reason(names, 443, UDP)
    assert reason(names, 443, UDP, "8.8.8.8") is None
    assert reason(addresses, 443, UDP) is None
    assert reason(addresses, 853, TCP) is None


def test_only_what_is_closed_says_so() -> None:
    def is_closed(held: NetworkPolicy, address: str) -> bool:
        return decide(held, Destination(name=None, address=address, port=443, protocol=TCP), CLOSED).is_closed

    assert is_closed(policy(default=ALLOW), "10.0.0.1")
    assert not is_closed(policy(), "8.8.8.8")
    assert could_allow(OPEN_NETWORK, "a.example", "10.0.0.1", CLOSED).is_closed
    assert not could_allow(OPEN_NETWORK, "a.example", "8.8.8.8", CLOSED).is_closed


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("*", "*"), (" Example.COM. ", "example.com"), ("*.Example.com", "*.example.com"), ("8.8.8.8", "8.8.8.8/32"),
        ("8.8.0.0/16", "8.8.0.0/16"), ("0.0.0.0/0", "0.0.0.0/0"), ("re:api[.].*", "re:api[.].*"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)  # fmt: skip
def test_a_target_has_one_form(text: str, canonical: str) -> None:
    assert canonical_target(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", "*.", "*.*.example", "a*.example", "**", "8.8.8.8/33", "8.8.8.8/24", "8.8.8.8:80", "::/0", "fe80::1",
        "2130706433", "0x8.8.8.8", "010.0.0.1", "re:", "re:(", "re:" + "a" * 600, "re:(((a{900}){900}))", "re:\n",
        "re:ä", "a.example/24", "example.com:80", "re:(?P<x>a)\\1",
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_target(text)


def test_a_pattern_takes_linear_time() -> None:
    held = policy("allow re:(a|aa|a.|.a)*(a+)+$")
    assert said(held, ("a" * 60 + ".") * 4 + "b", "8.8.8.8").startswith("deny")


# Properties. Few names, addresses and ports, so that rules meet their destinations.

NAMES = ["a.example", "b.a.example", "c.b.a.example", "z.example"]
ADDRESSES = ["8.8.8.8", "8.8.9.9", "1.1.1.1", "10.0.0.1"]
TARGETS = [
    "*",
    "a.example",
    "*.a.example",
    "*.b.a.example",
    "8.8.8.8/32",
    "8.8.0.0/16",
    "0.0.0.0/0",
    "re:.*z.*",
    "10.0.0.0/8",
]
PORTS = [PortRange(80, 80), PortRange(443, 443), PortRange(1, 100), PortRange(1, 65535)]
rules = st.builds(
    NetworkRule,
    verdict=st.sampled_from(Verdict),
    target=st.sampled_from(TARGETS),
    ports=st.lists(st.sampled_from(PORTS), max_size=2).map(tuple),
    protocol=st.sampled_from([None, *Protocol]),
)
policies = st.builds(
    NetworkPolicy,
    mode=st.sampled_from([NetworkMode.POLICY, NetworkMode.POLICY, NetworkMode.POLICY, *NetworkMode]),
    rules=st.lists(rules, max_size=6).map(tuple),
    default=st.sampled_from(Verdict),
)
ways = st.sampled_from([(80, TCP), (443, TCP), (443, UDP), (9999, TCP), (0, ICMP)])
EVERY_WAY = [(port, protocol) for protocol in (TCP, UDP) for port in (1, 79, 80, 81, 100, 101, 443, 65535)] + [
    (0, ICMP)
]


def plainly(held: NetworkPolicy, destination: Destination) -> Verdict:
    """The sentence of the guide, word by word."""
    address = None if destination.address is None else ipaddress.IPv4Address(destination.address)
    if address is not None and CLOSED.why(str(address), destination.port):
        return DENY
    if held.mode is not NetworkMode.POLICY:
        return ALLOW if held.mode is NetworkMode.OPEN else DENY
    for one in held.rules:
        is_port = not one.ports or any(destination.port in range(r.first, r.last + 1) for r in one.ports)
        if not is_port or one.protocol not in {None, destination.protocol}:
            continue
        name = destination.name
        if "/" in one.target:
            is_match = address is not None and address in ipaddress.IPv4Network(one.target)
        elif one.target.startswith("re:"):
            is_match = name is not None and "z" in name
        elif one.target.startswith("*."):
            is_match = name is not None and name.endswith(one.target[1:])
        else:
            is_match = one.target in {"*", name}
        if is_match:
            return one.verdict
    return held.default


@given(policies, st.sampled_from([None, *NAMES]), st.sampled_from([None, *ADDRESSES]), ways)
def test_a_decision_is_the_guides_sentence(
    held: NetworkPolicy, name: str | None, address: str | None, way: tuple[int, Protocol]
) -> None:
    destination = Destination(name=name, address=address, port=way[0], protocol=way[1])
    assert decide(held, destination, CLOSED).verdict is plainly(held, destination)


@given(policies, st.sampled_from(NAMES), st.sampled_from(ADDRESSES))
def test_an_answer_is_handed_out_exactly_where_a_decision_could_allow_it(
    held: NetworkPolicy, name: str, address: str
) -> None:
    some = any(
        decide(held, Destination(name=name, address=address, port=port, protocol=protocol), CLOSED).is_allowed
        for port, protocol in EVERY_WAY
    )
    assert could_allow(held, name, address, CLOSED).is_allowed == (some and could_allow(held, name).is_allowed)


@given(policies, st.sampled_from(NAMES))
def test_a_name_that_no_address_makes_reachable_by_name_is_not_resolved(held: NetworkPolicy, name: str) -> None:
    """Everything that rules for some addresses say aside, resolving follows the decisions."""
    broad = NetworkPolicy(
        mode=held.mode, default=held.default, rules=tuple(one for one in held.rules if one.target[0] not in "18")
    )
    some = any(
        decide(broad, Destination(name=name, address="5.5.5.5", port=port, protocol=protocol), CLOSED).is_allowed
        for port, protocol in EVERY_WAY
    )
    assert could_allow(held, name).is_allowed == some


@given(policies, st.sampled_from(ADDRESSES[:3]), ways)
def test_where_no_name_is_needed_none_changes_anything(
    held: NetworkPolicy, address: str, way: tuple[int, Protocol]
) -> None:
    if needs_name(held, address, *way):
        return
    found = {
        decide(held, Destination(name=name, address=address, port=way[0], protocol=way[1]), CLOSED).rule
        for name in (None, *NAMES)
    }
    assert len(found) == 1


@given(rules)
def test_a_rules_words_are_the_rule(one: NetworkRule) -> None:
    if not one.target.startswith("re:"):
        assert rule(rule_words(one)) == one
