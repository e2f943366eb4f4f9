"""What is said about keys, in the order of the fields."""

from __future__ import annotations

from msgspec import Struct


class KeyOrder(Struct, frozen=True, kw_only=True, rename="camel"):
    """A key to be made."""

    name: str | None = None
    tenant_id: str | None = None
    ttl_ms: float | None = None


class KeyMade(Struct, frozen=True, kw_only=True, rename="camel"):
    """A new key; its text is told here only."""

    id: str
    key: str
    name: str
    key_prefix: str
    tenant_id: str
    expires_at: str | None


class KeyShown(Struct, frozen=True, kw_only=True, rename="camel"):
    """A key, without its text."""

    id: str
    name: str
    key_prefix: str
    tenant_id: str
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked: bool


class KeysShown(Struct, frozen=True):
    """All keys, in the order in which they were made."""

    keys: list[KeyShown]


class KeyQuery(Struct, frozen=True, kw_only=True, rename="camel"):
    """Whose keys."""

    tenant_id: str | None = None


class KeyRevoked(Struct, frozen=True):
    """It works no more."""

    ok: bool
    id: str


class LoggedIn(Struct, frozen=True, kw_only=True, rename="camel"):
    """A new key for somebody who has a better one."""

    token: str
    expires_at: str | None
    key_id: str
