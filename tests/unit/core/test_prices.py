from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.core.prices import DENOMINATOR, Prices, charge
from cove.model.quota import millicpus
from cove.model.usage import money, nano

AMOUNT = st.integers(0, 10**15)
PIECES = st.lists(st.tuples(AMOUNT, AMOUNT, AMOUNT), max_size=30)
PRICES = st.builds(
    Prices, vcpu_hour=st.integers(0, 10**12), gib_hour=st.integers(0, 10**12), traffic_gib=st.integers(0, 10**12)
)


def test_one_second_of_one_vcpu_and_one_gib_costs_what_the_price_table_says() -> None:
    cost, carry = charge(Prices(), vcpu_us=10**6, mib_ms=1024 * 1000, traffic_bytes=0, carry=0)
    assert (money(cost), carry > 0) == ("0.000011111", True)
    hour, _ = charge(Prices(), vcpu_us=3600 * 10**6, mib_ms=1024 * 3600 * 1000, traffic_bytes=0, carry=0)
    assert money(hour) == "0.04"


def test_traffic_costs_by_the_gib() -> None:
    cost, carry = charge(Prices(traffic_gib=90_000_000), vcpu_us=0, mib_ms=0, traffic_bytes=2**29, carry=0)
    assert (money(cost), carry) == ("0.045", 0)


@given(PIECES, PRICES)
def test_the_parts_cost_what_the_whole_costs_however_it_is_split(
    pieces: list[tuple[int, int, int]], prices: Prices
) -> None:
    total, carry = 0, 0
    for vcpu, memory, traffic in pieces:
        cost, carry = charge(prices, vcpu_us=vcpu, mib_ms=memory, traffic_bytes=traffic, carry=carry)
        assert 0 <= carry < DENOMINATOR < 2**63
        total += cost
    sums = [sum(piece[number] for piece in pieces) for number in range(3)]
    assert (total, carry) == charge(prices, vcpu_us=sums[0], mib_ms=sums[1], traffic_bytes=sums[2], carry=0)


@given(st.integers(0, 4 * 10**18))
def test_money_is_told_exactly(amount: int) -> None:
    assert nano(Decimal(money(amount))) == amount


@pytest.mark.parametrize("text", ["-1", "NaN", "Infinity", "0.0000000001"])
def test_what_is_no_amount_of_money_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|decimals"):
        nano(Decimal(text))


@pytest.mark.parametrize(("cpus", "counted"), [(0.05, 50), (1.0, 1000), (0.1 + 0.2, 300), (0.0501, 51), (64.0, 64000)])
def test_cores_are_counted_in_thousandths_rounded_up(cpus: float, counted: int) -> None:
    assert millicpus(cpus) == counted
