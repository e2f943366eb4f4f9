"""What the rest of Cove sees of the sandboxes' network, as protocols. Implemented beside; nothing here acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct, field

from cove.model.closed import ClosedRanges
from cove.model.network import NO_NETWORK, NetworkPolicy, NetworkUse, Refusal, Visit


class Endpoint(Struct, frozen=True, kw_only=True):
    """A box on the network: its core id, its IPv4 address inside, what holds for it now.

    `links`: addresses that it may reach of other sandboxes, by their names.
    """

    box: str
    address: str
    index: int
    policy: NetworkPolicy = NO_NETWORK
    links: Mapping[str, str] = field(default_factory=dict[str, str])


class Endpoints(Protocol):
    """Who is on the network: how the resolver, the proxies and the broker know who speaks to them.

    A source address is proof: packets that carry another box's are dropped before they arrive.
    """

    def by_address(self, address: str) -> Endpoint | None:
        """The box with that address."""
        ...

    def by_box(self, box: str) -> Endpoint | None:
        """The box with that id."""
        ...


class Network(Protocol):
    """The sandboxes' network of this server."""

    on_refusal: Callable[[Refusal], None]
    """Set once by the core; called on the loop, at most some hundred times a second: repeats are counted together."""

    on_visit: Callable[[Visit], None]
    """Set once by the core; called on the loop as often as a sandbox whose policy says `record` asks for something."""

    @property
    def endpoints(self) -> Endpoints:
        """Who is on it."""
        ...

    @property
    def missing(self) -> tuple[str, ...]:
        """Why this machine cannot connect sandboxes, one sentence each; empty: it can."""
        ...

    @property
    def closed(self) -> ClosedRanges:
        """What is closed on this server now, its own addresses included."""
        ...

    async def look_up(self, box: str, name: str) -> tuple[str, ...]:
        """The IPv4 addresses that a canonical name has now, to explain a policy: nothing is opened or recorded.

        Raises: CoveError (nobody answered in time, or no resolver is there).
        """
        ...

    async def join(self, box: str, init_pid: int) -> str:
        """Give a box its interface, with everything closed; returns its address. Again: nothing.

        Raises: Unsupported (with `missing`), EngineFailure.
        """
        ...

    async def apply(self, box: str, policy: NetworkPolicy, links: Mapping[str, str]) -> None:
        """Make `policy` hold for a joined box, in one step; flows that it no longer allows are cut.

        Before it returns, nothing that the policy refuses can pass. Raises: EngineFailure.
        """
        ...

    async def leave(self, box: str) -> None:
        """Take its interface, its rules and its address away. Idempotent."""
        ...

    async def use(self, box: str) -> NetworkUse:
        """Bytes so far; zeros for a box that never joined. Never raises."""
        ...
