"""The requests about webhooks, as data, and the check of what they send. Pure; both surfaces use it."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cove.sdk.models import time_of
from cove.sdk.transport import Call, Retry
from cove.sdk.wire import API, checked, items_of, nothing, quoted

TOLERANCE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook. `failing_since`: since when deliveries fail, for `failure`; `disabled_at`: given up after a day.

    `secret` signs what it sends; only the answer that made it has it.
    """

    id: str
    project: str
    url: str
    events: tuple[str, ...]
    created_at: datetime | None
    delivered_at: datetime | None
    failing_since: datetime | None
    failure: str | None
    disabled_at: datetime | None
    secret: str | None


def _webhook(wire: Any) -> Webhook:
    fields = checked(wire)
    return Webhook(
        id=str(fields["id"]),
        project=str(fields.get("project") or ""),
        url=str(fields.get("url") or ""),
        events=tuple(fields.get("events") or ()),
        created_at=time_of(fields.get("created_at")),
        delivered_at=time_of(fields.get("delivered_at")),
        failing_since=time_of(fields.get("failing_since")),
        failure=fields.get("failure"),
        disabled_at=time_of(fields.get("disabled_at")),
        secret=fields.get("secret"),
    )


def create(url: str, *, events: Sequence[str] | None, project: str | None) -> Call[Webhook]:
    """POST /webhooks. Not repeated: each one makes another webhook."""
    body: dict[str, Any] = {"url": url, "project": project, "events": None if events is None else list(events)}
    return Call("POST", f"{API}/webhooks", _webhook, json={name: value for name, value in body.items() if value})


def webhooks() -> Call[list[Webhook]]:
    """GET /webhooks."""
    return Call("GET", f"{API}/webhooks", items_of("webhooks", _webhook), retry=Retry.LOST)


def remove(webhook_id: str) -> Call[None]:
    """DELETE /webhooks/{webhook}."""
    return Call("DELETE", f"{API}/webhooks/{quoted(webhook_id)}", nothing, retry=Retry.LOST)


def is_genuine(secret: str, headers: Mapping[str, str], body: bytes, *, now: float) -> bool:
    """Whether a POST that came was sent by the holder of `secret`, in the last five minutes."""
    given = {name.lower(): value for name, value in headers.items()}
    stamp = given.get("webhook-timestamp", "")
    if not stamp.isdigit() or abs(now - int(stamp[:12])) > TOLERANCE_S:
        return False
    message = f"{given.get('webhook-id', '')}.{stamp}.".encode() + body
    wanted = b64encode(hmac.digest(b64decode(secret.removeprefix("whsec_")), message, "sha256")).decode()
    found = given.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(f"v1,{wanted}".encode(), one.encode()) for one in found)
