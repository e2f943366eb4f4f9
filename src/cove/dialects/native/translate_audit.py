"""Between the native wire format and the core's values, for the audit trail. Pure functions, no decisions."""

from __future__ import annotations

import msgspec

from cove.dialects.native import wire_audit as wire
from cove.dialects.native.translate import sandbox_ref
from cove.model.audit import AuditEntry, AuditFilter, AuditPage
from cove.model.auditchain import line_of, rendered


def filter_of(query: wire.LinesQuery) -> AuditFilter:
    """Which lines."""
    return AuditFilter(
        sandbox=None if query.sandbox is None else sandbox_ref(query.sandbox),
        event=query.event,
        since=None if query.since is None else query.since.timestamp(),
    )


def sandbox_filter_of(sandbox: str, query: wire.SandboxLinesQuery) -> AuditFilter:
    """Which lines of a sandbox."""
    since = None if query.since is None else query.since.timestamp()
    return AuditFilter(sandbox=sandbox_ref(sandbox), event=query.event, since=since)


def line_view(entry: AuditEntry) -> wire.Line:
    """A line."""
    return msgspec.convert(line_of(entry), wire.Line)


def page_view(page: AuditPage) -> wire.LinePage:
    """A page of lines."""
    return wire.LinePage(tuple(map(line_view, page.entries)), page.cursor)


def encode_line(entry: AuditEntry) -> bytes:
    """A line of a stream, as an export has it."""
    return rendered(line_of(entry)) + b"\n"
