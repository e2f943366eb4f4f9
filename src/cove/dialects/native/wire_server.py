"""What goes over the wire about keys, projects and the server itself: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, field

from cove.dialects.native.wire import DriverName, Isolation, Label, Request, ScopeName, Seconds
from cove.dialects.native.wire_images import Image
from cove.dialects.native.wire_quotas import Quota


class MintKey(Request, frozen=True):
    """A key to make. No scopes: those of the caller."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    project: Label | None = None
    scopes: tuple[ScopeName, ...] = ()
    timeout_s: Seconds | None = None
    dialect: Annotated[str, Meta(max_length=63)] | None = None
    quota: Quota | None = None


class NewProject(Request, frozen=True):
    """A project to make. `drivers`: what its sandboxes may use, empty: any; `default_driver` null: the server's."""

    id: Label
    default_driver: DriverName | None = None
    drivers: tuple[DriverName, ...] = ()


class ProjectChange(Request, frozen=True):
    """What to change; what is not named stays. It holds for sandboxes made from now on."""

    default_driver: DriverName | UnsetType | None = UNSET
    drivers: tuple[DriverName, ...] | UnsetType = UNSET


class Shutdown(Request, frozen=True):
    """`all`: end every sandbox first. Else they go on, for the next start to take over."""

    destroy_all: bool = field(default=False, name="all")


class Key(Struct, frozen=True, kw_only=True):
    """An API key as the server knows it."""

    id: str
    name: str
    project: str
    dialect: str | None
    scopes: tuple[str, ...]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class NewKey(Key, frozen=True):
    """The only answer that has the key itself."""

    key: str


class KeyList(Struct, frozen=True):
    """Keys of the caller's project, of all for an admin."""

    keys: tuple[Key, ...]


class Project(Struct, frozen=True):
    """A tenant."""

    id: str
    created_at: str
    default_driver: str | None
    drivers: tuple[str, ...]


class ProjectList(Struct, frozen=True):
    """All projects."""

    projects: tuple[Project, ...]


class Driver(Struct, frozen=True):
    """An isolation driver; `missing` says what keeps it from being usable."""

    name: str
    usable: bool
    missing: tuple[str, ...]


class Capacity(Struct, frozen=True, kw_only=True):
    """Room: sandboxes at most and now, memory free, ready boxes per image."""

    sandboxes: int
    sandboxes_now: int
    memory_free_mib: int
    pool: dict[str, int]


class Ssh(Struct, frozen=True, kw_only=True):
    """Where it takes SSH connections, and the key it proves itself with; `missing` says why it takes none."""

    listening: bool
    host: str
    port: int
    host_key: str
    missing: str = ""


class Server(Struct, frozen=True, kw_only=True):
    """What this server is and has."""

    version: str
    drivers: tuple[Driver, ...]
    default_driver: str
    images: tuple[Image, ...]
    capacity: Capacity
    isolation: Isolation | None
    public_domain: str
    ssh: Ssh


class Health(Struct, frozen=True):
    """It answers."""

    status: str
    version: str


class ShutdownStarted(Struct, frozen=True):
    """Sandboxes that go on without the server."""

    sandboxes: int
