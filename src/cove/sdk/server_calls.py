"""The requests about the server, its keys and projects, as data. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cove.sdk.account_calls import quota_body
from cove.sdk.transport import Call, Retry
from cove.sdk.units import UNSET, Duration, Unset, parse_seconds
from cove.sdk.wire import API, checked, items_of, nothing, quoted

if TYPE_CHECKING:  # its dataclasses cost 7 ms, which `cove exec` does not have
    from cove.sdk.account_models import Quota
    from cove.sdk.models import Key, Project


def server() -> Call[dict[str, Any]]:
    """GET /server."""
    return Call("GET", f"{API}/server", checked, retry=Retry.LOST)


def shutdown(*, destroy_all: bool) -> Call[dict[str, Any]]:
    """POST /server/shutdown. Not repeated: a second one would find the next server."""
    return Call("POST", f"{API}/server/shutdown", checked, json={"all": destroy_all})


def health() -> Call[dict[str, Any]]:
    """GET /health."""
    return Call("GET", "/health", checked, retry=Retry.LOST)


def _key(wire: Any) -> Key:
    from cove.sdk import models

    return models.key(checked(wire))


def create_key(  # noqa: PLR0913 - one keyword for each property of a key
    name: str,
    *,
    project: str | None,
    scopes: Sequence[str] | None,
    timeout: Duration | None,
    dialect: str | None,
    quota: Quota | None = None,
) -> Call[Key]:
    """POST /keys. Not repeated: each one makes another key."""
    body: dict[str, Any] = {"name": name, "timeout_s": parse_seconds(timeout, "timeout")}
    if project is not None:
        body["project"] = project
    if scopes is not None:
        body["scopes"] = list(scopes)
    if dialect is not None:
        body["dialect"] = dialect
    if quota is not None:
        body["quota"] = quota_body(quota)
    return Call("POST", f"{API}/keys", _key, json=body)


def list_keys() -> Call[list[Key]]:
    """GET /keys."""
    return Call(
        "GET",
        f"{API}/keys",
        items_of("keys", _key),
        retry=Retry.LOST,
    )


def revoke_key(key_id: str) -> Call[None]:
    """DELETE /keys/{key}."""
    return Call("DELETE", f"{API}/keys/{quoted(key_id)}", nothing, retry=Retry.LOST)


def _project(wire: Any) -> Project:
    from cove.sdk import models

    return models.project(checked(wire))


def create_project(project_id: str, *, default_driver: str | None = None, drivers: Sequence[str] = ()) -> Call[Project]:
    """POST /projects."""
    body = {"id": project_id, "default_driver": default_driver, "drivers": list(drivers)}
    return Call("POST", f"{API}/projects", _project, json=body)


def change_project(
    project_id: str, *, default_driver: str | Unset | None = UNSET, drivers: Sequence[str] | Unset = UNSET
) -> Call[Project]:
    """PATCH /projects/{project}."""
    body: dict[str, Any] = {}
    if not isinstance(default_driver, Unset):
        body["default_driver"] = default_driver
    if not isinstance(drivers, Unset):
        body["drivers"] = list(drivers)
    return Call("PATCH", f"{API}/projects/{quoted(project_id)}", _project, json=body, retry=Retry.LOST)


def list_projects() -> Call[list[Project]]:
    """GET /projects."""
    return Call(
        "GET",
        f"{API}/projects",
        items_of("projects", _project),
        retry=Retry.LOST,
    )
