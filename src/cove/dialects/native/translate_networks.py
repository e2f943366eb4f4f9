"""Between the native wire format of networks and the core's values. Pure."""

from __future__ import annotations

from typing import Final

from cove.core.networkrules import request_of
from cove.core.networks import NetworkState
from cove.core.networkwhy import Explanation
from cove.dialects.native import wire_networks as wire
from cove.dialects.native.times import timestamp
from cove.model.network import (
    NetworkMode,
    NetworkProfile,
    NetworkRequest,
    NetworkRule,
    PortRange,
    Protocol,
    Refusal,
    Verdict,
)
from cove.model.sandbox import MIB

_MODES: Final = {"none": NetworkMode.NONE, "open": NetworkMode.OPEN}


def request_from(given: wire.Given | None) -> NetworkRequest | None:
    """What the core is asked for."""
    if given is None:
        return None
    if isinstance(given, str):
        mode = _MODES.get(given)
        return NetworkRequest(mode=mode) if mode else NetworkRequest(profile=given)
    return NetworkRequest(
        mode=None if given.mode is None else NetworkMode(given.mode),
        profile=given.profile,
        rules=tuple(map(_rule, given.rules)),
        default=None if given.default is None else Verdict(given.default),
        dry_run=given.dry_run,
        links=given.links,
        bandwidth_bps=None if given.bandwidth_mbps is None else round(given.bandwidth_mbps * MIB),
        connections_per_s=given.connections_per_s,
    )


def profile_from(name: str, body: wire.ProfileWish) -> NetworkProfile:
    """A profile to be."""
    return NetworkProfile(
        name=name,
        description=body.description,
        mode=NetworkMode(body.mode),
        rules=tuple(map(_rule, body.rules)),
        default=Verdict(body.default),
        registries=body.registries,
    )


def network_view(state: NetworkState, sandbox: str) -> wire.Network:
    """A sandbox's network."""
    return wire.Network(
        sandbox=sandbox,
        policy=wish_view(request_of(state.policy)),
        address=state.address or None,
        links=state.links,
        sent_bytes=state.use.sent_bytes,
        received_bytes=state.use.received_bytes,
    )


def wish_view(request: NetworkRequest) -> wire.Wish:
    """What a caller would send for it."""
    return wire.Wish(
        mode=None if request.mode is None else request.mode.value,
        profile=request.profile,
        rules=tuple(map(_rule_view, request.rules)),
        default=None if request.default is None else request.default.value,
        dry_run=request.dry_run,
        links=request.links,
        bandwidth_mbps=None if request.bandwidth_bps is None else round(request.bandwidth_bps / MIB, 6),
        connections_per_s=request.connections_per_s,
    )


def profile_view(profile: NetworkProfile) -> wire.Profile:
    """A profile."""
    return wire.Profile(
        name=profile.name,
        description=profile.description,
        mode=profile.mode.value,
        rules=tuple(map(_rule_view, profile.rules)),
        default=profile.default.value,
        registries=profile.registries,
        builtin=profile.is_builtin,
        changed=profile.is_changed,
    )


def refusal_view(refusal: Refusal) -> wire.Refusal:
    """A refusal."""
    return wire.Refusal(
        at=timestamp(refusal.at),
        layer=refusal.layer,
        name=refusal.name,
        address=refusal.address,
        port=refusal.port,
        protocol=refusal.protocol,
        rule=refusal.rule,
        count=refusal.count,
        dry_run=refusal.dry_run,
    )


def explanation_view(said: Explanation) -> wire.Explanation:
    """What would happen."""
    return wire.Explanation(
        action=said.verdict.value,
        rule=said.rule,
        let_through=said.is_let_through,
        addresses=said.addresses,
        steps=tuple(
            wire.Step(step=one.step, action=one.verdict.value, rule=one.rule, address=one.address) for one in said.steps
        ),
    )


def _rule(rule: wire.Rule) -> NetworkRule:
    return NetworkRule(
        verdict=Verdict(rule.action),
        target=rule.target,
        ports=tuple(map(_ports, rule.ports)),
        protocol=None if rule.protocol is None else Protocol(rule.protocol),
    )


def _ports(ports: int | str) -> PortRange:
    if isinstance(ports, int):
        return PortRange(ports, ports)
    first, _, last = ports.partition("-")
    return PortRange(int(first), int(last))


def _rule_view(rule: NetworkRule) -> wire.Rule:
    return wire.Rule(
        action=rule.verdict.value,
        target=rule.target,
        ports=tuple(one.first if one.first == one.last else f"{one.first}-{one.last}" for one in rule.ports),
        protocol=None if rule.protocol is None else rule.protocol.value,
    )
