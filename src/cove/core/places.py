"""The place that a sandbox takes while it has processes: money, quota and room on this machine, asked in one step.

A create takes its place in `creation.py`. One that is hibernated has given it back, and takes it again here.
"""

from __future__ import annotations

from cove.core.admission import Admission
from cove.core.budgets import Budgets
from cove.core.quotas import Quotas
from cove.model.sandbox import Sandbox
from cove.model.state import State


class Places:
    """Taken and given back by supervisors. Nothing here awaits, so nobody comes between a look and the taking."""

    def __init__(self, budgets: Budgets, quotas: Quotas, admission: Admission) -> None:
        self._budgets = budgets
        self._quotas = quotas
        self._admission = admission

    def enter(self, sandbox: Sandbox) -> None:
        """It is to go on. Raises: BudgetExceeded; of a hibernated one also QuotaExceeded, CapacityExceeded."""
        self._budgets.check_resume(sandbox)
        if sandbox.state is State.HIBERNATED:
            self._admission.check(sandbox.limits)
            self._quotas.wake(sandbox)
            self._admission.admit(sandbox.id, sandbox.limits, is_new=False)

    def leave(self, sandbox: Sandbox) -> None:
        """It is hibernated, or still. Again: nothing."""
        self._admission.release(sandbox.id)
        self._quotas.rest(sandbox)
