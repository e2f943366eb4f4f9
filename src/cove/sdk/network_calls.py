"""The requests about what sandboxes may reach, as data, and their answers. Pure; both surfaces use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cove.sdk.errors import BadRequest
from cove.sdk.models import time_of
from cove.sdk.transport import Call, Retry
from cove.sdk.units import Size, parse_bytes
from cove.sdk.wire import API, box_path, checked, items_of, nothing, quoted

Rules = Sequence["str | Mapping[str, Any]"]
Policy = str | Rules | Mapping[str, Any]
"""`"none"`, `"open"`, a profile's name; a list of what is allowed; or all of it: `{"rules": […], "default": "deny"}`.

A rule is a text, `"allow api.example.com:443/tcp"`, or `{"action", "target", "ports", "protocol"}`.
"""

_MODES: Final = ("none", "open")
_ACTIONS: Final = ("allow", "deny")
_PROTOCOLS: Final = ("tcp", "udp", "icmp")
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """What a sandbox may reach, as it was when the server answered.

    Attributes:
        policy: the policy as the API has it; it can be given to `set` again.
        address: its own address; None: it has no interface.
        links: addresses of the sandboxes that it may reach, by name; None: leads nowhere at the moment.
        sent_bytes, received_bytes: over its interface so far.
    """

    policy: dict[str, Any]
    address: str | None
    links: dict[str, str | None]
    sent_bytes: int
    received_bytes: int
    raw: dict[str, Any] = field(repr=False)

    @property
    def mode(self) -> str:
        """`none`, `open` or `policy`."""
        return str(self.policy.get("mode") or "none")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was tried and refused; repeats are one, `count`. `dry_run`: it was let through all the same.

    Attributes:
        layer: who refused: `packet`, `dns`, `proxy` or `broker`.
        host: the name, None: none was seen.
        rule: which rule, in plain words.
    """

    at: datetime | None
    layer: str
    host: str | None
    address: str | None
    port: int
    protocol: str
    rule: str
    count: int
    dry_run: bool
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would become of a connection.

    Attributes:
        allowed: whether the rules allow it.
        rule: which rule decides, in plain words.
        let_through: refused by the rules, and let through because of the policy's dry run.
        addresses: of the name now; None: it was not asked for.
        steps: what was looked at, in order: `{"step", "action", "rule", "address"}`.
    """

    allowed: bool
    rule: str
    let_through: bool
    addresses: list[str] | None
    steps: list[dict[str, Any]]
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """A policy with a name. `rules`: those of the registries among them; `changed`: it is not as it came with Cove."""

    name: str
    description: str
    mode: str
    rules: list[dict[str, Any]]
    default: str
    registries: list[str]
    builtin: bool
    changed: bool
    raw: dict[str, Any] = field(repr=False)


# ---- what is sent


def rule_of(rule: str | Mapping[str, Any], action: str = "allow") -> dict[str, Any]:
    """Return a rule as the API has it, from `[allow|deny] TARGET[:PORTS][/PROTOCOL]`. Raises: BadRequest."""
    if not isinstance(rule, str):
        return dict(rule)
    first, _, rest = rule.strip().partition(" ")
    if first in _ACTIONS:
        action, target = first, rest.strip()
    else:
        target = rule.strip()
    found: dict[str, Any] = {"action": action}
    before, slash, protocol = target.rpartition("/")
    if slash and protocol in _PROTOCOLS:
        target, found["protocol"] = before, protocol
    if not target.startswith("re:"):
        target, colon, ports = target.partition(":")
        if colon:
            found["ports"] = [_port(one, rule) for one in ports.split(",")]
    return {**found, "target": target}


def _port(text: str, rule: str) -> int | str:
    first, dash, last = text.partition("-")
    if not (first.isdigit() and first.isascii() and (not dash or (last.isdigit() and last.isascii()))):
        raise BadRequest(f'network: in "{rule}" ports are 443 or 8000-8010', field="network")
    return text if dash else int(first)


def policy_of(policy: Policy, *, bandwidth: Size | None = None) -> dict[str, Any]:
    """Return a policy as the API has it. Raises: BadRequest."""
    if isinstance(policy, str):
        body: dict[str, Any] = {"mode": policy} if policy in _MODES else {"profile": policy}
    elif isinstance(policy, Mapping):
        body = dict(policy)
        if body.get("rules"):
            body["rules"] = [rule_of(rule) for rule in body["rules"]]
    else:
        body = {"rules": [rule_of(rule) for rule in policy], "mode": "policy"}
    if bandwidth is not None:
        body["bandwidth_mbps"] = round(parse_bytes(bandwidth, "bandwidth") / MIB, 6)
    return body


# ---- requests


def network(ref: str) -> Call[NetworkInfo]:
    """GET …/network."""
    return Call("GET", box_path(ref, "/network"), _network, retry=Retry.LOST)


def set_network(ref: str, body: Mapping[str, Any]) -> Call[NetworkInfo]:
    """PUT …/network. Idempotent."""
    return Call("PUT", box_path(ref, "/network"), _network, json=dict(body), retry=Retry.LOST)


def refusals(ref: str) -> Call[list[Refusal]]:
    """GET …/network/refusals."""
    return Call("GET", box_path(ref, "/network/refusals"), items_of("refusals", _refusal), retry=Retry.LOST)


def why(ref: str, host: str, port: int, protocol: str) -> Call[Explanation]:
    """POST …/network/why: nothing is changed by it."""
    body = {"host": host, "port": port, "protocol": protocol}
    return Call("POST", box_path(ref, "/network/why"), _explanation, json=body, retry=Retry.LOST)


def profiles() -> Call[list[NetworkProfile]]:
    """GET /network-profiles."""
    return Call("GET", f"{API}/network-profiles", items_of("profiles", _profile), retry=Retry.LOST)


def profile(name: str) -> Call[NetworkProfile]:
    """GET /network-profiles/{profile}."""
    return Call("GET", f"{API}/network-profiles/{quoted(name)}", _profile, retry=Retry.LOST)


def set_profile(name: str, body: Mapping[str, Any]) -> Call[NetworkProfile]:
    """PUT /network-profiles/{profile}. Idempotent."""
    return Call("PUT", f"{API}/network-profiles/{quoted(name)}", _profile, json=dict(body), retry=Retry.LOST)


def remove_profile(name: str) -> Call[None]:
    """DELETE /network-profiles/{profile}."""
    return Call("DELETE", f"{API}/network-profiles/{quoted(name)}", nothing, retry=Retry.LOST)


def default(project: str) -> Call[dict[str, Any] | None]:
    """GET /projects/{project}/network."""
    return Call("GET", f"{API}/projects/{quoted(project)}/network", _default, retry=Retry.LOST)


def set_default(project: str, body: Mapping[str, Any]) -> Call[dict[str, Any] | None]:
    """PUT /projects/{project}/network. Idempotent."""
    return Call("PUT", f"{API}/projects/{quoted(project)}/network", _default, json=dict(body), retry=Retry.LOST)


def remove_default(project: str) -> Call[None]:
    """DELETE /projects/{project}/network."""
    return Call("DELETE", f"{API}/projects/{quoted(project)}/network", nothing, retry=Retry.LOST)


# ---- answers


def _network(wire: Any) -> NetworkInfo:
    found = checked(wire)
    return NetworkInfo(
        policy=checked(found.get("policy")),
        address=found.get("address"),
        links=dict(found.get("links") or {}),
        sent_bytes=int(found.get("sent_bytes") or 0),
        received_bytes=int(found.get("received_bytes") or 0),
        raw=found,
    )


def _refusal(wire: Any) -> Refusal:
    found = checked(wire)
    return Refusal(
        at=time_of(found.get("at")),
        layer=str(found.get("layer") or ""),
        host=found.get("name"),
        address=found.get("address"),
        port=int(found.get("port") or 0),
        protocol=str(found.get("protocol") or ""),
        rule=str(found.get("rule") or ""),
        count=int(found.get("count") or 1),
        dry_run=bool(found.get("dry_run")),
        raw=found,
    )


def _explanation(wire: Any) -> Explanation:
    found = checked(wire)
    addresses = found.get("addresses")
    return Explanation(
        allowed=found.get("action") == "allow",
        rule=str(found.get("rule") or ""),
        let_through=bool(found.get("let_through")),
        addresses=None if addresses is None else [str(one) for one in addresses],
        steps=[checked(one) for one in found.get("steps") or ()],
        raw=found,
    )


def _profile(wire: Any) -> NetworkProfile:
    found = checked(wire)
    return NetworkProfile(
        name=str(found.get("name") or ""),
        description=str(found.get("description") or ""),
        mode=str(found.get("mode") or ""),
        rules=[checked(one) for one in found.get("rules") or ()],
        default=str(found.get("default") or "deny"),
        registries=[str(one) for one in found.get("registries") or ()],
        builtin=bool(found.get("builtin")),
        changed=bool(found.get("changed")),
        raw=found,
    )


def _default(wire: Any) -> dict[str, Any] | None:
    found = checked(wire).get("network")
    return None if found is None else checked(found)
