"""The line of one execution in the audit trail: what ran for whom, and how it ended. Never the program, nor its output.

Its stages are commands, which have lines of their own. What a caller's metadata says of its own user is told as such:
nobody has checked it.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from cove.core.audit import Audit
from cove.model.access import Principal
from cove.model.audit import AuditValue
from cove.model.execution import ExecutionResult, ExecutionSpec

USER: Final = "userId"
"""The entry of an execution's metadata that names who it is for."""

_TEXT: Final = 1024


class ExecutionNotes:
    """What executions tell the trail."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def ended(  # noqa: PLR0913 - what a line says, by name
        self,
        who: Principal,
        spec: ExecutionSpec,
        *,
        execution: str,
        sandbox: str,
        code: str,
        result: ExecutionResult | None,
    ) -> None:
        """An execution is over; `result` None: whoever asked for it went away, which ends it."""
        text = spec.command if spec.command is not None else code
        data: dict[str, AuditValue] = {
            "execution": execution,
            "runtime": spec.runtime,
            "code_sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest(),
            **_outcome(result),
        }
        if spec.session is not None:
            data["session"] = spec.session[:_TEXT]
        if USER in spec.metadata:
            data["user"] = spec.metadata[USER][:_TEXT]
        rest = {name: value for name, value in spec.metadata.items() if name != USER}
        if rest:
            data["metadata"] = msgspec.json.encode(rest).decode()[:_TEXT]
        self._audit.note("execution.ended", project=who.project, sandbox=sandbox, data=data, who=who)


def _outcome(result: ExecutionResult | None) -> dict[str, AuditValue]:
    if result is None:
        return {"why": "left"}
    if result.failure is not None:
        stage = "files" if result.failure.stage is None else result.failure.stage.value
        return {"exit_code": result.failure.code, "why": "failed", "stage": stage, "duration_ms": 0.0}
    return {"exit_code": result.code, "why": result.why.value, "duration_ms": round(result.duration_ms, 1)}
