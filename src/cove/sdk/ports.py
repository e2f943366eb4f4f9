"""Ports of a sandbox: the requests about them, as data, and what the server tells of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cove.sdk.transport import Call, Retry
from cove.sdk.wire import box_path, checked, items_of, nothing


@dataclass(frozen=True, slots=True)
class Port:
    """How a port of a sandbox is reached.

    Attributes:
        access: `key`, `token` or `public`: what a request to it must bring.
        url: its address under a host name of its own.
        path: its address below the API, from the server's root.
        listening: whether something listens there now; None: not looked, the sandbox is paused.
        address: what it listens on inside.
        host_port: a port of the server's machine that leads here.
        token: only in the answer of the `expose` that made it.
    """

    port: int
    access: str
    url: str
    path: str
    listening: bool | None
    address: str | None
    host_port: int | None
    token: str | None = field(repr=False)
    raw: dict[str, Any] = field(repr=False)

    @property
    def link(self) -> str:
        """The address to give to somebody: with the token, if this is the answer that has it."""
        return f"{self.url}?cove_token={self.token}" if self.token else self.url


def _port(wire: Any) -> Port:
    found = checked(wire)
    return Port(
        port=int(found.get("port") or 0),
        access=str(found.get("access") or "key"),
        url=str(found.get("url") or ""),
        path=str(found.get("path") or ""),
        listening=found.get("listening"),
        address=found.get("address"),
        host_port=found.get("host_port"),
        token=found.get("token"),
        raw=found,
    )


def ports(ref: str) -> Call[list[Port]]:
    """GET …/ports."""
    return Call("GET", box_path(ref, "/ports"), items_of("ports", _port), retry=Retry.LOST)


def port(ref: str, number: int) -> Call[Port]:
    """GET …/ports/{port}."""
    return Call("GET", box_path(ref, f"/ports/{int(number)}"), _port, retry=Retry.LOST)


def expose(ref: str, number: int, access: str | None, *, host_port: int | bool | None = None) -> Call[Port]:
    """PUT …/ports/{port}. What is None stays as it is. Not repeated for a token: each one makes another."""
    retry = Retry.NEVER if access == "token" else Retry.LOST
    body = {"access": access, "host_port": host_port}
    given = {name: value for name, value in body.items() if value is not None}
    return Call("PUT", box_path(ref, f"/ports/{int(number)}"), _port, json=given, retry=retry)


def unexpose(ref: str, number: int) -> Call[None]:
    """DELETE …/ports/{port}. Idempotent."""
    return Call("DELETE", box_path(ref, f"/ports/{int(number)}"), nothing, retry=Retry.LOST)
