"""Which registries may be asked and which addresses dialled. Pure.

Closed ranges are all that is not the public internet: a pull must not become a way to reach the operator's own network
or a cloud's metadata service. A host is exempt only where the operator listed it by its name.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from cove.model.errors import Forbidden

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_CLOSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3", "168.63.129.16/32", "::/8", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23",
        "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/9", "ff00::/8",
    )
)  # fmt: skip
"""IANA's special-purpose registries (RFC 6890 and later), multicast and reserved space, and one cloud's metadata
address that lies in public space. Ranges that carry an IPv4 address (mapped, 6to4, NAT64, Teredo) are closed whole."""


def is_closed(text: str) -> bool:
    """Whether an address is outside the public internet. What is no address counts as closed."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return True
    return any(address.version == net.version and address in net for net in _CLOSED)


class RegistryRules:
    """The operator's lists. Entries are `*`, `*.example.com`, `host` or `host:port`; case does not matter."""

    def __init__(self, registries: tuple[str, ...], insecure: tuple[str, ...]) -> None:
        self._registries = tuple(entry.lower() for entry in registries)
        self._insecure = tuple(entry.lower() for entry in insecure)

    def check(self, registry: str) -> None:
        """Raises: Forbidden (field `image`) when images may not come from `registry` (`host` or `host:port`)."""
        host, port = split_host(registry, 443)
        if not any(_matches(entry, host, port) for entry in (*self._registries, *self._insecure)):
            raise Forbidden(f"the operator of this server does not allow the registry {registry}", field="image")

    def is_plain(self, host: str, port: int) -> bool:
        """Whether this host may be spoken to in clear text."""
        return any(_matches(entry, host, port) for entry in self._insecure)

    def may_dial(self, host: str, port: int, address: str) -> bool:
        """Whether the connection that was asked for as `host` may go to `address`."""
        return not is_closed(address) or self.is_named(host, port)

    def is_named(self, host: str, port: int) -> bool:
        """Whether the operator listed this host by its name, so that its address may be a closed one."""
        named = (entry for entry in (*self._registries, *self._insecure) if not entry.startswith("*"))
        return any(_matches(entry, host, port) for entry in named)


def split_host(text: str, default_port: int) -> tuple[str, int]:
    """`host`, `host:port` or `[v6]:port` in its two parts; the host in lower case, without brackets."""
    host, has_port, port = text.lower().rpartition(":")
    if not has_port or text.endswith("]") or not port.isdigit():
        host, port = text.lower(), str(default_port)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    if entry.startswith("*."):
        return host.endswith(entry[1:])
    wanted, wanted_port = split_host(entry, 0)
    return wanted == host and wanted_port in {0, port}
