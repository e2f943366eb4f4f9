"""What the audit says: who did what to which sandbox, when and from where. Frozen values, no I/O. Never a secret.

The chain over the entries is `model/auditchain.py`, their writing `core/audit.py`; the words of events are part of the
API (docs/guides/audit.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

AuditValue = str | int | float | bool | None

SERVER_PROJECT: Final = "_server"
"""The chain of what belongs to no project: start and stop, and keys that nobody knows. No project can be named so."""


class AuditActor(Struct, frozen=True, kw_only=True):
    """`key`: the id of the key, `local` for the unix socket, `cove` for the server itself."""

    key: str
    name: str
    address: str = ""
    via: str = "cove"
    dialect: str = ""
    request_id: str = ""


class AuditDraft(Struct, frozen=True, kw_only=True):
    """What is to become a line. `ticket` orders those that wait: 0 for one that is written with its row at once."""

    ticket: int
    at: float
    project: str
    sandbox: str | None
    event: str
    actor: AuditActor
    data: Mapping[str, AuditValue]


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One line of a project's chain. `sandbox` None: it is about the project. `at`: Unix seconds, whole milliseconds.

    `hmac` covers every other field and the `hmac` of the line before. A sandbox's lines are a chain of their own too:
    `sandbox_seq` counts them, and `sandbox_hmac` covers every field but the two and the `sandbox_hmac` before.
    """

    seq: int
    at: float
    project: str
    sandbox: str | None
    event: str
    actor: AuditActor
    data: Mapping[str, AuditValue]
    hmac: str
    sandbox_seq: int | None = None
    sandbox_hmac: str | None = None


class AuditLink(Struct, frozen=True, kw_only=True):
    """Where a chain goes on: the number of its next line, and the HMAC of its last one (empty: it has none)."""

    seq: int = 0
    last: str = ""


class AuditFilter(Struct, frozen=True, kw_only=True):
    """Which lines of a project: of one sandbox, of events that begin so, not older than that (Unix seconds)."""

    sandbox: str | None = None
    event: str | None = None
    since: float | None = None


class AuditPage(Struct, frozen=True, kw_only=True):
    """Lines in the order of the chain. `cursor`: the `seq` to go on after; None: that was all."""

    entries: tuple[AuditEntry, ...]
    cursor: int | None
