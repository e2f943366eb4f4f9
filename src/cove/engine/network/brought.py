"""Which names brought which addresses to a sandbox: told by the resolver, kept for rules, flows and records. Pure.

Bounded: the addresses asked for longest ago are forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

ADDRESSES: Final = 1024
NAMES: Final = 8
"""Of one address; a name more takes the place of the oldest."""


class Brought:
    """One sandbox's. Times are of a monotonic clock."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[int, OrderedDict[str, float]] = OrderedDict()

    def add(self, address: int, name: str, until: float) -> list[int]:
        """Note that `name` brought `address`, valid `until`. Returns addresses that were forgotten for it."""
        names = self._addresses.setdefault(address, OrderedDict())
        self._addresses.move_to_end(address)
        names[name] = max(until, names.get(name, until))
        names.move_to_end(name)
        if len(names) > NAMES:
            names.popitem(last=False)
        gone: list[int] = []
        while len(self._addresses) > ADDRESSES:
            gone.append(self._addresses.popitem(last=False)[0])
        return gone

    def names(self, address: int) -> tuple[str, ...]:
        """Names that brought it, the latest first, also those whose time is over."""
        return tuple(reversed(self._addresses.get(address, {})))

    def valid(self, address: int, now: float) -> dict[str, float]:
        """The names that brought it and hold, with their ends."""
        names = self._addresses.get(address)
        return {} if names is None else {name: until for name, until in names.items() if until > now}

    def addresses(self) -> tuple[int, ...]:
        """All that are known."""
        return tuple(self._addresses)
