"""What the kernel is given of a sandbox."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.network import baseline, boxrules
from cove.engine.network.baseline import Baseline
from cove.engine.network.boxrules import (
    base_mark,
    bound_key,
    fingerprint,
    index_of,
    mark_value,
    parse_bound,
    parse_mark,
)
from cove.engine.network.flatten import flatten
from cove.engine.network.steps import Action, Code
from cove.model.closed import ClosedRanges, Opening
from cove.model.network import NetworkMode, NetworkPolicy, NetworkRule, Verdict

NAMED = NetworkPolicy(
    mode=NetworkMode.POLICY,
    rules=(
        NetworkRule(verdict=Verdict.ALLOW, target="11.0.0.0/8"),
        NetworkRule(verdict=Verdict.ALLOW, target="*.example"),
    ),
)


def test_marks_say_action_generation_and_place() -> None:
    flat = flatten(NAMED)
    values = {mark_value(flat, place, 200) for place in range(len(flat.outcomes))}
    assert len(values) == len(flat.outcomes)
    for place, outcome in enumerate(flat.outcomes):
        value = mark_value(flat, place, 200)
        assert parse_mark(value) == (outcome.mark.action, 200, place + 1)
        assert bool(value >> 31) is bool(outcome.names)
        assert base_mark(place + 1) is None
        assert value != 0


@pytest.mark.parametrize("code", [Code.CLOSED, Code.DNS, Code.RATE, Code.CONNECTIONS, Code.PROTOCOL])
def test_the_base_rules_marks_are_told_apart_from_policies(code: Code) -> None:
    text = baseline.text_of(Baseline(addresses="10.213.0.0/16", closed=ClosedRanges()))
    value = Action.REFUSE << 24 | baseline.BASE_CODES + code - Code.DEFAULT
    assert f"0x{value:08x}" in text
    assert base_mark(parse_mark(value)[2]) is code


def test_no_placeholder_stays_in_the_text() -> None:
    text = baseline.text_of(Baseline(addresses="10.213.0.0/16", closed=ClosedRanges([Opening("10.1.0.0/16", 80)])))
    words = {word.strip(",;") for word in text.split() if word.startswith("@")}
    sets = {line.split()[1] for line in text.splitlines() if line.strip().startswith(("set ", "map "))}
    assert {word.removeprefix("@") for word in words} <= sets
    assert "10.1.0.0-10.1.255.255 . 80" in text


@given(st.integers(0, 65535), st.ip_addresses(v=4))
def test_bindings_are_read_as_they_are_written(index: int, address: object) -> None:
    assert parse_bound(bound_key(index, str(address))) == (index, str(address))


@pytest.mark.parametrize("key", [b"", b"eth0".ljust(16, b"\0") + bytes(4), b"sv1".ljust(16, b"\0")])
def test_bindings_that_are_not_ours_are_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_bound(key)


def test_chains_of_sandboxes_are_told_from_the_base_rules() -> None:
    assert index_of(boxrules.chain_of(12)) == 12
    for chain in ("box", "boxes", "judge", "box1x", "forward"):
        assert index_of(chain) is None


def test_a_policy_that_differs_has_another_fingerprint() -> None:
    other = NetworkPolicy(mode=NAMED.mode, rules=NAMED.rules, dry_run=True)
    assert len(fingerprint(NAMED)) == 12
    assert fingerprint(NAMED) == fingerprint(NetworkPolicy(mode=NAMED.mode, rules=NAMED.rules))
    assert fingerprint(NAMED) != fingerprint(other)
