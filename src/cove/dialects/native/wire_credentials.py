"""What goes over the wire about credentials and services: frozen structs, nothing else. Pure. No answer has a key."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

Key = Annotated[str, Meta(min_length=1, max_length=8192, description="The key itself. It is never shown again.")]
Words = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...], Meta(max_length=64)]


class EndpointRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that may be made: any of `methods` on any of `paths`; empty: all.

    A path stands for itself and all below it; with stars for the whole: `*` within a segment, `**` across them.
    """

    methods: Words = ()
    paths: Words = ()


Rules = Annotated[tuple[EndpointRule, ...], Meta(max_length=64)]


class Wish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A credential at a create. `key` null: the one that the project keeps."""

    key: Key | None = None
    endpoints: Rules = ()


class Set(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sandbox's credential, new or changed; what is not given stays. `key` null: the one that the project keeps."""

    key: Key | UnsetType | None = UNSET
    endpoints: Rules | UnsetType = UNSET


class SetShared(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A credential that a project keeps, new or changed; what is not given stays. `project` null: the caller's."""

    key: Key | UnsetType = UNSET
    endpoints: Rules | UnsetType = UNSET
    project: str | None = None


class ProjectQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of which project; null: the caller's."""

    project: str | None = None


class Credential(Struct, frozen=True, kw_only=True):
    """A credential without its key. `key`: whose is used. `env`: what points programs to the broker.

    `upstream` null: the service is gone, so requests are refused. `changed_at`: when the key was.
    """

    service: str
    key: Literal["own", "project"]
    upstream: str | None
    url: str | None
    env: dict[str, str]
    endpoints: tuple[EndpointRule, ...]
    created_at: str
    changed_at: str


class CredentialList(Struct, frozen=True):
    """Credentials, by service."""

    credentials: tuple[Credential, ...]


class PutService(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service of the operator's own. `value` has `{key}` in it; `env` may have `{placeholder}` and `{url}`."""

    upstream: Annotated[str, Meta(min_length=1, max_length=1024, description="https://HOST[:PORT][/PATH]")]
    header: str = "Authorization"
    value: str = "Bearer {key}"
    strip_headers: tuple[str, ...] = ()
    strip_query: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict[str, str])
    description: str = ""


class Service(Struct, frozen=True, kw_only=True):
    """An HTTPS API that credentials are for."""

    name: str
    description: str
    upstream: str
    header: str
    value: str
    strip_headers: tuple[str, ...]
    strip_query: tuple[str, ...]
    env: dict[str, str]
    builtin: bool


class ServiceList(Struct, frozen=True):
    """The services, by name."""

    services: tuple[Service, ...]


class Rekeyed(Struct, frozen=True):
    """How many secrets were sealed anew."""

    secrets: int
