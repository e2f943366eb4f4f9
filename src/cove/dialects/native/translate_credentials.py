"""Between the native wire format of credentials and the core's values. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from cove.core.credentials import Held
from cove.core.services.catalogue import ServiceSpec
from cove.dialects.native import wire_credentials as wire
from cove.dialects.native.times import timestamp
from cove.model.credentials import PLACEHOLDER, CredentialWish, EndpointRule, Secret, Service


def wishes_of(credentials: Mapping[str, str | wire.Wish]) -> dict[str, CredentialWish]:
    """What a create asks for: a key alone, or a key with rules, by service."""
    return {
        name: CredentialWish(key=Secret(wish))
        if isinstance(wish, str)
        else CredentialWish(key=None if wish.key is None else Secret(wish.key), endpoints=rules_of(wish.endpoints))
        for name, wish in credentials.items()
    }


def rules_of(rules: tuple[wire.EndpointRule, ...]) -> tuple[EndpointRule, ...]:
    """The rules."""
    return tuple(EndpointRule(methods=one.methods, paths=one.paths) for one in rules)


def given_rules(rules: tuple[wire.EndpointRule, ...] | UnsetType) -> tuple[EndpointRule, ...] | UnsetType:
    """The rules, where there are any."""
    return UNSET if isinstance(rules, UnsetType) else rules_of(rules)


def secret_of(key: str | UnsetType | None) -> Secret | UnsetType | None:
    """The key, where there is one."""
    return Secret(key) if isinstance(key, str) else key


def credential_view(held: Held) -> wire.Credential:
    """A credential as it is shown."""
    row, service = held
    return wire.Credential(
        service=row.service,
        key="project" if row.sealed is None else "own",
        upstream=None if service is None else service.upstream,
        url=None if service is None else service.url,
        env={} if service is None else service.environment(PLACEHOLDER),
        endpoints=tuple(wire.EndpointRule(methods=one.methods, paths=one.paths) for one in row.endpoints),
        created_at=timestamp(row.created_at),
        changed_at=timestamp(row.changed_at),
    )


def service_of(body: wire.PutService) -> ServiceSpec:
    """A service as it is asked for."""
    return ServiceSpec(
        upstream=body.upstream,
        header=body.header,
        value=body.value,
        strip_headers=body.strip_headers,
        strip_query=body.strip_query,
        env=body.env,
        description=body.description,
    )


def service_view(service: Service) -> wire.Service:
    """A service as it is shown."""
    return wire.Service(
        name=service.name,
        description=service.description,
        upstream=service.upstream,
        header=service.header,
        value=service.value,
        strip_headers=service.strip_headers,
        strip_query=service.strip_query,
        env=dict(service.env),
        builtin=service.is_builtin,
    )
