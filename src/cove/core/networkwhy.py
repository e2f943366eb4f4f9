"""Says what would become of a connection, step by step, as resolver, proxies and packet rules decide. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from cove.engine.network.resolver import LINK_SUFFIX, other_resolver
from cove.model.closed import ClosedRanges
from cove.model.network import NetworkMode, NetworkPolicy, Protocol, Verdict
from cove.model.policy import Decision, Destination, could_allow, decide, guarded, needs_name

CHECKED_PORTS: Final = frozenset({80, 443})
"""Where the name is looked for in what is sent: HTTP's Host, TLS's server name."""


class Question(Struct, frozen=True, kw_only=True):
    """A connection that a sandbox might make: to a canonical name or to an address."""

    policy: NetworkPolicy
    name: str | None
    address: str | None
    port: int
    protocol: Protocol
    links: Mapping[str, str]
    closed: ClosedRanges


class Step(Struct, frozen=True, kw_only=True):
    """One thing that is looked at: `dns`, `link`, `packet` or `name`. `rule`: what decides, in plain words."""

    step: str
    verdict: Verdict
    rule: str
    address: str | None = None


class Explanation(Struct, frozen=True, kw_only=True):
    """What would happen. `rule` is that of the deciding step.

    `addresses`: of the name now; None: not asked or not answered. `is_let_through`: refused, but only on paper, because
    of the policy's dry run.
    """

    verdict: Verdict
    rule: str
    steps: tuple[Step, ...]
    addresses: tuple[str, ...] | None = None
    is_let_through: bool = False


def explain(question: Question, addresses: tuple[str, ...] | None) -> Explanation:
    """Walk the way of a connection. `addresses`: what the name resolves to, None: not known."""
    link = _link(question)
    if link is not None:
        return _told(question, [link], addresses)
    if question.policy.mode is NetworkMode.NONE:
        return _told(question, [Step(step="packet", verdict=Verdict.DENY, rule="mode none")], addresses)
    if question.name is None:
        return _told(question, [_packet(question, question.address)], addresses)
    words = other_resolver(question.policy, question.name)
    first = could_allow(question.policy, question.name)
    if words is not None:
        first = Decision(verdict=Verdict.DENY, rule=words)
    steps = [Step(step="dns", verdict=first.verdict, rule=first.rule)]
    if not first.is_allowed:
        return _told(question, steps, addresses)
    if addresses is not None and not addresses:
        steps.append(Step(step="dns", verdict=Verdict.DENY, rule="the name has no IPv4 address"))
        return _told(question, steps, addresses)
    steps += [_handed_out(question, address) for address in addresses or (None,)]
    return _told(question, steps, addresses)


def _link(question: Question) -> Step | None:
    """A sandbox of the same project, by its name or its address."""
    if question.name is not None and question.name.endswith(LINK_SUFFIX):
        name = question.name.removesuffix(LINK_SUFFIX)
        if name not in question.policy.links:
            return Step(step="link", verdict=Verdict.DENY, rule="link: none of that name")
        address = question.links.get(name)
        if address is None:
            return Step(step="link", verdict=Verdict.DENY, rule=f"link {name}: that sandbox has no network now")
        return Step(step="link", verdict=Verdict.ALLOW, rule=f"link {name}", address=address)
    for linked, address in question.links.items():
        if address == question.address:
            return Step(step="link", verdict=Verdict.ALLOW, rule=f"link {linked}", address=address)
    return None


def _handed_out(question: Question, address: str | None) -> Step:
    """An answer of DNS: dropped, or reached by a packet."""
    if address is not None and question.name is not None:
        answer = could_allow(question.policy, question.name, address, question.closed)
        if not answer.is_allowed:
            return Step(step="dns", verdict=Verdict.DENY, rule=answer.rule, address=address)
    return _packet(question, address)


def _packet(question: Question, address: str | None) -> Step:
    destination = Destination(name=question.name, address=address, port=question.port, protocol=question.protocol)
    reason = guarded(question.policy, destination)
    decision = decide(question.policy, destination, question.closed)
    if reason is not None and not decision.is_closed:
        return Step(step="packet", verdict=Verdict.DENY, rule=reason, address=address)
    is_named = question.protocol is Protocol.TCP and question.port in CHECKED_PORTS
    hangs = address is not None and needs_name(question.policy, address, question.port, question.protocol)
    step = "name" if is_named and hangs and not decision.is_closed else "packet"
    return Step(step=step, verdict=decision.verdict, rule=decision.rule, address=address)


def _told(question: Question, steps: list[Step], addresses: tuple[str, ...] | None) -> Explanation:
    """The first step that lets it through after DNS decides, else the last refusal."""
    allowed = [step for step in steps if step.verdict is Verdict.ALLOW and step.step != "dns"]
    deciding = allowed[0] if allowed else next(step for step in reversed(steps) if step.verdict is Verdict.DENY)
    is_closed = deciding.rule.startswith("closed")
    return Explanation(
        verdict=deciding.verdict,
        rule=deciding.rule,
        steps=tuple(steps),
        addresses=addresses,
        is_let_through=question.policy.dry_run and deciding.verdict is Verdict.DENY and not is_closed,
    )
