"""What a create of isorun asks of credentials. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from cove.dialects.isorun import wire
from cove.edge.errors import Malformed, Where
from cove.model.credentials import CredentialWish, EndpointRule, Secret

PLACEHOLDER: Final = "isorun-proxy-managed"
"""What programs find where they look for a key; its services put their own prefix before it."""

ALIASES: Final = MappingProxyType(
    {
        "OPENAI_API_KEY": "openai",
        "ANTHROPIC_API_KEY": "anthropic",
        "GOOGLE_API_KEY": "google",
        "GITHUB_TOKEN": "github",
        "HUGGINGFACE_TOKEN": "huggingface",
    },
)
"""The older names of services: the variables that programs read."""


def wishes_of(body: wire.Create) -> dict[str, CredentialWish]:
    """Keys by service, from both fields. Raises: Malformed, for a service that is named twice."""
    found: dict[str, CredentialWish] = {}
    plain = [(name, CredentialWish(key=Secret(key))) for name, key in (body.credentials or {}).items()]
    for name, wish in (*plain, *((name, _wish(one)) for name, one in (body.credentials_v2 or {}).items())):
        service = ALIASES.get(name, name)
        if service in found:
            raise Malformed(f"credentials: {service[:64]} is given twice", where=Where.BODY, field="credentials")
        found[service] = wish
    return found


def _wish(one: wire.Credential) -> CredentialWish:
    rules = (EndpointRule(methods=rule.methods or (), paths=rule.paths or ()) for rule in one.endpoints or ())
    return CredentialWish(key=Secret(one.key), endpoints=tuple(rules))
