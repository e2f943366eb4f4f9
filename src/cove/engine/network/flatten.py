"""Steps as pieces that do not overlap: what one lookup in a map of the kernel can decide. Pure.

Why pieces and not a kernel rule per step: the kernel checks all rules of a table again whenever one of them changes, so
500 sandboxes with 30 rules each would cost every change 8 ms (measured). Maps of values it does not check.

Steps are cut at the ports where one begins or ends (slabs), each slab at addresses; equal neighbours are joined. What
has the outcome that covers most is left out: it is the policy's default mark. A step for a name is no piece of its own:
it makes the outcome of the pieces behind it depend on names (`Outcome.names`). Their mark is looked up again, with the
addresses, among what the resolver has learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

from msgspec import Struct

from cove.engine.network.steps import Mark, Packet, Step, steps_of
from cove.model.errors import BadRequest
from cove.model.network import NetworkPolicy, PortRange, Protocol

PIECES: Final = 2048
"""Most pieces of one policy: 2048 take the kernel 20 ms to put in place."""

LAST_ADDRESS: Final = 2**32 - 1
LAST_PORT: Final = 65535
_WORK: Final = 4_000_000
"""Most comparisons for one policy: half a second."""


class Outcome(Struct, frozen=True):
    """What is decided: by the first of `names` (target, mark) that brought the address, else `mark`."""

    mark: Mark
    names: tuple[tuple[str, Mark], ...] = ()


class Piece(Struct, frozen=True, kw_only=True):
    """Addresses, protocols and ports (both ends included) with one outcome. ICMP is in pieces with all ports only."""

    first: int
    last: int
    protocols: tuple[Protocol, ...]
    ports: PortRange
    outcome: int
    """Its place in `Flat.outcomes`."""


class Flat(Struct, frozen=True, kw_only=True):
    """A policy without order. What is in no piece has the outcome `default`."""

    outcomes: tuple[Outcome, ...]
    pieces: tuple[Piece, ...]
    default: int

    def at(self, packet: Packet) -> int:
        """The place of the outcome for a packet."""
        return next((piece.outcome for piece in self.pieces if _covers(piece, packet)), self.default)

    def at_address(self, address: int) -> set[int]:
        """The places of all outcomes that some packet to this address has."""
        return {piece.outcome for piece in self.pieces if piece.first <= address <= piece.last} | {self.default}

    def place(self, mark: Mark) -> int:
        """The place of an outcome that depends on no name."""
        return self.outcomes.index(Outcome(mark))


class _Slab(Struct, frozen=True):
    """A range of ports of one protocol: addresses, from which on which outcome holds. The first starts at 0."""

    protocol: Protocol
    ports: PortRange
    runs: tuple[tuple[int, Outcome], ...]


@lru_cache(maxsize=256)
def flatten(policy: NetworkPolicy) -> Flat:
    """The pieces of a policy. Raises: BadRequest (field `network`) where it is too intricate."""
    steps = steps_of(policy)
    slabs = [slab for protocol in Protocol for slab in _slabs(protocol, steps)]
    covers: dict[Outcome, int] = {}
    for slab in slabs:
        width = slab.ports.last - slab.ports.first + 1
        for first, last, outcome in _spans(slab.runs):
            covers[outcome] = covers.get(outcome, 0) + (last - first + 1) * width
    default = max(covers, key=lambda outcome: covers[outcome])
    known = {outcome: place for place, outcome in enumerate(covers)}
    for outcome in tuple(known):
        for _, mark in outcome.names:
            known.setdefault(Outcome(mark), len(known))
    pieces = tuple(
        Piece(first=first, last=last, protocols=protocols, ports=slab.ports, outcome=known[outcome])
        for protocols, slab in _joined(slabs)
        for first, last, outcome in _spans(slab.runs)
        if outcome != default
    )
    if len(pieces) > PIECES:
        raise _too_intricate()
    return Flat(outcomes=tuple(known), pieces=pieces, default=known[default])


def _slabs(protocol: Protocol, steps: Sequence[Step]) -> Iterator[_Slab]:
    """In the order of their ports; neighbours differ."""
    mine = [step for step in steps if step.protocol in {None, protocol}]
    if protocol is Protocol.ICMP:
        alone = tuple(step for step in mine if step.ports is None)
        yield _Slab(protocol, PortRange(0, LAST_PORT), _runs(alone))
        return
    cuts = {0, LAST_PORT + 1}
    for step in mine:
        if step.ports is not None:
            cuts |= {step.ports.first, step.ports.last + 1}
    held: _Slab | None = None
    spent = 0
    for first, after in pairwise(sorted(cuts)):
        active = tuple(step for step in mine if step.ports is None or step.ports.first <= first <= step.ports.last)
        spent += len(mine) + len(active) ** 2
        if spent > _WORK:
            raise _too_intricate()
        runs = _runs(active)
        if held is not None and held.runs == runs:
            held = _Slab(protocol, PortRange(held.ports.first, after - 1), runs)
            continue
        if held is not None:
            yield held
        held = _Slab(protocol, PortRange(first, after - 1), runs)
    if held is not None:
        yield held


def _runs(steps: Sequence[Step]) -> tuple[tuple[int, Outcome], ...]:
    """Cut the addresses where a step begins or ends; each part's outcome is that of its first address."""
    cuts = {0}
    for step in steps:
        if step.network is not None:
            first, last = _ends(step.network)
            cuts |= {first, last + 1}
    runs: list[tuple[int, Outcome]] = []
    for first in sorted(cuts - {LAST_ADDRESS + 1}):
        outcome = _outcome(steps, first)
        if not runs or runs[-1][1] != outcome:
            runs.append((first, outcome))
    return tuple(runs)


def _outcome(steps: Iterable[Step], address: int) -> Outcome:
    names: list[tuple[str, Mark]] = []
    for step in steps:
        if step.name is not None:
            names.append((step.name, step.mark))
        elif step.network is None or _ends(step.network)[0] <= address <= _ends(step.network)[1]:
            return Outcome(step.mark, tuple(names))
    raise AssertionError("the last step fits everything")


def _joined(slabs: Sequence[_Slab]) -> Iterator[tuple[tuple[Protocol, ...], _Slab]]:
    """Slabs of several protocols with the same ports and outcomes as one."""
    by_look: dict[tuple[int, int, tuple[tuple[int, Outcome], ...]], list[_Slab]] = {}
    for slab in slabs:
        by_look.setdefault((slab.ports.first, slab.ports.last, slab.runs), []).append(slab)
    for same in by_look.values():
        protocols = tuple(slab.protocol for slab in same)
        if Protocol.TCP in protocols and Protocol.UDP in protocols:
            yield protocols, same[0]
        else:
            yield from (((slab.protocol,), slab) for slab in same)


def _spans(runs: tuple[tuple[int, Outcome], ...]) -> Iterator[tuple[int, int, Outcome]]:
    ends = [first - 1 for first, _ in runs[1:]] + [LAST_ADDRESS]
    for (first, outcome), last in zip(runs, ends, strict=True):
        yield first, last, outcome


def _covers(piece: Piece, packet: Packet) -> bool:
    is_there = piece.first <= packet.address <= piece.last and packet.protocol in piece.protocols
    return is_there and (packet.protocol is Protocol.ICMP or piece.ports.first <= packet.port <= piece.ports.last)


def _ends(network: tuple[int, int]) -> tuple[int, int]:
    address, prefix = network
    return address, address | (1 << (32 - prefix)) - 1


def _too_intricate() -> BadRequest:
    return BadRequest(
        f"these rules cut addresses and ports into more than {PIECES} pieces: use fewer or wider ranges",
        field="network",
    )
