"""What a project or key may use at most, and what it uses now. Frozen values, no I/O.

None: not limited. A key's quota only narrows its project's: both are asked. Words and units: docs/guides/quotas.md.
To add a limit: a field in `Quota` and `QuotaUse`, its check in `core/quotas.py`, the native dialect's `wire_quotas.py`.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from msgspec import Struct

SUBJECT_PROJECT: Final = "project"
SUBJECT_KEY: Final = "key"


class BudgetPeriod(StrEnum):
    """For how long a budget is: it is full again at the next day or month (UTC), or never."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class BudgetAction(StrEnum):
    """What happens when a budget is used up. New sandboxes are refused in any case; running ones go on, or do not."""

    REFUSE = "refuse"
    PAUSE = "pause"
    STOP = "stop"


class Quota(Struct, frozen=True, kw_only=True):
    """Limits. `sandboxes`, `cpus`, `memory_bytes`, `disk_bytes`: of all unended sandboxes together.

    Of those, hibernated ones count for `disk_bytes` only, with what is kept of their memory.
    `budget_nano`: cost per `budget_period`, in 1e-9 of the price's currency. `snapshots` and `host_ports` are for
    projects only.
    """

    sandboxes: int | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    snapshots: int | None = None
    host_ports: int | None = None
    requests_per_minute: int | None = None
    budget_nano: int | None = None
    budget_period: BudgetPeriod = BudgetPeriod.MONTH
    budget_action: BudgetAction = BudgetAction.REFUSE


UNLIMITED: Final = Quota()


class QuotaUse(Struct, frozen=True, kw_only=True):
    """What is used now. `spent_nano`: in the budget's period, which began at `spent_since` (Unix s; None: ever)."""

    sandboxes: int = 0
    cpus: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    snapshots: int = 0
    host_ports: int = 0
    spent_nano: int = 0
    spent_since: float | None = None


class QuotaState(Struct, frozen=True, kw_only=True):
    """A project's or key's limits beside what it uses. `subject`: `project` or `key`, `id` its id."""

    subject: str
    id: str
    quota: Quota
    use: QuotaUse


def millicpus(cpus: float) -> int:
    """Cores in thousandths, the unit of sums and bills, rounded up: what is not counted would be free."""
    return math.ceil(round(cpus * 1000, 6))
