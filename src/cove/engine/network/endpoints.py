"""Who is on the network. Values of the loop: changed and read on it only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.engine.network.port import Endpoint
from cove.engine.network.topology import NetworkConfig
from cove.model.errors import CapacityExceeded
from cove.model.network import NetworkPolicy

_RETRY_S: Final = 30


class Process(Struct, frozen=True):
    """The init of a box, which names its namespace for as long as it lives."""

    pid: int
    start: int


class Directory:
    """The boxes with an interface, by id and by address, and the numbers that are free.

    The number that was unused longest comes first, so that an address is not another sandbox's at once.
    """

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self._by_box: dict[str, Endpoint] = {}
        self._by_address: dict[str, Endpoint] = {}
        self._processes: dict[str, Process] = {}
        self._fresh = iter(config.indexes)
        self._returned: dict[int, None] = {}
        """In the order in which they were given back."""
        self._taken: set[int] = set()

    def by_address(self, address: str) -> Endpoint | None:
        """The box with that address."""
        return self._by_address.get(address)

    def by_box(self, box: str) -> Endpoint | None:
        """The box with that id."""
        return self._by_box.get(box)

    def process(self, box: str) -> Process | None:
        """The init of the box with that id."""
        return self._processes.get(box)

    def all(self) -> tuple[Endpoint, ...]:
        """Everybody."""
        return tuple(self._by_box.values())

    @property
    def taken(self) -> frozenset[int]:
        """The numbers that are not free: of boxes, and of interfaces that are not gone yet."""
        return frozenset(self._taken)

    def take(self) -> int:
        """A free number. Raises: CapacityExceeded."""
        for index in self._fresh:
            # One from before a restart may be given back before its turn comes here.
            if index not in self._taken and index not in self._returned:
                self._taken.add(index)
                return index
        if not self._returned:
            raise CapacityExceeded("all addresses of the sandboxes' network are in use", retry_after_s=_RETRY_S)
        index = next(iter(self._returned))
        del self._returned[index]
        self._taken.add(index)
        return index

    def mark(self, index: int) -> None:
        """Note that a number is in use, from before this server."""
        self._taken.add(index)
        self._returned.pop(index, None)

    def give_back(self, index: int) -> None:
        """Free a number. The caller has seen that no interface of it is left."""
        if index in self._taken:
            self._taken.discard(index)
            self._returned[index] = None

    def add(self, box: str, index: int, process: Process) -> Endpoint:
        """A box that has the interface of number `index`."""
        made = Endpoint(box=box, address=self._config.address(index), index=index)
        self._processes[box] = process
        self._put(made)
        return made

    def change(self, endpoint: Endpoint, policy: NetworkPolicy, links: Mapping[str, str]) -> Endpoint:
        """Another policy and other links. One that has left meanwhile stays away."""
        changed = replace(endpoint, policy=policy, links=dict(links))
        if self._by_box.get(endpoint.box) is not None:
            self._put(changed)
        return changed

    def remove(self, box: str) -> Endpoint | None:
        """From now on nobody has its id and address; its number stays taken."""
        self._processes.pop(box, None)
        gone = self._by_box.pop(box, None)
        if gone is not None:
            self._by_address.pop(gone.address, None)
        return gone

    def _put(self, endpoint: Endpoint) -> None:
        self._by_box[endpoint.box] = endpoint
        self._by_address[endpoint.address] = endpoint
