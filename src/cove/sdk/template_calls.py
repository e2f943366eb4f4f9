"""The requests about templates, as data. Pure; both surfaces use it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cove.sdk.models import time_of
from cove.sdk.transport import Call, Retry
from cove.sdk.wire import API, checked, items_of, nothing, quoted


@dataclass(frozen=True, slots=True)
class Template:
    """A name for a snapshot. `ready` copies of it are wanted, `ready_now` are there; `reason`: why there are none."""

    name: str
    snapshot: str
    snapshot_name: str | None
    ready: int
    ready_now: int
    claimed: int
    missed: int
    reason: str | None
    created_at: datetime | None
    created_by: str


def template_of(wire: Any) -> Template:
    """A template of the wire."""
    fields = checked(wire)
    return Template(
        name=str(fields["name"]),
        snapshot=str(fields.get("snapshot") or ""),
        snapshot_name=fields.get("snapshot_name"),
        ready=int(fields.get("ready") or 0),
        ready_now=int(fields.get("ready_now") or 0),
        claimed=int(fields.get("claimed") or 0),
        missed=int(fields.get("missed") or 0),
        reason=fields.get("reason"),
        created_at=time_of(fields.get("created_at")),
        created_by=str(fields.get("created_by") or ""),
    )


def templates() -> Call[list[Template]]:
    """GET /templates."""
    return Call("GET", f"{API}/templates", items_of("templates", template_of), retry=Retry.LOST)


def get(name: str) -> Call[Template]:
    """GET /templates/{template}."""
    return Call("GET", f"{API}/templates/{quoted(name)}", template_of, retry=Retry.LOST)


def set_template(name: str, *, snapshot: str | None, ready: int | None) -> Call[Template]:
    """PUT /templates/{template}."""
    body = {"snapshot": snapshot, "ready": ready}
    wanted = {field: value for field, value in body.items() if value is not None}
    return Call("PUT", f"{API}/templates/{quoted(name)}", template_of, json=wanted, retry=Retry.LOST)


def sandboxes_of(template: Template) -> str:
    """Return the path that makes sandboxes of it."""
    return f"{API}/templates/{quoted(template.name)}/sandboxes"


def remove(name: str) -> Call[None]:
    """DELETE /templates/{template}."""
    return Call("DELETE", f"{API}/templates/{quoted(name)}", nothing, retry=Retry.LOST)
