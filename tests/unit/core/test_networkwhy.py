"""What would become of a connection, step by step."""

from __future__ import annotations

import pytest

from cove.core.networkwhy import Question, explain
from cove.model.closed import ClosedRanges
from cove.model.network import NO_NETWORK, OPEN_NETWORK, NetworkMode, NetworkPolicy, NetworkRule, Protocol, Verdict

ALLOW, DENY = Verdict.ALLOW, Verdict.DENY


def policy(*rules: tuple[Verdict, str], default: Verdict = DENY, **fields) -> NetworkPolicy:  # noqa: ANN003
    made = tuple(NetworkRule(verdict=verdict, target=target) for verdict, target in rules)
    return NetworkPolicy(mode=NetworkMode.POLICY, rules=made, default=default, **fields)


NAMES = policy((DENY, "203.0.114.0/24"), (ALLOW, "a.example"))


def asked(  # noqa: PLR0913 - a connection
    held: NetworkPolicy,
    *,
    name: str | None = None,
    address: str | None = None,
    port: int = 443,
    protocol: Protocol = Protocol.TCP,
    links: dict[str, str] | None = None,
) -> Question:
    return Question(
        policy=held, name=name, address=address, port=port, protocol=protocol, links=links or {}, closed=ClosedRanges()
    )


@pytest.mark.parametrize(
    ("question", "addresses", "verdict", "rule", "steps"),
    [
        (asked(NO_NETWORK, name="a.example"), None, DENY, "mode none", "packet"),
        (asked(OPEN_NETWORK, name="a.example"), ("8.8.8.8",), ALLOW, "mode open", "dns packet"),
        (asked(OPEN_NETWORK, name="a.example"), ("10.0.0.1",), DENY, "closed: 10.0.0.0/8", "dns dns"),
        (asked(OPEN_NETWORK, name="a.example"), ("10.0.0.1", "8.8.8.8"), ALLOW, "mode open", "dns dns packet"),
        (asked(OPEN_NETWORK, address="169.254.169.254"), None, DENY, "closed: 169.254.169.254 (metadata)", "packet"),
        (asked(OPEN_NETWORK, address="8.8.8.8", port=53), None, DENY, "names: DNS is answered", "packet"),
        (asked(NAMES, name="b.example"), None, DENY, "default: deny", "dns"),
        (asked(NAMES, name="a.example"), None, ALLOW, "rule 2: allow a.example", "dns packet"),
        (asked(NAMES, name="a.example"), ("8.8.8.8",), ALLOW, "rule 2: allow a.example", "dns name"),
        (asked(NAMES, name="a.example", port=22), ("8.8.8.8",), ALLOW, "rule 2: allow a.example", "dns packet"),
        (asked(NAMES, name="a.example"), ("203.0.114.1",), DENY, "rule 1: deny 203.0.114.0/24", "dns dns"),
        (asked(NAMES, name="a.example"), (), DENY, "the name has no IPv4 address", "dns dns"),
        (asked(NAMES, address="8.8.8.8"), None, DENY, "default: deny", "name"),
        (asked(NAMES, address="8.8.8.8", protocol=Protocol.UDP), None, DENY, "names: QUIC is closed", "packet"),
        (asked(NAMES, address="8.8.8.8", port=853), None, DENY, "names: DNS over TLS", "packet"),
        (asked(NAMES, address="2606:4700::1111"), None, DENY, "closed: IPv6", "packet"),
    ],
)  # fmt: skip
def test_the_deciding_step_is_told(
    question: Question, addresses: tuple[str, ...] | None, verdict: Verdict, rule: str, steps: str
) -> None:
    said = explain(question, addresses)
    assert said.verdict is verdict
    assert said.rule.startswith(rule)
    assert " ".join(step.step for step in said.steps) == steps
    assert said.addresses == addresses


def test_a_link_is_told_by_its_name_and_by_its_address() -> None:
    held = NetworkPolicy(links=("db", "cache"))
    links = {"db": "10.213.0.9"}
    assert explain(asked(held, name="db.cove.internal", links=links), None).rule == "link db"
    assert explain(asked(held, address="10.213.0.9", port=5432, links=links), None).verdict is ALLOW
    assert explain(asked(held, name="cache.cove.internal", links=links), None).verdict is DENY
    assert explain(asked(held, address="10.213.0.10", links=links), None).rule == "mode none"
    assert explain(asked(held, name="other.cove.internal", links=links), None).rule == "link: none of that name"
    assert explain(asked(OPEN_NETWORK, name="db.cove.internal"), None).verdict is DENY


def test_a_resolver_over_https_is_told_where_names_are_the_rule() -> None:
    held = policy((DENY, "a.example"), default=ALLOW)
    assert explain(asked(held, name="dns.google"), None).rule.startswith("names: a resolver over HTTPS")
    assert explain(asked(OPEN_NETWORK, name="dns.google"), None).verdict is ALLOW


def test_a_dry_run_lets_through_what_the_rules_refuse_and_nothing_that_is_closed() -> None:
    held = policy(dry_run=True)
    refused = explain(asked(held, address="8.8.8.8"), None)
    assert (refused.verdict, refused.is_let_through) == (DENY, True)
    assert not explain(asked(held, address="10.0.0.1"), None).is_let_through
    assert not explain(asked(policy(), address="8.8.8.8"), None).is_let_through
