"""Which registries may be asked and which addresses dialled. Pure.

Closed ranges are all that is not the public internet: a pull must not become a way to reach the operator's own network
or a cloud's metadata service. A host is exempt only where the operator listed it by its name.
"""

from __future__ import annotations

from cove.model.closed import is_special
from cove.model.errors import Forbidden


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
        return not is_special(address) or self.is_named(host, port)

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
