"""A policy as steps of the packet filter: in its order, the first that fits decides. Pure.

How the kernel is told of them: `flatten.py`, `boxrules.py`.

A rule for a name fits in one of three ways. TCP to 80 and 443: the transparent proxy sees the name and decides with the
whole policy (`CHECK`). QUIC: refused, its name cannot be seen. Everything else: where the name's DNS answer brought the
address, which the resolver has told (`Step.name`). `model/policy.py` says what must come out; a property holds both
together (tests/unit/engine/network/test_steps.py).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Final

from msgspec import Struct

from cove.model.errors import BadRequest
from cove.model.network import NetworkMode, NetworkPolicy, NetworkRule, PortRange, Protocol, Verdict
from cove.model.policy import ALL, is_name_target, names_matter

STEPS: Final = 4096
"""Most steps of one policy: a rule makes one for each of its port ranges, one for a name up to five more."""

CHECKED_PORTS: Final = (80, 443)
QUIC: Final = 443
DNS_OVER_TLS: Final = 853
_ALL_PORTS: Final = PortRange(0, 65535)


class Action(IntEnum):
    """What happens to a packet."""

    ACCEPT = 1
    REFUSE = 2
    CHECK = 3
    """To the transparent proxy."""
    WATCH = 4
    """Accepted, and recorded as what would have been refused."""


class Code(IntEnum):
    """Why, where no rule of the policy says it: a rule's code is its place, from 1."""

    DEFAULT = 0x1001
    MODE = 0x1002
    LINK = 0x1003
    CLOSED = 0x1004
    DNS = 0x1005
    DNS_OVER_TLS = 0x1006
    QUIC = 0x1007
    RATE = 0x1008
    CONNECTIONS = 0x1009
    PROTOCOL = 0x100A
    UNKNOWN = 0x100B


class Mark(Struct, frozen=True):
    """What is decided about a packet, and why: a rule's place, or a `Code`."""

    action: Action
    code: int


class Step(Struct, frozen=True, kw_only=True):
    """One rule of the filter. `protocol` None with `ports`: TCP and UDP; without: all. `name`: a target."""

    mark: Mark
    network: tuple[int, int] | None = None
    """Address and prefix length."""
    protocol: Protocol | None = None
    ports: PortRange | None = None
    name: str | None = None
    """It fits where a name of this target brought the address."""
    is_common: bool = False
    """Of all policies alike, and so done by the base rules where `Outcome` says that they should."""


class Packet(Struct, frozen=True, kw_only=True):
    """The first packet of something. `port` 0: ICMP has none."""

    address: int
    protocol: Protocol
    port: int


@lru_cache(maxsize=256)
def name_targets(policy: NetworkPolicy) -> tuple[str, ...]:
    """The targets that names match, each once."""
    rules = policy.rules if policy.mode is NetworkMode.POLICY else ()
    return tuple(dict.fromkeys(rule.target for rule in rules if is_name_target(rule.target)))


@lru_cache(maxsize=256)
def steps_of(policy: NetworkPolicy) -> tuple[Step, ...]:
    """The steps of a policy; the last one fits everything. Raises: BadRequest (field `network`) for too many."""
    if policy.mode is not NetworkMode.POLICY:
        action = Action.ACCEPT if policy.mode is NetworkMode.OPEN else Action.REFUSE
        return (Step(mark=Mark(action, Code.MODE)),)
    steps: list[Step] = []
    if names_matter(policy):
        mark = Mark(_refusal(policy), Code.DNS_OVER_TLS)
        ports = PortRange(DNS_OVER_TLS, DNS_OVER_TLS)
        steps.append(Step(mark=mark, ports=ports, is_common=not policy.dry_run))
    for place, rule in enumerate(policy.rules, 1):
        mark = Mark(_action(policy, rule.verdict), place)
        make = _for_name if is_name_target(rule.target) else _for_addresses
        steps.extend(make(rule, mark, _refusal(policy)))
    steps.append(Step(mark=Mark(_action(policy, policy.default), Code.DEFAULT)))
    if len(steps) > STEPS:
        raise BadRequest(f"these rules and ports make {len(steps)} packet rules, the most is {STEPS}", field="network")
    return tuple(steps)


def evaluate(steps: Sequence[Step], packet: Packet, targets: Collection[str]) -> Mark:
    """What holds for a packet. `targets`: those that names match which brought its address."""
    return next(step.mark for step in steps if _fits(step, packet, targets))


def _action(policy: NetworkPolicy, verdict: Verdict) -> Action:
    return Action.ACCEPT if verdict is Verdict.ALLOW else _refusal(policy)


def _refusal(policy: NetworkPolicy) -> Action:
    return Action.WATCH if policy.dry_run else Action.REFUSE


def _for_addresses(rule: NetworkRule, mark: Mark, _: Action) -> Iterator[Step]:
    network = None
    if rule.target != ALL:
        parsed = ipaddress.IPv4Network(rule.target)
        network = int(parsed.network_address), parsed.prefixlen
    for protocol, ports in _combinations(rule):
        yield Step(mark=mark, network=network, protocol=protocol, ports=ports)


def _for_name(rule: NetworkRule, mark: Mark, refusal: Action) -> Iterator[Step]:
    ranges = rule.ports or (_ALL_PORTS,)
    is_common = not rule.ports and rule.protocol is None and refusal is Action.REFUSE
    if rule.protocol in {None, Protocol.TCP}:
        for port in CHECKED_PORTS:
            if _has(ranges, port):
                one = PortRange(port, port)
                yield Step(mark=Mark(Action.CHECK, mark.code), protocol=Protocol.TCP, ports=one, is_common=is_common)
    if rule.protocol in {None, Protocol.UDP} and _has(ranges, QUIC):
        quic = PortRange(QUIC, QUIC)
        yield Step(mark=Mark(refusal, Code.QUIC), protocol=Protocol.UDP, ports=quic, is_common=is_common)
    for protocol, ports in _combinations(rule):
        yield Step(mark=mark, protocol=protocol, ports=ports, name=rule.target, is_common=is_common)


def _combinations(rule: NetworkRule) -> Iterator[tuple[Protocol | None, PortRange | None]]:
    """What a rule says of protocols and ports, one range at a time. ICMP has port 0."""
    if not rule.ports:
        yield rule.protocol, None
        return
    if rule.protocol is not Protocol.ICMP:
        for ports in rule.ports:
            yield rule.protocol, ports
    if rule.protocol in {None, Protocol.ICMP} and _has(rule.ports, 0):
        yield Protocol.ICMP, None


def _has(ranges: Sequence[PortRange], port: int) -> bool:
    return any(one.first <= port <= one.last for one in ranges)


def _fits(step: Step, packet: Packet, targets: Collection[str]) -> bool:
    if step.network is not None:
        address, prefix = step.network
        if packet.address >> (32 - prefix) != address >> (32 - prefix):
            return False
    if step.protocol is not None and step.protocol is not packet.protocol:
        return False
    if step.ports is not None and (packet.protocol is Protocol.ICMP or not _has((step.ports,), packet.port)):
        return False
    return step.name is None or step.name in targets
