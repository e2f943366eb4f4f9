"""Ports in the native wire format."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from cove.dialects.native.wire import Request

Access = Literal["key", "token", "public"]


class Expose(Request, frozen=True):
    """Who may reach the port: a key of the project, whoever has the port's token, anybody.

    `host_port`: a port of the host that leads there, for raw TCP: this one, `true` for any, `false` for none.
    What is not given stays as it is; a body without anything means `key`.
    """

    access: Access | UnsetType = UNSET
    host_port: int | bool | UnsetType = UNSET


class Port(Struct, frozen=True, kw_only=True):
    """A port of a sandbox.

    `url` is its own host name, `path` its address below this API. `listening` null: not looked, the sandbox is paused.
    `token` only in the answer that made it.
    """

    port: int
    access: Access
    host_port: int | None
    url: str
    path: str
    listening: bool | None
    address: str | None
    created_at: str | None
    token: str | UnsetType = UNSET


class PortList(Struct, frozen=True):
    """The ports that are exposed or listened on, by number."""

    ports: tuple[Port, ...]
