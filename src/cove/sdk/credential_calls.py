"""Credentials and services: the requests about them, as data, and what the server tells of them. Pure.

A key goes into a body and nowhere else: no value here has one, and no `repr` shows a body.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from cove.sdk.errors import BadRequest
from cove.sdk.models import time_of
from cove.sdk.transport import Call, Retry
from cove.sdk.units import UNSET, Unset
from cove.sdk.wire import API, box_path, checked, items_of, nothing, quoted

Rules = Iterable[Mapping[str, Sequence[str]]]
"""Which requests may be made: `[{"methods": ["POST"], "paths": ["/v1/chat"]}]`."""

Wish = str | Mapping[str, Any] | None
Wishes = Mapping[str, Wish] | Iterable[str]
"""By service: a key; a key with `endpoints`; None, or the names alone: the key that the project keeps."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential, without its key.

    Attributes:
        key: whose key is used: `own` of the sandbox, or the `project`'s.
        upstream: where requests go; None: the service is gone.
        url: the broker's address for it, inside the sandbox.
        env: variables that point programs to the broker.
        endpoints: which requests may be made; empty: all.
        changed_at: when the key was.
    """

    service: str
    key: str
    upstream: str | None
    url: str | None
    env: dict[str, str]
    endpoints: tuple[dict[str, Any], ...]
    created_at: datetime | None
    changed_at: datetime | None
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Service:
    """An HTTPS API that credentials are for; `value` of the header `header` has `{key}` in it."""

    name: str
    description: str
    upstream: str
    header: str
    value: str
    strip_headers: tuple[str, ...]
    strip_query: tuple[str, ...]
    env: dict[str, str]
    builtin: bool
    raw: dict[str, Any] = field(repr=False)


def _credential(wire: Any) -> Credential:
    found = checked(wire)
    return Credential(
        service=str(found.get("service") or ""),
        key=str(found.get("key") or "own"),
        upstream=found.get("upstream"),
        url=found.get("url"),
        env=dict(found.get("env") or {}),
        endpoints=tuple(found.get("endpoints") or ()),
        created_at=time_of(found.get("created_at")),
        changed_at=time_of(found.get("changed_at")),
        raw=found,
    )


def _service(wire: Any) -> Service:
    found = checked(wire)
    return Service(
        name=str(found.get("name") or ""),
        description=str(found.get("description") or ""),
        upstream=str(found.get("upstream") or ""),
        header=str(found.get("header") or ""),
        value=str(found.get("value") or ""),
        strip_headers=tuple(found.get("strip_headers") or ()),
        strip_query=tuple(found.get("strip_query") or ()),
        env=dict(found.get("env") or {}),
        builtin=bool(found.get("builtin")),
        raw=found,
    )


def wishes(credentials: Wishes | None) -> dict[str, Any] | None:
    """The field of a create. Raises: BadRequest, without a word of a key."""
    if credentials is None:
        return None
    if isinstance(credentials, str):
        raise BadRequest("credentials are a mapping of services to keys, or a list of services", field="credentials")
    if not isinstance(credentials, Mapping):
        return {name: {} for name in credentials}
    return dict(map(_wish, cast("Mapping[str, Wish]", credentials).items()))


def _wish(item: tuple[str, Wish]) -> tuple[str, Any]:
    name, wish = item
    return name, {} if wish is None else wish


def _rules(endpoints: Rules | Unset) -> list[dict[str, list[str]]] | Unset:
    if isinstance(endpoints, Unset):
        return UNSET
    return [{name: list(words) for name, words in rule.items()} for rule in endpoints]


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not UNSET}


def of_box(ref: str) -> Call[list[Credential]]:
    """GET …/credentials."""
    return Call("GET", box_path(ref, "/credentials"), items_of("credentials", _credential), retry=Retry.LOST)


def set_of_box(ref: str, service: str, key: str | Unset | None, endpoints: Rules | Unset) -> Call[Credential]:
    """PUT …/credentials/{service}."""
    body = _given(key=key, endpoints=_rules(endpoints))
    return Call("PUT", box_path(ref, f"/credentials/{quoted(service)}"), _credential, json=body, retry=Retry.LOST)


def remove_of_box(ref: str, service: str) -> Call[None]:
    """DELETE …/credentials/{service}. Idempotent."""
    return Call("DELETE", box_path(ref, f"/credentials/{quoted(service)}"), nothing, retry=Retry.LOST)


def shared(project: str | None) -> Call[list[Credential]]:
    """GET /credentials."""
    query = _project(project)
    return Call("GET", f"{API}/credentials", items_of("credentials", _credential), query=query, retry=Retry.LOST)


def set_shared(service: str, key: str | Unset, endpoints: Rules | Unset, project: str | None) -> Call[Credential]:
    """PUT /credentials/{service}."""
    body = _given(key=key, endpoints=_rules(endpoints), project=UNSET if project is None else project)
    return Call("PUT", f"{API}/credentials/{quoted(service)}", _credential, json=body, retry=Retry.LOST)


def remove_shared(service: str, project: str | None) -> Call[None]:
    """DELETE /credentials/{service}. Idempotent."""
    path = f"{API}/credentials/{quoted(service)}"
    return Call("DELETE", path, nothing, query=_project(project), retry=Retry.LOST)


def services() -> Call[list[Service]]:
    """GET /credential-services."""
    return Call("GET", f"{API}/credential-services", items_of("services", _service), retry=Retry.LOST)


def put_service(name: str, upstream: str, fields: Mapping[str, Any]) -> Call[Service]:
    """PUT /credential-services/{name}. What is None is left to the server's default."""
    body = {"upstream": upstream, **{field_: value for field_, value in fields.items() if value is not None}}
    return Call("PUT", f"{API}/credential-services/{quoted(name)}", _service, json=body, retry=Retry.LOST)


def remove_service(name: str) -> Call[None]:
    """DELETE /credential-services/{name}."""
    return Call("DELETE", f"{API}/credential-services/{quoted(name)}", nothing)


def rekey() -> Call[int]:
    """POST /server/rekey."""
    return Call("POST", f"{API}/server/rekey", lambda wire: int(checked(wire).get("secrets") or 0))


def _project(project: str | None) -> dict[str, str | list[str] | None]:
    return {} if project is None else {"project": project}
