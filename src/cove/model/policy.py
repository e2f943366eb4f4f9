"""What a network policy says of one destination: the one place where its rules are evaluated. Pure.

The order, for every mode: what is closed is refused; `none` refuses the rest, `open` allows it; under `policy` the
first rule that matches decides, else the default. The truth table: docs/guides/network.md, and the tests beside.

How a rule matches: its port and protocol, and its target: a CIDR by the address; a name (`host`, `*.host`, `re:`) by
the name that was checked (TLS server name, HTTP Host, or the name whose DNS answer brought the address), so never
where no name is known; `*` always. The packet filter (`engine/network/steps.py`), the resolver and the proxies ask
or mirror this module; properties hold them together.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

from msgspec import Struct

from cove.model.closed import ClosedRanges
from cove.model.hostname import canonical_host
from cove.model.network import NetworkMode, NetworkPolicy, NetworkRule, PortRange, Protocol, Verdict
from cove.model.pattern import check_pattern, compile_pattern

__all__ = [
    "ALL", "ClosedRanges", "Decision", "Destination", "canonical_target", "could_allow", "decide", "guarded",
    "is_name_target", "matches_name", "names_matter", "needs_name", "rule_matches", "rule_words",
]  # fmt: skip

ALL: Final = "*"
PATTERN: Final = "re:"

PORTS: Final = PortRange(0, 65535)
_DNS: Final = 53
_DNS_OVER_TLS: Final = 853
_HTTPS: Final = 443


class Destination(Struct, frozen=True, kw_only=True):
    """Where something goes. `name` is canonical, None: no name is known. `port` 0: the protocol has none."""

    name: str | None
    address: str | None
    port: int
    protocol: Protocol


class Decision(Struct, frozen=True, kw_only=True):
    """`rule` says in plain words what decided: `rule 2: deny *.evil.example`, `default: deny`, `closed: 10.0.0.0/8`.

    `is_closed`: the address is, so that no dry run lets it pass.
    """

    verdict: Verdict
    rule: str
    is_closed: bool = False

    @property
    def is_allowed(self) -> bool:
        """Whether it passes."""
        return self.verdict is Verdict.ALLOW


def decide(policy: NetworkPolicy, destination: Destination, closed: ClosedRanges) -> Decision:
    """What the policy says of `destination`. Links and `dry_run` are not looked at: who enforces knows them."""
    if destination.address is not None:
        reason = _closed(destination.address, closed, destination.port)
        if reason is not None:
            return Decision(verdict=Verdict.DENY, rule=reason, is_closed=True)
    if policy.mode is not NetworkMode.POLICY:
        return _by_mode(policy.mode)
    number = _address_number(destination.address)
    for at, rule in enumerate(policy.rules, 1):
        if _fits(rule, destination.port, destination.protocol) and _matches(rule.target, destination.name, number):
            return Decision(verdict=rule.verdict, rule=f"rule {at}: {rule_words(rule)}")
    return _by_default(policy)


def could_allow(
    policy: NetworkPolicy, name: str, address: str | None = None, closed: ClosedRanges | None = None
) -> Decision:
    """Whether `name` may be resolved at all; with `address`, whether that answer of it may be handed out.

    It may where some port and protocol would be allowed: by a rule for the name, or by one for everything (`*`,
    `0.0.0.0/0`) or the default. A rule for some addresses resolves no name: a list of addresses leaks nothing by DNS.
    """
    decision = _could(policy, name, _EVERY)
    if address is None or not decision.is_allowed:
        return decision
    reason = None if closed is None else _closed(address, closed)
    if reason is not None:
        return Decision(verdict=Verdict.DENY, rule=reason, is_closed=True)
    return _could(policy, name, _address_number(address))


def needs_name(policy: NetworkPolicy, address: str, port: int, protocol: Protocol) -> bool:
    """Whether what holds for this address may hang on a name: a rule for names comes before all that match without."""
    if policy.mode is not NetworkMode.POLICY:
        return False
    number = _address_number(address)
    for rule in policy.rules:
        if not _fits(rule, port, protocol):
            continue
        if is_name_target(rule.target):
            return True
        if _matches(rule.target, None, number):
            return False
    return False


def names_matter(policy: NetworkPolicy) -> bool:
    """Whether names are the rule here: other ways to resolve or hide them are closed then."""
    return policy.mode is NetworkMode.POLICY and any(is_name_target(rule.target) for rule in policy.rules)


def guarded(policy: NetworkPolicy, destination: Destination) -> str | None:
    """Why this is refused whatever the rules say, so that names stay checkable; None: it is not.

    DNS goes to the sandbox's resolver alone; where names are the rule DNS over TLS is closed, and QUIC where a name
    would have to be seen in it.
    """
    port, protocol = destination.port, destination.protocol
    if protocol is Protocol.ICMP:
        return None
    if port == _DNS:
        return "names: DNS is answered by the sandbox's own resolver only"
    if not names_matter(policy):
        return None
    if port == _DNS_OVER_TLS:
        return "names: DNS over TLS is closed where names are the rule"
    is_hidden = destination.address is None or needs_name(policy, destination.address, port, protocol)
    if (port, protocol) == (_HTTPS, Protocol.UDP) and is_hidden:
        return "names: QUIC is closed where a name must be checked"
    return None


def rule_words(rule: NetworkRule) -> str:
    """A rule as people write it: `allow api.example:443,8000-8010/tcp`."""
    ports = ",".join(f"{one.first}" if one.first == one.last else f"{one.first}-{one.last}" for one in rule.ports)
    protocol = "" if rule.protocol is None else f"/{rule.protocol}"
    return f"{rule.verdict} {rule.target}{':' if ports else ''}{ports}{protocol}"


def rule_matches(rule: NetworkRule, name: str | None, address: str | None) -> bool:
    """Whether its target fits, port and protocol aside."""
    return _matches(rule.target, name, _address_number(address))


def is_name_target(target: str) -> bool:
    """Whether it is matched by a name: neither `*` nor addresses."""
    return not isinstance(_matcher(target), (_Everything, _Network))


def matches_name(target: str, name: str) -> bool:
    """Whether a rule's `target` is matched by `name` (canonical)."""
    return _matches(target, name, None)


def canonical_target(text: str, *, strict: bool = True) -> str:
    """A rule's target in the one form that rules have. Not `strict`: a CIDR's host bits are cut off.

    Raises: ValueError with a sentence for people.
    """
    text = text.strip()
    if text == ALL:
        return text
    if text.startswith(PATTERN):
        check_pattern(text.removeprefix(PATTERN))
        return text
    if text.startswith("*."):
        return f"*.{canonical_host(text[2:])}"
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        if "/" in text:
            raise ValueError(f"{text} is no range of IPv4 addresses (203.0.113.0/24)") from None
        return canonical_host(text)
    if network.version != 4:  # noqa: PLR2004 - of IP
        raise ValueError("IPv6 is closed in sandboxes: rules name IPv4 addresses")
    if strict and "/" in text and str(network[0]) != text.partition("/")[0]:
        raise ValueError(f"{text} has bits set behind its prefix: write {network}")
    return str(network)


# Matching.

Ranges = tuple[tuple[int, int], ...]


class _Everything(Struct, frozen=True):
    pass


class _Network(Struct, frozen=True):
    first: int
    last: int


class _Host(Struct, frozen=True):
    name: str


class _Below(Struct, frozen=True):
    suffix: str


class _Pattern(Struct, frozen=True):
    text: str


_EVERY: Final = -1
"""In the place of an address: asks for what matches whatever the address is."""


@lru_cache(maxsize=16384)
def _matcher(target: str) -> _Everything | _Network | _Host | _Below | _Pattern:
    if target == ALL:
        return _Everything()
    if target.startswith(PATTERN):
        return _Pattern(target.removeprefix(PATTERN))
    if target.startswith("*."):
        return _Below(target[1:])
    if "/" in target:
        network = ipaddress.IPv4Network(target)
        return _Network(int(network[0]), int(network[-1]))
    return _Host(target)


def _matches(target: str, name: str | None, number: int | None) -> bool:
    match _matcher(target):
        case _Everything():
            return True
        case _Network(first, last):
            if number == _EVERY:
                return first == 0 and last == _LAST
            return number is not None and first <= number <= last
        case _Host(host):
            return name == host
        case _Below(suffix):
            return name is not None and len(name) > len(suffix) and name.endswith(suffix)
        case _Pattern(text):
            return name is not None and compile_pattern(text).fullmatch(name) is not None


_LAST: Final = 2**32 - 1


def _fits(rule: NetworkRule, port: int, protocol: Protocol) -> bool:
    if rule.protocol is not None and rule.protocol is not protocol:
        return False
    return not rule.ports or any(one.first <= port <= one.last for one in rule.ports)


def _could(policy: NetworkPolicy, name: str, number: int | None) -> Decision:
    """The first rule that allows a port which no rule before has denied."""
    if policy.mode is not NetworkMode.POLICY:
        return _by_mode(policy.mode)
    left = {protocol: _ranges_of(protocol) for protocol in Protocol}
    for at, rule in enumerate(policy.rules, 1):
        if not _matches(rule.target, name, number):
            continue
        decision = Decision(verdict=rule.verdict, rule=f"rule {at}: {rule_words(rule)}")
        protocols = tuple(Protocol) if rule.protocol is None else (rule.protocol,)
        ranges = rule.ports or (PORTS,)
        if decision.is_allowed:
            if any(_overlap(left[protocol], one) for protocol in protocols for one in ranges):
                return decision
            continue
        for protocol in protocols:
            for one in ranges:
                left[protocol] = _without(left[protocol], one)
        if not any(left.values()):
            return decision
    return _by_default(policy)


def _ranges_of(protocol: Protocol) -> Ranges:
    return ((0, 0),) if protocol is Protocol.ICMP else ((1, PORTS.last),)


def _overlap(ranges: Ranges, one: PortRange) -> bool:
    return any(first <= one.last and one.first <= last for first, last in ranges)


def _without(ranges: Ranges, one: PortRange) -> Ranges:
    cut = [part for a, b in ranges for part in ((a, min(b, one.first - 1)), (max(a, one.last + 1), b))]
    return tuple((first, last) for first, last in cut if first <= last)


def _by_mode(mode: NetworkMode) -> Decision:
    verdict = Verdict.ALLOW if mode is NetworkMode.OPEN else Verdict.DENY
    return Decision(verdict=verdict, rule=f"mode {mode}")


def _by_default(policy: NetworkPolicy) -> Decision:
    return Decision(verdict=policy.default, rule=f"default: {policy.default}")


def _closed(address: str, closed: ClosedRanges, port: int | None = None) -> str | None:
    reason = closed.why(address, port)
    return "closed: IPv6" if reason is None and ":" in address else reason


def _address_number(address: str | None) -> int | None:
    """Raises: ValueError for what is no address."""
    if address is None:
        return None
    parsed = ipaddress.ip_address(address)
    return int(parsed) if parsed.version == 4 else None  # noqa: PLR2004 - of IP
