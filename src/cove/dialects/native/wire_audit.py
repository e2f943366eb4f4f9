"""What goes over the wire about the audit trail: frozen structs, nothing else. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from cove.dialects.native.wire import Request

ProjectName = Annotated[str, Meta(min_length=1, max_length=63, description="Default: the key's own; others: admin.")]
SandboxRef = Annotated[str, Meta(min_length=1, max_length=63, description="`sb_…` or a name.")]
Since = Annotated[datetime, Meta(tz=True, description="RFC 3339.")]


class LinesQuery(Request, frozen=True):
    """Which lines. `event`: those whose event begins so. `newest`: from the end, and `cursor` goes back."""

    project: ProjectName | None = None
    sandbox: SandboxRef | None = None
    event: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    since: Since | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    newest: bool = False
    follow: bool = False


class SandboxLinesQuery(Request, frozen=True):
    """As of a project's lines."""

    event: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    since: Since | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    newest: bool = False
    follow: bool = False


class ExportQuery(Request, frozen=True):
    """Of a project, or of one of its sandboxes."""

    project: ProjectName | None = None
    sandbox: SandboxRef | None = None


class KeyQuery(Request, frozen=True):
    """Whose key."""

    project: ProjectName | None = None


class Actor(Struct, frozen=True, kw_only=True):
    """Who. `key`: a key's id, `local` (the unix socket), `cove` (the server itself); `via`: http, unix, ssh, cove."""

    key: str
    name: str
    address: str
    via: str
    dialect: str
    request_id: str


class Line(Struct, frozen=True, kw_only=True):
    """One line. `seq` counts the project's, `sandbox_seq` the sandbox's; what the HMACs cover: docs/guides/audit.md."""

    seq: int
    at: str
    project: str
    sandbox: str | None
    sandbox_seq: int | None
    event: str
    actor: Actor
    data: dict[str, str | int | float | bool | None]
    sandbox_hmac: str | None
    hmac: str


class LinePage(Struct, frozen=True):
    """Lines; `cursor` null: there are no more."""

    lines: tuple[Line, ...]
    cursor: int | None


class VerificationKey(Struct, frozen=True):
    """What verifies the project's exports, and could forge them, as hex."""

    project: str
    key: str


class NewWebhook(Request, frozen=True):
    """Where to, and what of: beginnings of events (`sandbox.`, `exec.exit`). `project` null: the caller's."""

    url: Annotated[str, Meta(min_length=1, max_length=2048)]
    events: Annotated[tuple[str, ...], Meta(min_length=1, max_length=32)] = ("sandbox.",)
    project: ProjectName | None = None


class Webhook(Struct, frozen=True, kw_only=True):
    """A webhook. `failing_since` null: the last delivery went well; `disabled_at`: given up. `secret`: once only."""

    id: str
    project: str
    url: str
    events: tuple[str, ...]
    created_at: str
    delivered_at: str | None
    failing_since: str | None
    failure: str | None
    disabled_at: str | None
    secret: str | None = None


class WebhookList(Struct, frozen=True):
    """Those of the caller's project, for an admin all."""

    webhooks: tuple[Webhook, ...]
