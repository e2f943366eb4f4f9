"""What the audit says: who did what to which sandbox, when and from where. Frozen values, no I/O. Never a secret.

The chain over the entries is `core/audit.py`; the words of events are part of the API (docs/guides/audit.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

AuditValue = str | int | float | bool | None


class AuditActor(Struct, frozen=True, kw_only=True):
    """`key`: the id of the key, `local` for the unix socket, `cove` for the server itself."""

    key: str
    name: str
    address: str = ""
    via: str = "cove"
    dialect: str = ""
    request_id: str = ""


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One line of a project's chain. `sandbox` None: it is about the project. `at`: Unix seconds.

    `hmac` covers every other field and the `hmac` of the line before.
    """

    seq: int
    at: float
    project: str
    sandbox: str | None
    event: str
    actor: AuditActor
    data: Mapping[str, AuditValue]
    hmac: str
