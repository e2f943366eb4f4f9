"""Names and numbers of the sandboxes' network: which box has which interface, address and hardware address. Pure.

One router per server. Box number `index` has the address `subnet + index`, and its interface is `sv<index>` at the
router's end, `eth0` at its own. The router is 169.254.1.1 to every box: a point-to-point link each, no shared segment.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.model.closed import Opening

ROUTER_ADDRESS: Final = "169.254.1.1"
"""What every sandbox has as its gateway, its resolver and the host of its proxies."""

UPLINK: Final = "uplink"
"""The router's way out; its other end, outside, is named after the server's instance."""

INSIDE: Final = "eth0"
OUTSIDE_PREFIX: Final = "cv-"
"""All interfaces that Cove ever has outside start so."""

TRANSIT: Final = IPv4Network("169.254.64.0/18")
"""Between routers and the outside: four addresses per server of this machine, claimed."""

DEFAULT_RANGE: Final = IPv4Network("10.213.0.0/16")
_FIRST_LINK: Final = 1000
_FIRST_INDEX: Final = 2


class NetworkConfig(Struct, frozen=True, kw_only=True):
    """Where the network of a server is.

    `subnet`: of the boxes' addresses. `outside`: the namespace that packets leave by, None: the server's own.
    `resolvers`: the name servers to ask, none: those of the outside. `opened`: what the operator opened of what is
    closed. `is_off`: the operator wants none of it.
    """

    instance: str
    run_dir: Path
    subnet: IPv4Network = DEFAULT_RANGE
    outside: Path | None = None
    resolvers: tuple[str, ...] = ()
    opened: tuple[Opening, ...] = ()
    is_off: bool = False

    @property
    def router_file(self) -> Path:
        """Where the router's namespace is bound."""
        return self.run_dir / "router"

    @property
    def outside_note(self) -> Path:
        """Where is written which namespace the uplink leads to, for who cleans up without these settings."""
        return self.run_dir / "outside"

    @property
    def outside_link(self) -> str:
        """The uplink's name outside: 15 characters, all that a name may have."""
        return f"{OUTSIDE_PREFIX}{self.instance[:12]}"

    def address(self, index: int) -> str:
        """Of the box with that number."""
        return str(self.subnet[index])

    def index_of(self, address: str) -> int | None:
        """The number of the box with that address; None for an address that no box can have."""
        try:
            index = int(IPv4Address(address)) - int(self.subnet.network_address)
        except ValueError:
            return None
        return index if index in self.indexes else None

    @property
    def indexes(self) -> range:
        """The numbers that boxes can have."""
        return range(_FIRST_INDEX, self.subnet.num_addresses - 1)


def link_name(index: int) -> str:
    """The router's interface of a box."""
    return f"sv{index}"


def index_of_link(name: str) -> int | None:
    """The box's number, from the router's interface; None for any other interface."""
    found = re.fullmatch(r"sv(\d{1,9})", name)
    return int(found[1]) if found else None


def link_index(index: int) -> int:
    """The kernel's number for both ends of a box's pair: chosen, so that nobody has to ask for it."""
    return _FIRST_LINK + index


def router_mac(index: int) -> bytes:
    """The hardware address at the router's end."""
    return bytes((0x02, 0xC0)) + index.to_bytes(4, "big")


def box_mac(index: int) -> bytes:
    """The hardware address inside."""
    return bytes((0x02, 0xC1)) + index.to_bytes(4, "big")


def transit(number: int) -> tuple[str, str]:
    """The addresses outside and at the router for claim `number`."""
    return str(TRANSIT[4 * number + 1]), str(TRANSIT[4 * number + 2])


TRANSITS: Final = TRANSIT.num_addresses // 4
