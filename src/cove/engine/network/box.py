"""What the packet filter knows of one sandbox beside the kernel: its policy, and what its names brought. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from msgspec import Struct

from cove.engine.network.boxrules import GENERATIONS, mark_value
from cove.engine.network.brought import Brought
from cove.engine.network.flatten import Flat, flatten
from cove.model.network import NO_NETWORK, NetworkPolicy
from cove.model.policy import matches_name


class Held(Struct, frozen=True):
    """An element of `learned` in the kernel: what it gives, and when it ends on the monotonic clock."""

    mark: int
    until: float


class Box:
    """One sandbox. `epoch` and `generation`: see `baseline.py`, `boxrules.py`."""

    def __init__(self, index: int, address: str) -> None:
        self.index = index
        self.address = address
        self.policy: NetworkPolicy = NO_NETWORK
        self.flat: Flat = flatten(NO_NETWORK)
        self.before: Flat = self.flat
        """The last generation's: packets are still on their way with its marks."""
        self.epoch = 1 + secrets.randbelow(2**32 - 1)
        self.generation = secrets.randbelow(GENERATIONS)
        self.fingerprint = b""
        """Of the policy that the kernel has; empty: it has none."""
        self.is_sure = True
        """False: a change failed or was given up, and the kernel may have done it all the same."""
        self.links: frozenset[str] = frozenset()
        self.served: frozenset[int] = frozenset()
        self.brought = Brought()
        self.held: dict[tuple[int, int], Held] = {}
        """By address and the mark that is looked up."""

    def opened(self, flat: Flat, generation: int, address: int, now: float) -> Iterator[tuple[tuple[int, int], Held]]:
        """The elements that the names which brought `address` make under a policy."""
        names = self.brought.valid(address, now)
        for place in flat.at_address(address) if names else ():
            for target, mark in flat.outcomes[place].names:
                until = max((end for name, end in names.items() if matches_name(target, name)), default=0.0)
                if until:
                    final = mark_value(flat, flat.place(mark), generation)
                    yield (address, mark_value(flat, place, generation)), Held(final, until)
                    break
