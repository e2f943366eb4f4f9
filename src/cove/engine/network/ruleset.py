"""The packet rules of each sandbox: put in place, replaced and taken away, each in one transaction of the kernel.

What a sandbox has there: a chain with a map (its policy, flattened), an element that leads to it, one that binds its
address to its interface, its epoch, its links, what its names brought (`learn`), and the fingerprint of its policy. One
without is closed. A change of policy replaces elements only, so no packet sees anything between, and the kernel has
nothing to check again.

All calls but `open_ruleset`, `reconcile`, `close_ranges` and the cutting of flows speak to the kernel on the loop:
0.2 ms for ten rules, no more than a hop to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Final

from cove.engine.network import baseline, conntrack, nfnetlink
from cove.engine.network.baseline import (
    APPLIED,
    BOUND,
    BOXES,
    CURRENT,
    DEFAULTS,
    EPOCHS,
    LEARNED,
    LINKS,
    SERVED,
    TABLE,
    Baseline,
)
from cove.engine.network.box import Box, Held
from cove.engine.network.boxrules import (
    FIELDS,
    GENERATIONS,
    VALUE,
    base_mark,
    bound_key,
    chain_of,
    chain_rules,
    elements_of,
    fingerprint,
    learned_key,
    link_keys,
    map_of,
    mark_value,
    native,
    parse_mark,
    parse_served,
    served_keys,
    served_ports,
)
from cove.engine.network.flatten import Flat, flatten
from cove.engine.network.kept import Kept, read_kept
from cove.engine.network.netns import NetNs
from cove.engine.network.nfnetlink import NETFILTER, Element, Message
from cove.engine.network.nft import run_once
from cove.engine.network.standing import standing_of
from cove.engine.network.steps import Code, Packet
from cove.model.closed import ClosedRanges
from cove.model.errors import EngineFailure
from cove.model.network import NO_NETWORK, NetworkPolicy
from cove.model.policy import Destination, guarded, rule_words

_logger = logging.getLogger(__name__)
_CUT_PASSES: Final = 3
_FEW_RULES: Final = 32
_FEW_PIECES: Final = 32
"""Up to here a change takes the kernel less than a millisecond."""
_LONGEST_S: Final = 24 * 3600.0
_FRESH_S: Final = 5.0
"""So long behind its end an element may still be there, as the kernel's clock has it."""
_REFUSED: Final = "the machine's packet filter refused a change"


class Ruleset:
    """The rules of all sandboxes of this server. Made by `open_ruleset`."""

    def __init__(self, router: NetNs, channel: socket.socket, base: Baseline) -> None:
        self._router = router
        self._channel = channel
        self._base = base
        self._boxes: dict[int, Box] = {}
        self._turns: dict[int, asyncio.Lock] = {}

    def _turn(self, index: int) -> asyncio.Lock:
        """One change of a sandbox at a time: a change may wait, for a thread or for flows to be cut."""
        return self._turns.setdefault(index, asyncio.Lock())

    @property
    def closed(self) -> ClosedRanges:
        """What is closed to all."""
        return self._base.closed

    async def apply(self, index: int, address: str, policy: NetworkPolicy, links: Mapping[str, str]) -> None:
        """Make `policy` and `links` (addresses by name) hold for the sandbox `index`, then cut what they do not allow.

        In one step: before, the old rules hold, after, the new ones. Raises: BadRequest (rules too intricate),
        EngineFailure; then what was before holds.
        """
        async with self._turn(index):
            if index in self._boxes and self._boxes[index].address != address:
                await self._forget(index)
            flat = await _flattened(policy)
            try:
                await self._apply(index, address, policy, frozenset(links.values()), flat)
            except EngineFailure as error:
                if not _is_mismatch(error):
                    raise
                # The kernel has not what we think: somebody changed our table. From nothing, closed meanwhile.
                _logger.warning("the packet rules of a sandbox are made anew: %s", error.internal)
                self._boxes.setdefault(index, Box(index, address))
                await self._forget(index)
                await self._install()
                await self._apply(index, address, policy, frozenset(links.values()), flat)

    async def _apply(self, index: int, address: str, policy: NetworkPolicy, wanted: frozenset[str], flat: Flat) -> None:
        is_new = index not in self._boxes
        box = Box(index, address) if is_new else self._boxes[index]
        print_ = fingerprint(policy)
        is_same = print_ == box.fingerprint and box.is_sure
        narrows = not is_new and (not (is_same or flat == box.flat) or not box.links <= wanted)
        ports = served_ports(policy, has_links=bool(wanted))
        changes = self._linking(box, wanted) + _serving(box, ports)
        box.is_sure = False
        if is_same:
            # As it was before a restart: with its generation, so that what names brought stays.
            self._transact(changes)
        else:
            generation = (box.generation + 1) % GENERATIONS
            held = _held(box, flat, generation)
            changes += _placing(box) if is_new else []
            changes += _ruling(box, policy, flat, generation, print_) + _learning(box, held)
            if len(flat.pieces) <= _FEW_PIECES:
                self._transact(changes)
            else:
                await self._transact_apart(changes)
            stale, box.held = box.held, held
            self._drop_learned(box, stale)
            box.before, box.generation, box.fingerprint = box.flat, generation, print_
        box.policy, box.flat, box.links, box.served = policy, flat, wanted, ports
        box.is_sure = True
        self._boxes[index] = box
        now = time.monotonic()
        for key, held_now in _held(box, flat, box.generation).items() if len(flat.pieces) > _FEW_PIECES else ():
            self._hold(box, key, held_now, now)  # what was learned while the kernel worked
        if narrows:
            await self._cut(box)

    async def _install(self) -> None:
        try:
            await self._router.run(lambda: baseline.install(self._base))
        except OSError as error:
            raise EngineFailure(_REFUSED, internal=str(error)) from error

    async def forget(self, index: int) -> None:
        """Take all rules of the sandbox `index` away, and links to it. Its flows are dead with it. Idempotent."""
        async with self._turn(index):
            await self._forget(index)

    async def _forget(self, index: int) -> None:
        box = self._boxes.pop(index, None)
        if box is None:
            return
        links = link_keys(box.address, box.links)
        linked = [other for other in self._boxes.values() if box.address in other.links]
        for other in linked:
            links += link_keys(other.address, [box.address])
            other.links -= {box.address}
        key = socket.inet_aton(box.address)
        self._tolerate(
            [
                *_without(CURRENT, [key + native(box.epoch)]),
                *_without(EPOCHS, [key]),
                *_without(BOXES, [key]),
                *_without(BOUND, [bound_key(index, box.address)]),
                *_without(DEFAULTS, [key]),
                *_without(APPLIED, _applied_keys(box)),
                *_without(LINKS, links),
                *_without(SERVED, served_keys(box.address, box.served)),
                nfnetlink.delete_chain(TABLE, chain_of(index)),
                nfnetlink.delete_map(TABLE, map_of(index, box.generation)),
            ]
        )
        self._drop_learned(box, box.held)
        if linked:
            await self._cut(*linked)  # theirs to it: they would reach whoever gets its address
        if await self._router.run(baseline.is_crowded):
            await self._end_flows(box.address, lambda _: True)

    async def learn(self, index: int, name: str, address: str, seconds: float) -> bool:
        """An answer for `name` brought `address`: rules for that name fit it for so long. False: no such sandbox.

        Call it before the answer is handed out. What is known already for half as long costs nothing.
        Raises: EngineFailure.
        """
        box = self._boxes.get(index)
        if box is None:
            return False
        number, now = int(ipaddress.IPv4Address(address)), time.monotonic()
        gone = box.brought.add(number, name, now + min(seconds, _LONGEST_S))
        if gone:
            self._drop_learned(box, {key: held for key, held in box.held.items() if key[0] in gone})
            box.held = {key: held for key, held in box.held.items() if key[0] not in gone}
        for key, held in box.opened(box.flat, box.generation, number, now):
            self._hold(box, key, held, now)
        return True

    def names_of(self, index: int, address: str) -> tuple[str, ...]:
        """The names whose answers brought `address` to this sandbox, the latest first."""
        box = self._boxes.get(index)
        return () if box is None else box.brought.names(int(ipaddress.IPv4Address(address)))

    def words(self, index: int, mark: int, packet: Packet) -> str:
        """What `Decision.rule` would say of a packet that the filter marked so. Raises: ValueError: no mark of ours."""
        box = self._boxes.get(index)
        policy = NO_NETWORK if box is None else box.policy
        _, generation, number = parse_mark(mark)
        code: int | None = base_mark(number)
        if code is None and box is not None:
            flat = box.flat if generation == box.generation else box.before
            code = flat.outcomes[number - 1].mark.code if 0 < number <= len(flat.outcomes) else Code.UNKNOWN
        if code is not None and 0 < code <= len(policy.rules):
            return f"rule {code}: {rule_words(policy.rules[code - 1])}"
        return self._words(policy, Code.UNKNOWN if code is None or code < Code.DEFAULT else Code(code), packet)

    async def close_ranges(self, closed: ClosedRanges) -> None:
        """Put `closed` in the place of the closed ranges, and cut what runs into them. Raises: EngineFailure."""
        try:
            await self._router.run(lambda: run_once(baseline.closed_text(closed)))
        except OSError as error:
            raise EngineFailure("the closed ranges cannot be changed", internal=str(error)) from error
        self._base = Baseline(addresses=self._base.addresses, closed=closed, connections=self._base.connections)
        if self._boxes:
            await self._cut(*self._boxes.values())

    async def reconcile(self, known: Mapping[int, str]) -> None:
        """After a start: keep the rules of the sandboxes in `known` (address by index), take all others away.

        What was kept enforces what was last applied; `apply` it again. Raises: EngineFailure.
        """
        try:
            kept = await self._router.run(read_kept)
        except (OSError, ValueError) as error:
            raise EngineFailure("the router's rules cannot be read", internal=str(error)) from error
        self._boxes.update(_boxes_of(kept))
        for index, box in tuple(self._boxes.items()):
            if known.get(index) != box.address:
                await self.forget(index)
        self._tolerate([nfnetlink.delete_chain(TABLE, chain_of(index)) for index in kept.chains - set(self._boxes)])
        await self._cut_closed()
        ours = {socket.inet_aton(box.address) for box in self._boxes.values()}
        self._tolerate(_without(LINKS, [key for key in kept.links if key[:4] not in ours]))
        self._tolerate(_without(SERVED, [key for key in kept.served if key[:4] not in ours]))

    def _words(self, policy: NetworkPolicy, code: Code, packet: Packet) -> str:
        address = str(ipaddress.IPv4Address(packet.address))
        match code:
            case Code.CLOSED:
                return self.closed.why(address, packet.port) or self.closed.why(address) or "closed"
            case Code.DNS | Code.DNS_OVER_TLS | Code.QUIC:
                there = Destination(name=None, address=address, port=packet.port, protocol=packet.protocol)
                return guarded(policy, there) or "names: only names that can be checked pass"
            case Code.DEFAULT:
                return f"default: {policy.default}"
            case Code.RATE:
                return "limit: too many new connections per second"
            case Code.CONNECTIONS:
                return f"limit: more than {self._base.connections} connections at once"
            case _:
                return "closed: no TCP, UDP or ICMP echo" if code is Code.PROTOCOL else f"mode {policy.mode}"

    def _linking(self, box: Box, wanted: frozenset[str]) -> list[Message]:
        new = [Element(key=key) for key in link_keys(box.address, wanted - box.links)]
        return [
            *_without(LINKS, link_keys(box.address, box.links - wanted)),
            *nfnetlink.new_elements(TABLE, LINKS, new),
        ]

    def _hold(self, box: Box, key: tuple[int, int], held: Held, now: float) -> None:
        """Put an element into `learned`, or make it stay longer."""
        known = box.held.get(key)
        if known is not None and known.mark == held.mark and known.until - now >= (held.until - now) / 2:
            return
        made = _learning(box, {key: held})
        # A plain "new" of one that exists would not make it stay longer, nor give anything else.
        old = [learned_key(box.address, *key)] if known is not None and known.until > now - _FRESH_S else []
        try:
            nfnetlink.transact(self._channel, [*_without(LEARNED, old), *made])
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise EngineFailure(_REFUSED, internal=str(error)) from error
            self._transact(made)
        box.held[key] = held

    def _drop_learned(self, box: Box, held: Mapping[tuple[int, int], Held]) -> None:
        now = time.monotonic()
        self._tolerate(
            _without(LEARNED, [learned_key(box.address, *key) for key, one in held.items() if one.until > now])
        )

    async def _cut(self, *boxes: Box) -> None:
        """End the flows that their rules do not allow. Again until none is left: one may have begun before them."""
        standings = {socket.inet_aton(box.address): standing_of(box, self.closed) for box in boxes}
        address = boxes[0].address if len(boxes) == 1 else None

        def should_go(flow: conntrack.Flow) -> bool:
            standing = standings.get(flow.source)
            return standing is not None and not standing.may_stay(flow)

        for _ in range(_CUT_PASSES):
            if not await self._end_flows(address, should_go):
                return

    async def _cut_closed(self) -> None:
        """End the flows into ranges that are closed now; what links lead to is, but for them."""
        linked = {key for box in self._boxes.values() for key in link_keys(box.address, box.links)}
        closed, gateway = self.closed, socket.inet_aton(baseline.GATEWAY)

        def should_go(flow: conntrack.Flow) -> bool:
            if flow.destination == gateway or flow.source + flow.destination in linked:
                return False
            return closed.why(socket.inet_ntoa(flow.destination), flow.port) is not None

        await self._end_flows(None, should_go)

    async def _end_flows(self, address: str | None, should_go: Callable[[conntrack.Flow], bool]) -> int:
        try:
            return await self._router.run(lambda: conntrack.cut(address, should_go))
        except (OSError, ValueError) as error:
            raise EngineFailure("the sandbox's connections cannot be ended", internal=str(error)) from error

    def _transact(self, changes: list[Message]) -> None:
        try:
            nfnetlink.transact(self._channel, changes)
        except OSError as error:
            raise EngineFailure(_REFUSED, internal=str(error)) from error

    async def _transact_apart(self, changes: list[Message]) -> None:
        """As `_transact`, in the router's thread: for what takes the kernel milliseconds."""

        def work() -> None:
            with nfnetlink.connect() as channel:
                nfnetlink.transact(channel, changes)

        try:
            await self._router.run(work)
        except OSError as error:
            raise EngineFailure(_REFUSED, internal=str(error)) from error

    def _tolerate(self, changes: list[Message]) -> None:
        """All of `changes`, or if one is refused those that are not."""
        try:
            nfnetlink.transact(self._channel, changes)
        except OSError:
            for change in changes:
                try:
                    nfnetlink.transact(self._channel, [change])
                except OSError as error:
                    if error.errno != errno.ENOENT:
                        _logger.warning("a packet rule stays: %s", error)


@contextlib.asynccontextmanager
async def open_ruleset(router: NetNs, *, addresses: str, closed: ClosedRanges) -> AsyncGenerator[Ruleset, None]:
    """Put the base rules into the router's namespace and change them from then on. They stay when it ends.

    `addresses`: the range of this server's sandboxes, a CIDR. Raises: EngineFailure where the machine lacks nftables.
    """

    def install() -> Baseline:
        base = Baseline(addresses=addresses, closed=closed, connections=baseline.connections_cap())
        baseline.install(base)
        return base

    try:
        base = await router.run(install)
        channel = nfnetlink.prepare(await router.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER))
    except OSError as error:
        raise EngineFailure("the router's packet filter cannot be set up", internal=str(error)) from error
    with channel:
        yield Ruleset(router, channel, base)


async def _flattened(policy: NetworkPolicy) -> Flat:
    """On the loop where it takes less than a millisecond."""
    if len(policy.rules) <= _FEW_RULES:
        return flatten(policy)
    return await asyncio.to_thread(flatten, policy)


def _is_mismatch(error: EngineFailure) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in {errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.ENOTEMPTY}


def _boxes_of(kept: Kept) -> dict[int, Box]:
    """As the kernel has them; their policies are not known before they are applied again."""
    now = time.monotonic()
    boxes: dict[int, Box] = {}
    for index, address in kept.bound.items():
        key = socket.inet_aton(address)
        box = boxes[index] = Box(index, address)
        box.epoch = kept.epochs.get(key, box.epoch)
        box.generation, box.fingerprint = kept.applied.get(key, (0, b""))
        box.links = frozenset(socket.inet_ntoa(link[4:]) for link in kept.links if link[:4] == key)
        box.served = frozenset(parse_served(one) for one in kept.served if one[:4] == key)
        box.held = {
            (there, mark): Held(gives, now + left_s) for there, mark, gives, left_s in kept.learned.get(key, ())
        }
    return boxes


def _placing(box: Box) -> list[Message]:
    """What a sandbox has in the kernel whatever its policy is."""
    key, index = socket.inet_aton(box.address), box.index
    return [
        nfnetlink.new_chain(TABLE, chain_of(index)),
        *nfnetlink.new_elements(TABLE, BOUND, [Element(key=bound_key(index, box.address))]),
        *nfnetlink.new_elements(TABLE, BOXES, [Element(key=key, jump=chain_of(index))]),
        *nfnetlink.new_elements(TABLE, EPOCHS, [Element(key=key, value=native(box.epoch))]),
        *nfnetlink.new_elements(TABLE, CURRENT, [Element(key=key + native(box.epoch))]),
    ]


def _serving(box: Box, wanted: frozenset[int]) -> list[Message]:
    """What opens and closes the gateway's ports to a sandbox."""
    new = [Element(key=key) for key in served_keys(box.address, wanted - box.served)]
    return [
        *_without(SERVED, served_keys(box.address, box.served - wanted)),
        *nfnetlink.new_elements(TABLE, SERVED, new),
    ]


def _ruling(box: Box, policy: NetworkPolicy, flat: Flat, generation: int, print_: bytes) -> list[Message]:
    """What puts a policy in the place of the one before."""
    key, index = socket.inet_aton(box.address), box.index
    chain, pieces = chain_of(index), map_of(index, generation)
    default = Element(key=key, value=native(mark_value(flat, flat.default, generation)))
    rules = chain_rules(index, generation, policy.connections_per_s)
    changes = [
        nfnetlink.new_map(TABLE, pieces, FIELDS, VALUE),
        *nfnetlink.new_elements(TABLE, pieces, list(elements_of(flat, generation))),
        nfnetlink.flush_chain(TABLE, chain),
        *(nfnetlink.new_rule(TABLE, chain, rule) for rule in rules),
    ]
    if box.fingerprint:
        changes += [*_without(DEFAULTS, [key]), *_without(APPLIED, _applied_keys(box))]
        changes.append(nfnetlink.delete_map(TABLE, map_of(index, box.generation)))
    changes += nfnetlink.new_elements(TABLE, DEFAULTS, [default])
    return changes + nfnetlink.new_elements(TABLE, APPLIED, [Element(key=key + native(generation) + print_)])


def _applied_keys(box: Box) -> list[bytes]:
    key = socket.inet_aton(box.address)
    return [key + native(box.generation) + box.fingerprint] if box.fingerprint else []


def _held(box: Box, flat: Flat, generation: int) -> dict[tuple[int, int], Held]:
    """What the names that hold open under a policy which comes."""
    now = time.monotonic()
    known = (box.opened(flat, generation, address, now) for address in box.brought.addresses())
    return {key: held for opened in known for key, held in opened}


def _learning(box: Box, held: Mapping[tuple[int, int], Held]) -> list[Message]:
    now = time.monotonic()
    elements = [
        Element(key=learned_key(box.address, *key), value=native(one.mark), timeout_s=max(1.0, one.until - now))
        for key, one in held.items()
    ]
    return nfnetlink.new_elements(TABLE, LEARNED, elements)


def _without(name: str, keys: Iterable[bytes]) -> list[Message]:
    """A message for each, so that one which is gone keeps none of the others."""
    return [message for key in keys for message in nfnetlink.delete_elements(TABLE, name, [key])]
