"""What allocated cores, memory and traffic cost. Pure, in whole numbers.

Costs are whole nano-units. What is left of a unit is carried on to the next piece of the same sandbox, so the costs of
its pieces add up to the cost of the whole, however it is split, and also where prices change in between.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

_VCPU_HOUR: Final = 3600 * 10**6
"""vCPU-microseconds in a vCPU-hour."""

_GIB_HOUR: Final = 1024 * 3600 * 1000
"""MiB-milliseconds in a GiB-hour."""

_GIB: Final = 2**30

DENOMINATOR: Final = math.lcm(_VCPU_HOUR, _GIB_HOUR, _GIB)
"""Carries are in this part of a nano-unit: below 2^63, so a carry fits the store's integers."""


class Prices(Struct, frozen=True, kw_only=True):
    """Nano-units per hour of one allocated vCPU, per hour of one allocated GiB, per GiB over the network."""

    vcpu_hour: int = 25_000_000
    gib_hour: int = 15_000_000
    traffic_gib: int = 0


def charge(prices: Prices, *, vcpu_us: int, mib_ms: int, traffic_bytes: int, carry: int) -> tuple[int, int]:
    """The cost of a piece in nano-units, and the new carry."""
    exact = (
        carry
        + vcpu_us * prices.vcpu_hour * (DENOMINATOR // _VCPU_HOUR)
        + mib_ms * prices.gib_hour * (DENOMINATOR // _GIB_HOUR)
        + traffic_bytes * prices.traffic_gib * (DENOMINATOR // _GIB)
    )
    return divmod(exact, DENOMINATOR)
