"""The lines that operations on files write into the audit trail: paths and sizes, never contents."""

from __future__ import annotations

from cove.core.audit import Audit
from cove.model.access import Principal
from cove.model.audit import AuditValue
from cove.model.sandbox import Sandbox


class FileNotes:
    """What those who change or hand out files use."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def check(self) -> None:
        """Raises: CapacityExceeded when it would go unrecorded."""
        self._audit.check()

    async def kept(self, event: str, who: Principal, sandbox: Sandbox, **data: AuditValue) -> None:
        """Note it, and wait until the line is committed: it is answered after that."""
        audit = self._audit
        await audit.kept(audit.note(event, project=sandbox.project, sandbox=sandbox.id, data=data, who=who))
