"""Steps as pieces that do not overlap: what one lookup in a map of the kernel can decide. Pure.

Why pieces and not a kernel rule per step: the kernel checks all rules of a table again whenever one of them changes, so
500 sandboxes with 30 rules each would cost every change 8 ms (measured). Maps of values it does not check.

Steps are cut at the ports where one begins or ends (slabs), each slab at addresses; equal neighbours are joined. What
has the outcome that covers most is left out: it is the policy's default mark. A step for a name is no piece of its own:
it makes the outcome of the pieces behind it depend on names (`Outcome.names`). Their mark is looked up again, with the
addresses, among what the resolver has learned.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

from msgspec import Struct

from cove.engine.network.steps import CHECKED_PORTS, DNS_OVER_TLS, QUIC, Action, Code, Mark, Packet, Step, steps_of
from cove.model.errors import BadRequest
from cove.model.network import NetworkPolicy, PortRange, Protocol

PIECES: Final = 2048
"""Most pieces of one policy: 2048 take the kernel 20 ms to put in place."""

LAST_ADDRESS: Final = 2**32 - 1
LAST_PORT: Final = 65535
_WORK: Final = 60_000
"""Most steps that are looked at, each counted again for every range of ports where it may fit: some 100 ms."""


class Outcome(Struct, frozen=True):
    """What is decided: by the first of `names` (target, mark) that brought the address, else `mark`.

    `is_web_checked`: but web ports go to the proxy, and QUIC is refused. `is_named`: but DNS over TLS is refused. The
    base rules do both, for otherwise every policy with names would be cut at these ports.
    """

    mark: Mark
    names: tuple[tuple[str, Mark], ...] = ()
    is_web_checked: bool = False
    is_named: bool = False

    def common(self, packet: Packet) -> Mark | None:
        """What the base rules decide about a packet with this outcome; None: they leave it as it is."""
        if self.is_named and packet.protocol is not Protocol.ICMP and packet.port == DNS_OVER_TLS:
            return Mark(Action.REFUSE, Code.DNS_OVER_TLS)
        if self.is_web_checked and packet.protocol is Protocol.TCP and packet.port in CHECKED_PORTS:
            return Mark(Action.CHECK, self.mark.code)
        if self.is_web_checked and packet.protocol is Protocol.UDP and packet.port == QUIC:
            return Mark(Action.REFUSE, Code.QUIC)
        return None


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
        """The place of an outcome that depends on nothing more."""
        return self.outcomes.index(Outcome(mark))


Runs = tuple[tuple[int, Outcome], ...]
"""Addresses, from which on which outcome holds. The first is 0."""


class _Slab(Struct, frozen=True):
    """A range of ports of one protocol."""

    protocol: Protocol
    ports: PortRange
    runs: Runs


class _Area(Struct, frozen=True):
    """Addresses and ports with one outcome."""

    first: int
    last: int
    ports: PortRange
    outcome: Outcome


@lru_cache(maxsize=256)
def flatten(policy: NetworkPolicy) -> Flat:
    """The pieces of a policy. Raises: BadRequest (field `network`) where it is too intricate."""
    every = steps_of(policy)
    is_named = any(step.is_common and step.mark.code == Code.DNS_OVER_TLS for step in every)
    steps = [step for step in every if step.name is not None or not step.is_common]
    known_runs: dict[tuple[int, ...], Runs] = {}
    slabs = [slab for protocol in Protocol for slab in _slabs(protocol, steps, known_runs, is_named=is_named)]
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
    areas = {protocol: list(_areas(slabs, protocol, default)) for protocol in Protocol}
    pieces = tuple(
        Piece(first=area.first, last=area.last, protocols=protocols, ports=area.ports, outcome=known[area.outcome])
        for area, protocols in _joined(areas)
    )
    if len(pieces) > PIECES:
        raise _too_intricate()
    return Flat(outcomes=tuple(known), pieces=pieces, default=known[default])


def _slabs(
    protocol: Protocol, steps: Sequence[Step], known: dict[tuple[int, ...], Runs], *, is_named: bool
) -> Iterator[_Slab]:
    """In the order of their ports, without a gap. `known`: what the same steps came to, elsewhere."""
    mine = [step for step in steps if step.protocol in {None, protocol}]

    def runs_of(active: Sequence[Step]) -> Runs:
        key = tuple(map(id, active))
        if key not in known:
            known[key] = _runs(active, is_named=is_named)
        return known[key]

    if protocol is Protocol.ICMP:
        yield _Slab(protocol, PortRange(0, LAST_PORT), runs_of([step for step in mine if step.ports is None]))
        return
    cuts = {0, LAST_PORT + 1}
    for step in mine:
        if step.ports is not None:
            cuts |= {step.ports.first, step.ports.last + 1}
    spent = 0
    for first, after in pairwise(sorted(cuts)):
        active = [step for step in mine if step.ports is None or step.ports.first <= first <= step.ports.last]
        spent += len(mine) // 8 + len(active)
        if spent > _WORK:
            raise _too_intricate()
        yield _Slab(protocol, PortRange(first, after - 1), runs_of(active))


def _runs(steps: Sequence[Step], *, is_named: bool) -> Runs:
    """Sweep over the addresses: what holds at each is the first step whose addresses have it in them."""
    names: list[tuple[str, Mark]] = []
    checked_from = len(steps)
    """The place of the first step for a name by which web ports are checked."""
    before: list[int] = []
    """For each step how many steps for names come before it."""
    begins: list[tuple[int, int, int]] = []
    for place, step in enumerate(steps):
        before.append(len(names))
        if step.name is not None:
            names.append((step.name, step.mark))
            checked_from = min(checked_from, place) if step.is_common else checked_from
        else:
            first, last = (0, LAST_ADDRESS) if step.network is None else _ends(step.network)
            begins.append((first, place, last))
    begins.sort()
    cuts = sorted({first for first, _, _ in begins} | {last + 1 for _, _, last in begins})
    open_steps: list[tuple[int, int]] = []
    runs: list[tuple[int, Outcome]] = []
    at = 0
    for cut in cuts[:-1]:
        while at < len(begins) and begins[at][0] == cut:
            heapq.heappush(open_steps, begins[at][1:])
            at += 1
        while open_steps[0][1] < cut:
            heapq.heappop(open_steps)
        place = open_steps[0][0]
        outcome = Outcome(steps[place].mark, tuple(names[: before[place]]), checked_from < place, is_named)
        if not runs or runs[-1][1] != outcome:
            runs.append((cut, outcome))
    return tuple(runs)


def _areas(slabs: Sequence[_Slab], protocol: Protocol, default: Outcome) -> Iterator[_Area]:
    """The spans of a protocol, those that are the same at neighbouring ports as one."""
    open_since: dict[tuple[int, int, Outcome], int] = {}
    port = 0
    for slab in slabs:
        if slab.protocol is not protocol:
            continue
        spans = {span for span in _spans(slab.runs) if span[2] != default}
        for span in [span for span in open_since if span not in spans]:
            yield _Area(span[0], span[1], PortRange(open_since.pop(span), slab.ports.first - 1), span[2])
        for span in spans:
            open_since.setdefault(span, slab.ports.first)
        port = slab.ports.last
    for (first, last, outcome), since in open_since.items():
        yield _Area(first, last, PortRange(since, port), outcome)


def _joined(areas: Mapping[Protocol, Sequence[_Area]]) -> Iterator[tuple[_Area, tuple[Protocol, ...]]]:
    """Areas that several protocols have, as one."""
    protocols_of: dict[_Area, tuple[Protocol, ...]] = {}
    for protocol in Protocol:
        for area in areas[protocol]:
            protocols_of[area] = (*protocols_of.get(area, ()), protocol)
    for area, protocols in protocols_of.items():
        if Protocol.TCP in protocols and Protocol.UDP in protocols:
            yield area, protocols
        else:
            yield from ((area, (protocol,)) for protocol in protocols)


def _spans(runs: Runs) -> Iterator[tuple[int, int, Outcome]]:
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
