"""The requests about snapshots, and about sandboxes that are made of them, as data. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from cove.sdk.calls import new_key, sandbox_of
from cove.sdk.errors import BadRequest
from cove.sdk.template_calls import Template, sandboxes_of
from cove.sdk.transport import Call, Retry
from cove.sdk.units import UNSET, Duration, Size, Unset, parse_mib, parse_seconds
from cove.sdk.wire import API, Page, box_path, checked, nothing, page_of, quoted

if TYPE_CHECKING:  # its dataclasses cost 7 ms, which `cove exec` does not have
    from cove.sdk.credential_calls import Wishes
    from cove.sdk.models import SandboxInfo, Snapshot
    from cove.sdk.network_calls import Policy

PATH: Final = f"{API}/snapshots"


def ref_of(snapshot: str | Snapshot) -> str:
    """Return how a snapshot is named to the server: by its id where it is one that was answered."""
    return snapshot if isinstance(snapshot, str) else snapshot.id


def hibernate(ref: str, *, memory: bool | None) -> Call[SandboxInfo]:
    """POST …/hibernate. Idempotent."""
    return Call("POST", box_path(ref, "/hibernate"), sandbox_of, json={"memory": memory_of(memory)}, retry=Retry.LOST)


def take(
    ref: str, *, name: str | None, tags: Mapping[str, str] | None, memory: bool | None, idempotency_key: str | None
) -> Call[Snapshot]:
    """POST …/snapshots."""
    body = {"name": name, "tags": dict(tags or {}), "memory": memory_of(memory)}
    return Call(
        "POST", box_path(ref, "/snapshots"), _snapshot, json=body, headers=_once(idempotency_key), retry=Retry.CREATE
    )


def wanted(  # noqa: PLR0913 - one keyword for each property
    *,
    name: str | None,
    memory: bool | None,
    env: Mapping[str, str] | None,
    metadata: Mapping[str, str] | None,
    network: Policy | None,
    cpus: float | None,
    memory_limit: Size | None,
    disk: Size | None,
    pids: int | None,
    timeout: Duration | None,
    timeout_counts: str | None,
    idle_timeout: Duration | Unset | None,
    idle_action: str | None,
    auto_resume: bool | None,
    credentials: Wishes | None,
    inherit_credentials: bool,
) -> dict[str, Any]:
    """Return the Restore object. What is None is as the source has it."""
    body: dict[str, Any] = {
        "name": name,
        "memory": memory_of(memory),
        "env": dict(env) if env else None,
        "metadata": None if metadata is None else dict(metadata),
        "network": None if network is None else _policy(network),
        "cpus": cpus,
        "memory_mib": None if memory_limit is None else parse_mib(memory_limit, "memory_limit"),
        "disk_mib": None if disk is None else parse_mib(disk, "disk"),
        "pids": pids,
        "timeout_s": parse_seconds(timeout, "timeout"),
        "timeout_counts": timeout_counts,
        "idle_action": idle_action,
        "auto_resume": auto_resume,
        "credentials": None if credentials is None else _wishes(credentials),
        "inherit_credentials": inherit_credentials or None,
    }
    body = {field: value for field, value in body.items() if value is not None}
    if idle_timeout is not UNSET:
        body["idle_timeout_s"] = parse_seconds(idle_timeout, "idle_timeout")
    return body


def memory_of(memory: object) -> bool | None:
    """Return whether processes come along, as the wire wants it. Raises: BadRequest (a size, as `create` takes one)."""
    if memory is not None and not isinstance(memory, bool):
        hint = 'memory_limit="1g" limits the memory of a sandbox that is made'
        raise BadRequest("memory: True, False or None says whether processes come along", field="memory", hint=hint)
    return memory


def fork(ref: str, count: int, body: dict[str, Any], idempotency_key: str | None) -> Call[list[SandboxInfo]]:
    """POST …/fork."""

    def parse(wire: Any) -> list[SandboxInfo]:
        return [sandbox_of(each) for each in checked(wire)["sandboxes"]]

    return Call(
        "POST",
        box_path(ref, "/fork"),
        parse,
        json={**body, "count": count},
        headers=_once(idempotency_key),
        retry=Retry.CREATE,
    )


def rollback(ref: str, snapshot: str | Snapshot, *, memory: bool | None) -> Call[SandboxInfo]:
    """POST …/rollback. Never repeated: what was done since would be lost."""
    body = {"snapshot": ref_of(snapshot), "memory": memory_of(memory)}
    return Call("POST", box_path(ref, "/rollback"), sandbox_of, json=body)


def restore(
    snapshot: str | Snapshot | Template, body: dict[str, Any], idempotency_key: str | None
) -> Call[SandboxInfo]:
    """POST /snapshots/{id}/restore, or /templates/{template}/sandboxes."""
    path = sandboxes_of(snapshot) if isinstance(snapshot, Template) else _path(snapshot, "/restore")
    return Call("POST", path, sandbox_of, json=body, headers=_once(idempotency_key), retry=Retry.CREATE)


def list_page(  # noqa: PLR0913 - one keyword for each filter
    *,
    sandbox: str | None,
    name: str | None,
    state: str | Sequence[str] | None,
    tags: Mapping[str, str] | None,
    limit: int,
    cursor: str | None,
) -> Call[Page]:
    """GET /snapshots, one page of it."""
    query: dict[str, str | list[str] | None] = {
        "sandbox": sandbox,
        "name": name,
        "state": [state] if isinstance(state, str) else list(state or ()),
        "limit": str(limit),
        "cursor": cursor,
    }
    query |= {f"tags.{key}": value for key, value in (tags or {}).items()}
    return Call("GET", PATH, page_of("snapshots"), query=query, retry=Retry.LOST)


def get(snapshot: str | Snapshot) -> Call[Snapshot]:
    """GET /snapshots/{id}."""
    return Call("GET", _path(snapshot), _snapshot, retry=Retry.LOST)


def update(snapshot: str | Snapshot, *, name: str | None, tags: Mapping[str, str | None] | None) -> Call[Snapshot]:
    """PATCH /snapshots/{id}. Only what is given changes."""
    body: dict[str, Any] = {"name": name, "tags": None if tags is None else dict(tags)}
    given = {field: value for field, value in body.items() if value is not None}
    return Call("PATCH", _path(snapshot), _snapshot, json=given, retry=Retry.LOST)


def delete(snapshot: str | Snapshot) -> Call[None]:
    """DELETE /snapshots/{id}."""
    return Call("DELETE", _path(snapshot), nothing)


def export(snapshot: str | Snapshot) -> Call[None]:
    """GET /snapshots/{id}/export: raw bytes."""
    return Call("GET", _path(snapshot, "/export"), nothing)


def import_(data: Any, *, name: str | None, size: int | None) -> Call[Snapshot]:
    """POST /snapshots/import. The file is read only once."""
    headers = {} if size is None else {"content-length": str(size)}
    return Call("POST", f"{PATH}/import", _snapshot, query={"name": name}, body=data, headers=headers)


def _path(snapshot: str | Snapshot, rest: str = "") -> str:
    ref = ref_of(snapshot)
    if not ref or ref in {".", ".."}:
        raise BadRequest(f'"{ref}" names no snapshot', field="snapshot")
    return f"{PATH}/{quoted(ref)}{rest}"


def _once(idempotency_key: str | None) -> dict[str, str]:
    return {"idempotency-key": idempotency_key or new_key()}


def _snapshot(wire: Any) -> Snapshot:
    from cove.sdk import models

    return models.snapshot(checked(wire))


def _policy(network: Policy) -> dict[str, Any]:
    from cove.sdk.network_calls import policy_of

    return policy_of(network)


def _wishes(credentials: Wishes) -> dict[str, Any] | None:
    from cove.sdk.credential_calls import wishes

    return wishes(credentials)
