"""Who may do what: keys, scopes, projects, principals. Frozen values, no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

from cove.model.network import NetworkRequest

DEFAULT_PROJECT: Final = "default"


class Scope(StrEnum):
    """What a key may do. `admin` includes all others and crosses projects."""

    READ = "read"
    CREATE = "create"
    EXEC = "exec"
    FILES = "files"
    DESTROY = "destroy"
    KEYS = "keys"
    ADMIN = "admin"


FULL: Final = frozenset(Scope)


class Principal(Struct, frozen=True, kw_only=True):
    """An authenticated caller. `key_id` is `local` for the root-owned unix socket.

    `dialect` None: any; `expires_at` (Unix seconds) None: never. A key that this caller makes gets no more than that.
    """

    key_id: str
    name: str
    project: str
    scopes: frozenset[Scope]
    dialect: str | None = None
    expires_at: float | None = None

    def can(self, scope: Scope) -> bool:
        """Whether this caller holds `scope`, directly or through `admin`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class Key(Struct, frozen=True, kw_only=True):
    """A key as the store knows it: never the key itself, only its SHA-256 (`digest`, 64 hex digits).

    `label` is a word of its maker's, such as who it is for. It decides nothing.
    """

    id: str
    name: str
    project: str
    dialect: str | None
    scopes: frozenset[Scope]
    digest: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    label: str = ""


class Project(Struct, frozen=True, kw_only=True):
    """A tenant. Every object belongs to one.

    Its sandboxes may use `drivers` only (empty: any) and get `default_driver` when they name none (None: the server's),
    and `network` when they ask for none (None: no network).
    """

    id: str
    created_at: float
    default_driver: str | None = None
    drivers: tuple[str, ...] = ()
    network: NetworkRequest | None = None
