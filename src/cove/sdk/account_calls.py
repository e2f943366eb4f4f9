"""The requests about usage and quotas, as data. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cove.sdk.errors import BadRequest
from cove.sdk.transport import Call, Retry
from cove.sdk.wire import API, Page, box_path, checked, items_of, page_of, quoted

if TYPE_CHECKING:  # dataclasses cost milliseconds that `cove exec` does not have
    from cove.sdk.account_models import Bill, Quota, QuotaInfo

Moment = str | datetime | None
"""A day (`2026-11-21`), a time in RFC 3339, or a `datetime`; UTC if it says no zone."""


def usage_page(  # noqa: PLR0913 - one keyword for each filter
    *,
    since: Moment,
    until: Moment,
    group_by: str | Sequence[str],
    project: str | None,
    key: str | None,
    sandbox: str | None,
    cursor: str | None,
) -> Call[Page]:
    """GET /usage."""
    query = {
        "from": _text(since),
        "to": _text(until),
        "group_by": [group_by] if isinstance(group_by, str) else list(group_by),
        "project": project,
        "key": key,
        "sandbox": sandbox,
        "cursor": cursor,
    }
    return Call("GET", f"{API}/usage", page_of("usage"), query=query, retry=Retry.LOST)


def bill(ref: str) -> Call[Bill]:
    """GET /sandboxes/{id}/usage."""

    def parse(wire: Any) -> Bill:
        from cove.sdk import account_models

        return account_models.bill(checked(wire))

    return Call("GET", box_path(ref, "/usage"), parse, retry=Retry.LOST)


def _quota(wire: Any) -> QuotaInfo:
    from cove.sdk import account_models

    return account_models.quota_info(checked(wire))


def quotas() -> Call[list[QuotaInfo]]:
    """GET /quota."""
    return Call("GET", f"{API}/quota", items_of("quotas", _quota), retry=Retry.LOST)


def quota(project: str | None, key: str | None) -> Call[QuotaInfo]:
    """GET /projects/{project}/quota, /keys/{key}/quota."""
    return Call("GET", _path(project, key), _quota, retry=Retry.LOST)


def set_quota(project: str | None, key: str | None, limits: Quota) -> Call[QuotaInfo]:
    """PUT /projects/{project}/quota, /keys/{key}/quota."""
    return Call("PUT", _path(project, key), _quota, json=quota_body(limits), retry=Retry.LOST)


def quota_body(limits: Quota) -> dict[str, Any]:
    """Return limits as the wire has them."""
    from dataclasses import asdict

    body = asdict(limits)
    if body["budget"] is not None:
        body["budget"] = str(body["budget"])
    return body


def _path(project: str | None, key: str | None) -> str:
    if project and not key:
        return f"{API}/projects/{quoted(project)}/quota"
    if key and not project:
        return f"{API}/keys/{quoted(key)}/quota"
    raise BadRequest("name a project or a key", field="project")


def _text(moment: Moment) -> str | None:
    return moment.isoformat() if isinstance(moment, datetime) else moment
