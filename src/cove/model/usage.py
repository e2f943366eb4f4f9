"""What was used and what it costs: whole numbers only, so that parts always add up to the whole. No I/O.

Money is in nano-units (1e-9) of the currency that the operator's prices are in.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Final

from msgspec import Struct

DECIMALS: Final = 9
NANO: Final = 10**DECIMALS
MOST_MONEY: Final = 4_000_000_000
"""So that nano-units fit the store's integers."""

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S


class PausedBilling(StrEnum):
    """What of a paused sandbox is billed: its memory, which it keeps; nothing; or all as if it ran."""

    MEMORY = "memory"
    NOTHING = "nothing"
    ALL = "all"


class UsageGroup(StrEnum):
    """By what a report is broken down."""

    PROJECT = "project"
    KEY = "key"
    SANDBOX = "sandbox"
    DAY = "day"
    HOUR = "hour"


class Amounts(Struct, frozen=True, kw_only=True):
    """What was used.

    `running_ms`, `paused_ms`: time in these states. `vcpu_us`: billed vCPU-microseconds of allocated cores; `mib_ms`:
    billed MiB-milliseconds of allocated memory. `cpu_ms`: CPU time that was really used; the bytes are those of the
    sandbox's own network. `cost_nano`: what it costs.
    """

    running_ms: int = 0
    paused_ms: int = 0
    vcpu_us: int = 0
    mib_ms: int = 0
    cpu_ms: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    cost_nano: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        """Both together."""
        return Amounts(**{name: getattr(self, name) + getattr(other, name) for name in AMOUNTS})


AMOUNTS: Final = Amounts.__struct_fields__


class UsageQuery(Struct, frozen=True, kw_only=True):
    """Which usage is asked for: from `since` (included) to `until` (not included), Unix seconds; None: open.

    `project` None: of all, for admins only.
    """

    since: float | None = None
    until: float | None = None
    groups: tuple[UsageGroup, ...] = ()
    project: str | None = None
    key: str | None = None
    sandbox: str | None = None


class UsageRow(Struct, frozen=True, kw_only=True):
    """One line of a report; a field is None if it was not grouped by. `at`: beginning of the hour or day, Unix s."""

    at: int | None = None
    project: str | None = None
    key: str | None = None
    sandbox: str | None = None
    sandboxes: int = 0
    amounts: Amounts = Amounts()


class SandboxUsage(Struct, frozen=True, kw_only=True):
    """The bill of one sandbox, live or ended. `key`: the id of the key that made it."""

    sandbox: str
    project: str
    key: str
    name: str
    started_at: float
    ended_at: float | None = None
    amounts: Amounts = Amounts()
    memory_peak_bytes: int = 0
    disk_bytes: int = 0


def money(nano: int) -> str:
    """The amount in decimal digits, exact: `0.00111`."""
    text = f"{Decimal(nano).scaleb(-DECIMALS):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def nano(amount: Decimal) -> int:
    """An amount of money in nano-units. Raises: ValueError for one that is not finite, negative, or finer."""
    if not amount.is_finite() or not 0 <= amount <= MOST_MONEY:
        raise ValueError(f"must be an amount of money, 0 to {MOST_MONEY}")
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -DECIMALS:
        raise ValueError(f"has more than {DECIMALS} decimals")
    return int(amount.scaleb(DECIMALS))
