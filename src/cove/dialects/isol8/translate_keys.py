"""Keys in the words of isol8. Pure."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from typing import Final

from cove.dialects.isol8 import wire_auth
from cove.dialects.isol8.times import optional_timestamp, timestamp
from cove.edge.errors import Malformed, Where
from cove.model.access import Key, Principal, Scope
from cove.model.errors import Forbidden, NotFound

TENANT: Final = "default"
TTL_MS: Final = 86_400_000.0
WORK: Final = (Scope.READ, Scope.CREATE, Scope.EXEC, Scope.FILES, Scope.DESTROY)
"""What a key that is not the master key may do."""

_PREFIX: Final = 10
_FORM: Final = "isol8_"


def must_be_master(who: Principal) -> Principal:
    """Raises: Forbidden."""
    if not who.can(Scope.KEYS):
        raise Forbidden("Master key required for this operation")
    return who


def work_scopes(who: Principal) -> tuple[Scope, ...]:
    """What a new key gets of its maker's. Raises: Forbidden, for none would stand for all."""
    scopes = tuple(one for one in WORK if who.can(one))
    if not scopes:
        raise Forbidden("this key has nothing to give to another")
    return scopes


def name_of(order: wire_auth.KeyOrder) -> str:
    """Raises: Malformed."""
    if not order.name:
        raise Malformed("name is required", where=Where.BODY, field="name")
    return order.name


def lifetime_s(order: wire_auth.KeyOrder) -> float:
    """How long a new key is to work."""
    return (TTL_MS if order.ttl_ms is None else order.ttl_ms) / 1000


def key_uuid(key_id: str) -> str:
    """A key's id as a UUID of version 4 that begins with it."""
    digest = hashlib.sha256(f"isol8 key {key_id}".encode()).digest()
    return str(uuid.UUID(bytes=(bytes.fromhex(key_id) + digest)[:16], version=4))


def key_made(key: Key, text: str) -> wire_auth.KeyMade:
    """The answer that shows a new key."""
    return wire_auth.KeyMade(
        id=key_uuid(key.id),
        key=text,
        name=key.name,
        key_prefix=_prefix(text),
        tenant_id=key.label or TENANT,
        expires_at=optional_timestamp(key.expires_at),
    )


def logged_in(key: Key, text: str) -> wire_auth.LoggedIn:
    """The same, for a login."""
    return wire_auth.LoggedIn(token=text, expires_at=optional_timestamp(key.expires_at), key_id=key_uuid(key.id))


def keys_shown(keys: Iterable[Key], tenant: str | None) -> wire_auth.KeysShown:
    """A list of keys; `tenant`: only of this one."""
    return wire_auth.KeysShown([_shown(key) for key in keys if not tenant or (key.label or TENANT) == tenant])


def found_key(keys: Iterable[Key], key_uuid_text: str) -> Key:
    """The key of that id. Raises: NotFound."""
    for key in keys:
        if key_uuid(key.id) == key_uuid_text:
            return key
    raise NotFound("Key not found")


def _shown(key: Key) -> wire_auth.KeyShown:
    return wire_auth.KeyShown(
        id=key_uuid(key.id),
        name=key.name,
        key_prefix=_prefix(_FORM + key.id),
        tenant_id=key.label or TENANT,
        created_at=timestamp(key.created_at),
        expires_at=optional_timestamp(key.expires_at),
        last_used_at=optional_timestamp(key.last_used_at),
        revoked=key.revoked_at is not None,
    )


def _prefix(text: str) -> str:
    return f"{text[:_PREFIX]}..."
