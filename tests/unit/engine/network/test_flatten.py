"""The packet filter's form of a policy says of every packet what the policy itself says."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.engine.network.flatten import LAST_ADDRESS, LAST_PORT, PIECES, Outcome, flatten
from cove.engine.network.steps import Action, Code, Mark, Packet, evaluate, name_targets, steps_of
from cove.model.closed import ClosedRanges
from cove.model.errors import BadRequest
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
from cove.model.policy import Destination, decide, guarded, matches_name, needs_name
from tests_support import SOAK

NAMES = ("a.example", "b.example", "c.test")
TARGETS = (
    "*",
    "11.0.0.0/8",
    "11.1.0.0/16",
    "11.1.1.1/32",
    "12.0.0.0/31",
    "0.0.0.0/0",
    "a.example",
    "*.example",
    "re:c.*",
)
ADDRESSES = ("11.1.1.1", "11.1.1.2", "11.2.0.0", "12.0.0.0", "12.0.0.2", "200.0.0.1")
PORTS = (1, 22, 79, 80, 81, 443, 444, 853, 5432, 65535)


def port_ranges() -> st.SearchStrategy[PortRange]:
    ends = st.tuples(st.sampled_from((0, *PORTS)), st.sampled_from(PORTS))
    return ends.map(lambda two: PortRange(min(two), max(two)))


rules = st.builds(
    NetworkRule,
    verdict=st.sampled_from(Verdict),
    target=st.sampled_from(TARGETS),
    ports=st.lists(port_ranges(), max_size=2).map(tuple),
    protocol=st.sampled_from((None, *Protocol)),
)
policies = st.builds(
    NetworkPolicy,
    mode=st.just(NetworkMode.POLICY),
    rules=st.lists(rules, max_size=6).map(tuple),
    default=st.sampled_from(Verdict),
)
packets = st.tuples(st.sampled_from(ADDRESSES), st.sampled_from(tuple(Protocol)), st.sampled_from(PORTS)).map(
    lambda of: Packet(
        address=int(ipaddress.IPv4Address(of[0])), protocol=of[1], port=0 if of[1] is Protocol.ICMP else of[2]
    )
)


def as_kernel(policy: NetworkPolicy, packet: Packet, name: str | None) -> Mark:
    """Two lookups, among the pieces and among what names brought; between them the base rules."""
    outcome = flatten(policy).outcomes[flatten(policy).at(packet)]
    common = outcome.common(packet)
    if common is not None:
        return common
    for target, mark in outcome.names:
        if name is not None and matches_name(target, name):
            return mark
    return outcome.mark


@settings(max_examples=1000 if SOAK else 300 if SOAK else 80, deadline=None)
@given(policies, packets, st.sampled_from((None, *NAMES)))
def test_pieces_say_what_the_steps_say(policy: NetworkPolicy, packet: Packet, name: str | None) -> None:
    targets = [target for target in name_targets(policy) if name is not None and matches_name(target, name)]
    found, wanted = as_kernel(policy, packet, name), evaluate(steps_of(policy), packet, targets)
    assert found.action is wanted.action
    # Which rule sent it to the proxy nobody asks: the proxy decides with the whole policy.
    assert found.code == wanted.code or found.action is Action.CHECK


@settings(max_examples=1000 if SOAK else 300 if SOAK else 80, deadline=None)
@given(policies, packets, st.sampled_from((None, *NAMES)))
def test_pieces_say_what_the_policy_says(policy: NetworkPolicy, packet: Packet, name: str | None) -> None:
    address = str(ipaddress.IPv4Address(packet.address))
    there = Destination(name=name, address=address, port=packet.port, protocol=packet.protocol)
    mark = as_kernel(policy, packet, name)
    reason = guarded(policy, there)
    if reason is not None:
        assert mark.action is Action.REFUSE
        assert mark.code in {Code.QUIC, Code.DNS_OVER_TLS}
        return
    if (
        packet.protocol is Protocol.TCP
        and packet.port in {80, 443}
        and needs_name(policy, address, packet.port, packet.protocol)
    ):
        assert mark.action is Action.CHECK
        return
    decision = decide(policy, there, ClosedRanges())
    assert (mark.action is Action.ACCEPT) is decision.is_allowed
    said = f"default: {policy.default}" if mark.code == Code.DEFAULT else f"rule {mark.code}:"
    assert decision.rule.startswith(said)


@settings(max_examples=1000 if SOAK else 30, deadline=None)
@given(policies)
def test_pieces_never_overlap(policy: NetworkPolicy) -> None:
    pieces = flatten(policy).pieces
    for at, one in enumerate(pieces):
        assert 0 <= one.first <= one.last <= LAST_ADDRESS
        assert 0 <= one.ports.first <= one.ports.last <= LAST_PORT
        # A kernel key has a range of protocols: UDP alone beside ICMP would take in TCP.
        assert len(one.protocols) == 1 or {Protocol.TCP, Protocol.UDP} <= set(one.protocols)
        assert Protocol.ICMP not in one.protocols or one.ports == PortRange(0, LAST_PORT)
        for other in pieces[at + 1 :]:
            is_apart = one.last < other.first or other.last < one.first or not set(one.protocols) & set(other.protocols)
            assert is_apart or one.ports.last < other.ports.first or other.ports.last < one.ports.first


@settings(max_examples=500 if SOAK else 25, deadline=None)
@given(policies, packets)
def test_a_dry_run_watches_what_would_be_refused(policy: NetworkPolicy, packet: Packet) -> None:
    dry = NetworkPolicy(mode=policy.mode, rules=policy.rules, default=policy.default, dry_run=True)
    real, watched = as_kernel(policy, packet, None), as_kernel(dry, packet, None)
    assert watched.code == real.code or real.action is Action.CHECK
    assert watched.action is (Action.WATCH if real.action is Action.REFUSE else real.action)


@pytest.mark.parametrize(("policy", "action"), [(NO_NETWORK, Action.REFUSE), (OPEN_NETWORK, Action.ACCEPT)])
def test_modes_have_no_pieces(policy: NetworkPolicy, action: Action) -> None:
    flat = flatten(policy)
    assert not flat.pieces
    assert flat.outcomes[flat.default] == Outcome(Mark(action, Code.MODE))


def test_addresses_only_make_one_piece_each() -> None:
    rules_ = tuple(NetworkRule(verdict=Verdict.ALLOW, target=f"11.{n}.0.0/16") for n in range(0, 200, 2))
    flat = flatten(NetworkPolicy(mode=NetworkMode.POLICY, rules=rules_))
    assert len(flat.pieces) == 100
    assert {piece.protocols for piece in flat.pieces} == {tuple(Protocol)}


def test_a_long_list_of_names_makes_few_pieces() -> None:
    rules_ = tuple(NetworkRule(verdict=Verdict.ALLOW, target=f"h{n}.example") for n in range(256))
    flat = flatten(NetworkPolicy(mode=NetworkMode.POLICY, rules=rules_))
    assert not flat.pieces


def test_rules_that_make_too_many_pieces_are_refused_and_soon() -> None:
    rules_ = tuple(
        NetworkRule(
            verdict=Verdict.ALLOW if n % 2 else Verdict.DENY,
            target=f"11.{n}.0.0/16",
            ports=tuple(PortRange(100 * port + n, 100 * port + n) for port in range(1, 12)),
        )
        for n in range(256)
    )
    with pytest.raises(BadRequest) as caught:
        flatten(NetworkPolicy(mode=NetworkMode.POLICY, rules=rules_))
    assert caught.value.field == "network"
    assert str(PIECES) in caught.value.public or "packet rules" in caught.value.public
