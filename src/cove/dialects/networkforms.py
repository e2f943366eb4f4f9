"""From the rule forms of other protocols to ours, which is first match. Pure; each function opens with their sentence.

What they say is in docs/protocols/; where they leave something open, our choice is marked there as **ours**. IPv6
targets count for what a list means by being there, and match nothing: IPv6 is closed in sandboxes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from cove.model.errors import BadRequest
from cove.model.network import NetworkMode, NetworkProfile, NetworkRequest, NetworkRule, Protocol, ProxyWords, Verdict
from cove.model.policy import ALL, PATTERN, canonical_target

_ISOL8_WORDS: Final = ProxyWords(
    refused="isol8: {asked} blocked by network filter",
    unreachable="isol8: proxy error: connection to {there} failed",
)
_EVERYTHING: Final = frozenset({ALL, "0.0.0.0/0", "::/0"})


def from_isorun(allow: Sequence[str], deny: Sequence[str]) -> NetworkRequest:
    """A deny that is no catch-all blocks; then an allow permits; then a catch-all deny, or any allow, blocks the rest.

    Neither list: the internet. Raises: BadRequest (fields `network.allow`, `network.deny`).
    """
    if not allow and not deny:
        return NetworkRequest(mode=NetworkMode.OPEN)
    denied = [_target(one, "network.deny", at) for at, one in enumerate(deny, 1)]
    allowed = [_target(one, "network.allow", at) for at, one in enumerate(allow, 1)]
    is_list = bool(allow) or not _EVERYTHING.isdisjoint(denied)
    return NetworkRequest(
        mode=NetworkMode.POLICY,
        rules=(
            *_rules(Verdict.DENY, (one for one in denied if one not in _EVERYTHING)),
            *_rules(Verdict.ALLOW, allowed),
        ),
        default=Verdict.DENY if is_list else Verdict.ALLOW,
    )


def to_isorun(profile: NetworkProfile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a profile allows and denies, in isorun's lists. Ports and protocols of rules are not told there."""
    if profile.mode is NetworkMode.OPEN:
        return (), ()
    lists = {
        verdict: tuple(dict.fromkeys(_shown(one) for one in profile.rules if one.verdict is verdict))
        for verdict in Verdict
    }
    denied = lists[Verdict.DENY]
    if profile.default is Verdict.DENY and _EVERYTHING.isdisjoint(denied):
        denied = (*denied, "0.0.0.0/0")
    return lists[Verdict.ALLOW], denied


def _shown(rule: NetworkRule) -> str:
    return "0.0.0.0/0" if rule.target == ALL else rule.target


def from_isol8(whitelist: Sequence[str], blacklist: Sequence[str], *, record: bool = False) -> NetworkRequest:
    """What a pattern of the blacklist finds in the host is blocked, then what one of the whitelist finds passes.

    An empty whitelist passes the rest. Only TCP passes at all, as through their proxy. Patterns are not anchored; one
    that is an address in full also blocks or passes that address. `record`: what is asked for is kept; then every name
    is looked at, also where all pass. Raises: BadRequest (field `networkFilter`).
    """
    rules = [_everything(Verdict.DENY, Protocol.UDP), _everything(Verdict.DENY, Protocol.ICMP)]
    for verdict, patterns in ((Verdict.DENY, blacklist), (Verdict.ALLOW, whitelist)):
        for at, pattern in enumerate(patterns, 1):
            target = _checked(f"{PATTERN}.*(?:{pattern}).*", "networkFilter", f"pattern {at}")
            rules.append(NetworkRule(verdict=verdict, target=target))
            rules += _rules(verdict, _literal_address(pattern))
    if record and not whitelist:
        rules.append(NetworkRule(verdict=Verdict.ALLOW, target=f"{PATTERN}.*"))
    default = Verdict.DENY if whitelist else Verdict.ALLOW
    return NetworkRequest(
        mode=NetworkMode.POLICY, rules=tuple(rules), default=default, record=record, words=_ISOL8_WORDS
    )


def from_opensandbox(egress: Sequence[tuple[str, str]], default: str = "deny") -> NetworkRequest:
    """Pairs of an action and a target, the first per target counts (in any case); the first that matches decides.

    Raises: BadRequest (fields `networkPolicy.egress`, `networkPolicy.defaultAction`).
    """
    first: dict[str, Verdict] = {}
    for at, (action, text) in enumerate(egress, 1):
        verdict = _verdict(action, "networkPolicy.egress")
        first.setdefault(_target(text, "networkPolicy.egress", at), verdict)
    rules = [rule for target, verdict in first.items() for rule in _rules(verdict, [target])]
    return NetworkRequest(
        mode=NetworkMode.POLICY, rules=tuple(rules), default=_verdict(default, "networkPolicy.defaultAction")
    )


def _target(text: str, field: str, at: int) -> str:
    """One of `_EVERYTHING`, an IPv6 network, or a target in canonical form. Patterns are not among their forms."""
    if text.strip() in _EVERYTHING:
        return text.strip()
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        network = None
    if network is not None and network.version == 6:  # noqa: PLR2004 - of IP
        return str(network)
    if text.strip().startswith(PATTERN):
        raise BadRequest(f"entry {at}: this is no host name and no address", field=field)
    return _checked(text, field, f"entry {at}")


def _checked(text: str, field: str, what: str) -> str:
    try:
        return canonical_target(text, strict=False)
    except ValueError as error:
        raise BadRequest(f"{what}: {error}", field=field) from error


def _rules(verdict: Verdict, targets: Iterable[str]) -> list[NetworkRule]:
    """Rules for the targets that can match an IPv4 connection."""
    return [NetworkRule(verdict=verdict, target=target) for target in targets if ":" not in target]


def _everything(verdict: Verdict, protocol: Protocol) -> NetworkRule:
    return NetworkRule(verdict=verdict, target=ALL, protocol=protocol)


def _literal_address(pattern: str) -> list[str]:
    text = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".").replace("[.]", ".")
    try:
        return [str(ipaddress.IPv4Network(text))]
    except ValueError:
        return []


def _verdict(word: str, field: str) -> Verdict:
    try:
        return Verdict(word)
    except ValueError as error:
        raise BadRequest("an action is allow or deny", field=field) from error
