"""How the settings of the sandboxes' network are read. Pure; each raises ValueError with what it must be."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from cove.engine.network.upstream_dns import NameServer
from cove.model.closed import Opening, parse_opening

_SHORTEST: Final = 8
_LONGEST: Final = 28


def network_range(text: str) -> ipaddress.IPv4Network:
    """The range of sandboxes' addresses. Raises: ValueError."""
    network = ipaddress.IPv4Network(text)
    is_usable = network.is_private and not (network.is_loopback or network.is_link_local or network.is_unspecified)
    if not is_usable or not _SHORTEST <= network.prefixlen <= _LONGEST:
        raise ValueError(f"a private IPv4 range with a prefix of {_SHORTEST} to {_LONGEST} bits")
    return network


def openings(words: Iterable[str]) -> tuple[Opening, ...]:
    """What the operator opened of what is closed. Raises: ValueError."""
    return tuple(parse_opening(word) for word in words)


def resolvers(words: Iterable[str]) -> tuple[str, ...]:
    """Name servers, as they were written. Raises: ValueError."""
    found = tuple(words)
    for word in found:
        NameServer.parse(word)
    return found
