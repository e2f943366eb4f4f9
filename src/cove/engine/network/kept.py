"""What the router still has of sandboxes when a server starts: read from the kernel once. Calls for a thread there."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from cove.engine.network import nfnetlink
from cove.engine.network.baseline import APPLIED, BOUND, CURRENT, LEARNED, LINKS, SERVED, TABLE
from cove.engine.network.boxrules import index_of, parse_bound
from cove.engine.network.nfnetlink import NFTABLES, Found


class Kept(Struct, frozen=True, kw_only=True):
    """By address as bytes, where nothing else is said. `learned`: address, mark, what it gives, seconds left."""

    chains: frozenset[int]
    """Indices."""
    bound: Mapping[int, str]
    """Addresses by index."""
    links: tuple[bytes, ...]
    """Whole keys."""
    served: tuple[bytes, ...]
    """The same."""
    epochs: Mapping[bytes, int]
    applied: Mapping[bytes, tuple[int, bytes]]
    """Generation and fingerprint. An address that has two has none: it is applied anew."""
    learned: Mapping[bytes, Sequence[tuple[int, int, int, float]]]


def read_kept() -> Kept:
    """Read it in the namespace of the calling thread. Raises: OSError, ValueError."""
    with nfnetlink.connect() as channel:
        chains = (
            nfnetlink.chain_of(body, TABLE) for body in nfnetlink.dump(channel, NFTABLES, nfnetlink.list_chains(TABLE))
        )
        indices = (index_of(chain) for chain in chains if chain is not None)
        learned: dict[bytes, list[tuple[int, int, int, float]]] = {}
        for one in _elements(channel, LEARNED):
            known = (_number(one.key[4:8]), _native(one.key[8:]), _native(one.value), one.left_s or 0.0)
            learned.setdefault(one.key[:4], []).append(known)
        applied = [(one.key[:4], (_native(one.key[4:8]), one.key[8:])) for one in _elements(channel, APPLIED)]
        times = Counter(key for key, _ in applied)
        return Kept(
            chains=frozenset(index for index in indices if index is not None),
            bound=dict(parse_bound(one.key) for one in _elements(channel, BOUND)),
            links=tuple(one.key for one in _elements(channel, LINKS)),
            served=tuple(one.key for one in _elements(channel, SERVED)),
            epochs={one.key[:4]: _native(one.key[4:]) for one in _elements(channel, CURRENT)},
            applied={key: one for key, one in applied if times[key] == 1},
            learned=learned,
        )


def _elements(channel: socket.socket, name: str) -> Iterator[Found]:
    for body in nfnetlink.dump(channel, NFTABLES, nfnetlink.list_elements(TABLE, name)):
        yield from nfnetlink.elements_of(body)


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _native(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
