"""From what callers ask of the network to the policy that holds: ranges, forms, profiles. Pure.

An error names the rule by its number, as the caller wrote it, and its field. What rules mean is `model/policy.py`.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cove.core.validation import check_count
from cove.engine.network.flatten import flatten
from cove.model.closed import ClosedRanges
from cove.model.errors import BadRequest, TooLarge
from cove.model.ids import is_name
from cove.model.network import (
    NetworkMode,
    NetworkPolicy,
    NetworkProfile,
    NetworkRequest,
    NetworkRule,
    PortRange,
    Protocol,
    Verdict,
)
from cove.model.policy import PATTERN, canonical_target, is_name_target

RULES: Final = 256
"""Most rules of a policy, those of its profile included."""

PATTERNS: Final = 32
"""Most of them that are patterns: each may take 64 KiB of memory."""

PORT_RANGES: Final = 32
LINKS: Final = 32
PORTS: Final = (1, 65535)
BANDWIDTH_BPS: Final = (10 * 1024, 1024**4)
CONNECTIONS_PER_S: Final = (1, 100_000)
REGISTRIES: Final = ("pip", "npm", "apt")
"""Clients of the machine that can be asked for their registries."""

DESCRIPTION: Final = 200


def checked_request(request: NetworkRequest, closed: ClosedRanges) -> NetworkRequest:
    """The request with its rules in canonical form. Raises: BadRequest, TooLarge."""
    _check_mode(request)
    _check_limits(request)
    if len(request.links) > LINKS:
        raise TooLarge(f"links has {len(request.links)} entries, the limit is {LINKS}", field="network.links")
    for name in request.links:
        if not is_name(name):
            raise BadRequest(f"links: {name[:64]!r} is no sandbox's name", field="network.links")
    return replace(request, rules=checked_rules(request.rules, closed), links=tuple(dict.fromkeys(request.links)))


def checked_rules(rules: tuple[NetworkRule, ...], closed: ClosedRanges) -> tuple[NetworkRule, ...]:
    """Rules in canonical form. Raises: BadRequest, TooLarge."""
    if len(rules) > RULES:
        raise TooLarge(f"there are {len(rules)} rules, the limit is {RULES}", field="network.rules")
    if sum(rule.target.lstrip().startswith(PATTERN) for rule in rules) > PATTERNS:
        raise TooLarge(f"at most {PATTERNS} rules are patterns (re:)", field="network.rules")
    return tuple(_checked_rule(rule, at, closed) for at, rule in enumerate(rules, 1))


def checked_profile(profile: NetworkProfile, closed: ClosedRanges) -> NetworkProfile:
    """A profile in canonical form. Raises: BadRequest, TooLarge."""
    if not is_name(profile.name) or profile.name in {mode.value for mode in NetworkMode}:
        raise BadRequest("a profile's name is 1-63 of a-z, 0-9 and inner hyphens, and no mode", field="name")
    if len(profile.description) > DESCRIPTION or not profile.description.isprintable():
        raise BadRequest(f"description has at most {DESCRIPTION} printable characters", field="description")
    if profile.mode is NetworkMode.NONE or (profile.mode is NetworkMode.OPEN and (profile.rules or profile.registries)):
        raise BadRequest("a profile is open, or it has rules", field="mode")
    unknown = sorted(set(profile.registries) - set(REGISTRIES))
    if unknown:
        raise BadRequest(f"registries are asked of {', '.join(REGISTRIES)}", field="registries")
    return replace(
        profile,
        rules=checked_rules(profile.rules, closed),
        registries=tuple(dict.fromkeys(profile.registries)),
    )


def policy_of(request: NetworkRequest, profile: NetworkProfile | None = None) -> NetworkPolicy:
    """The policy of a checked request; `profile`: the one that it names, its registries' rules among its own.

    A caller's rules that end with the profile's have them already: what was shown can be sent back.

    Raises: BadRequest (mode; rules too intricate for the packet filter), TooLarge (rules, together).
    """
    rules, default = request.rules, request.default or Verdict.DENY
    mode = request.mode or (NetworkMode.POLICY if rules or request.default else NetworkMode.NONE)
    if profile is not None:
        mode = request.mode or (NetworkMode.POLICY if rules or request.default else profile.mode)
        is_open = profile.mode is NetworkMode.OPEN
        if mode is NetworkMode.OPEN and not is_open:
            raise BadRequest(f"the profile {profile.name} has rules: leave mode out", field="network.mode")
        default = request.default or (Verdict.ALLOW if is_open else profile.default)
        if rules[len(rules) - len(profile.rules) :] != profile.rules:
            rules = (*rules, *profile.rules)
    if len(rules) > RULES:
        raise TooLarge(f"with the profile's there are {len(rules)} rules, the limit is {RULES}", field="network.rules")
    is_policy = mode is NetworkMode.POLICY
    policy = NetworkPolicy(
        mode=mode,
        rules=rules if is_policy else (),
        default=default if is_policy else Verdict.DENY,
        dry_run=request.dry_run and is_policy,
        profile=request.profile,
        links=request.links,
        bandwidth_bps=request.bandwidth_bps,
        connections_per_s=request.connections_per_s,
        record=request.record,
        words=request.words,
    )
    flatten(policy)  # what the packet filter could not hold is refused here, before a sandbox is made with it
    return policy


def request_of(policy: NetworkPolicy) -> NetworkRequest:
    """What a caller would send to get this policy again."""
    is_policy = policy.mode is NetworkMode.POLICY
    return NetworkRequest(
        mode=policy.mode,
        profile=policy.profile,
        rules=policy.rules,
        default=policy.default if is_policy else None,
        dry_run=policy.dry_run,
        links=policy.links,
        bandwidth_bps=policy.bandwidth_bps,
        connections_per_s=policy.connections_per_s,
        record=policy.record,
        words=policy.words,
    )


def _check_mode(request: NetworkRequest) -> None:
    """Raises: BadRequest for what says two things."""
    if request.mode in {None, NetworkMode.POLICY}:
        return
    if request.rules or request.default is not None:
        raise BadRequest(
            f"rules and a default count in the mode policy only, not in {request.mode}", field="network.mode"
        )
    if request.profile is not None and request.mode is NetworkMode.NONE:
        raise BadRequest("a profile is a policy: leave mode out", field="network.mode")


def _check_limits(request: NetworkRequest) -> None:
    if request.bandwidth_bps is not None:
        check_count(request.bandwidth_bps, BANDWIDTH_BPS, "network.bandwidth")
    if request.connections_per_s is not None:
        check_count(request.connections_per_s, CONNECTIONS_PER_S, "network.connections_per_s")


def _checked_rule(rule: NetworkRule, at: int, closed: ClosedRanges) -> NetworkRule:
    try:
        target = canonical_target(rule.target)
    except ValueError as error:
        raise BadRequest(f"rule {at}: {error}", field="network.rules") from error
    is_range = target != "*" and not is_name_target(target)
    words = closed.covers(target) if is_range and rule.verdict is Verdict.ALLOW else None
    if words is not None:
        raise BadRequest(
            f"rule {at}: {target} cannot be allowed ({words}): only the operator's settings open it",
            field="network.rules",
        )
    if rule.protocol is Protocol.ICMP and rule.ports:
        raise BadRequest(f"rule {at}: icmp has no ports", field="network.rules")
    return replace(rule, target=target, ports=_checked_ports(rule.ports, at))


def _checked_ports(ports: tuple[PortRange, ...], at: int) -> tuple[PortRange, ...]:
    if len(ports) > PORT_RANGES:
        raise TooLarge(f"rule {at}: at most {PORT_RANGES} ports and ranges of ports", field="network.rules")
    for one in ports:
        if not PORTS[0] <= one.first <= one.last <= PORTS[1]:
            raise BadRequest(
                f"rule {at}: ports are {PORTS[0]}-{PORTS[1]}, the first not behind the last", field="network.rules"
            )
    return tuple(sorted(set(ports), key=lambda one: (one.first, one.last)))
