"""What sandboxes tried and may not: told by the packet filter (NFLOG) and by what listens, repeats counted as one.

A sandbox may be refused a hundred thousand times a second. The base rules log a small part of it (`baseline.py`), what
arrives here is counted before anything is made of it, and all that is kept is bounded. What does not fit is counted in
`lost`, never waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.engine.network import nfnetlink
from cove.engine.network.baseline import LOG_GROUP
from cove.engine.network.boxrules import PROTOCOLS, parse_mark
from cove.engine.network.expressions import ICMP, number
from cove.engine.network.netns import NetNs
from cove.engine.network.nfnetlink import LOG, NETFILTER, Message
from cove.engine.network.port import Endpoints
from cove.engine.network.rtnetlink import attribute, attributes, messages
from cove.engine.network.ruleset import Ruleset
from cove.engine.network.steps import Action, Packet
from cove.model.errors import EngineFailure
from cove.model.network import Protocol, Refusal

TICK_S: Final = 0.2
REPEAT_S: Final = 5.0
"""The same thing again is told at most so often."""
PER_BOX: Final = 64
"""Most different things of one sandbox that wait to be told."""
PER_TICK: Final = 50
"""Most that are told at once, so that the loop is not held up: 250 a second."""
_PER_BOX_AND_TICK: Final = 10
_PENDING: Final = 4096
_KNOWN: Final = 4096
SEEN: Final = 4096
"""Most different packets that are counted between two flushes."""
_READS: Final = 8
_DATAGRAM: Final = 65536
_HEADER: Final = 20
_CONFIGURE: Final = 1
_BIND: Final = b"\x01"
_COPY_PACKET: Final = 2
_SNAPSHOT: Final = 64
_FLUSH: Final = 1
"""Hundredths of a second after which the kernel hands over what it gathered: less than it takes to free a sandbox."""
_MARK: Final = 2
_PAYLOAD: Final = 9

_logger = logging.getLogger(__name__)


class Seen(Struct, frozen=True):
    """A refused packet, as far as we look at it. `protocol` is the number in IPv4."""

    source: str
    destination: int
    protocol: int
    port: int
    mark: int


class Refusals:
    """Counts repeats and hands on. Used on the loop only; made by `open_refusals`."""

    def __init__(self, ruleset: Ruleset, endpoints: Endpoints, sink: Callable[[Refusal], None]) -> None:
        self._ruleset = ruleset
        self._endpoints = endpoints
        self._sink = sink
        self._seen: Counter[Seen] = Counter()
        self._pending: dict[Refusal, tuple[float, int]] = {}
        """By what is told, its time and count apart: when it began, how often."""
        self._waiting: Counter[str] = Counter()
        """Of `_pending`, per sandbox."""
        self._told: OrderedDict[Refusal, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self.read: Callable[[], None] = lambda: None
        """Takes what the kernel has told so far."""
        self.lost = 0
        """Refusals that were not told, as far as we know of them."""

    def note(self, refusal: Refusal) -> None:
        """Something was refused (or, in a dry run, would have been). Never raises, never waits."""
        key = replace(refusal, at=0.0, count=1)
        at, count = self._pending.get(key, (refusal.at, 0))
        if not count:
            if self._waiting[refusal.sandbox] >= PER_BOX or len(self._pending) >= _PENDING:
                self.lost += refusal.count
                return
            self._waiting[refusal.sandbox] += 1
        self._pending[key] = at, count + refusal.count
        self._wake()

    def see(self, packet: Seen) -> None:
        """The packet filter refused this."""
        if packet not in self._seen and len(self._seen) >= SEEN:
            self.lost += 1
            return
        self._seen[packet] += 1
        self._wake()

    def flush(self) -> None:
        """Tell what is due, within the bounds."""
        self._timer = None
        self._gather()
        now = asyncio.get_running_loop().time()
        due = self._due(now)
        for key in due:
            at, count = self._pending.pop(key)
            self._waiting[key.sandbox] -= 1
            self._told[key] = now
            self._told.move_to_end(key)
            self._sink(replace(key, at=at, count=count))
        while len(self._told) > _KNOWN:
            self._told.popitem(last=False)
        self._waiting += Counter()  # forgets those that wait for nothing
        if self._pending:
            self._wake()

    def finish(self, box: str) -> None:
        """A box is about to leave: tell all that waits of it, for nobody will have its address any more."""
        self.read()
        self._gather()
        for key in [key for key in self._pending if key.sandbox == box]:
            at, count = self._pending.pop(key)
            self._waiting[box] -= 1
            self._sink(replace(key, at=at, count=count))

    def _gather(self) -> None:
        seen, self._seen = self._seen, Counter()
        for packet, count in seen.items():
            refusal = self._named(packet, count)
            if refusal is not None:
                self.note(refusal)

    def close(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self.flush)

    def _due(self, now: float) -> list[Refusal]:
        due: list[Refusal] = []
        taken: Counter[str] = Counter()
        for key in self._pending:
            if len(due) >= PER_TICK:
                break
            if self._told.get(key, now - REPEAT_S) > now - REPEAT_S or taken[key.sandbox] >= _PER_BOX_AND_TICK:
                continue
            taken[key.sandbox] += 1
            due.append(key)
        return due

    def _named(self, seen: Seen, count: int) -> Refusal | None:
        endpoint = self._endpoints.by_address(seen.source)
        if endpoint is None:
            return None
        protocol = PROTOCOLS.get(seen.protocol, Protocol.ICMP)
        try:
            action = parse_mark(seen.mark)[0]
            packet = Packet(address=seen.destination, protocol=protocol, port=seen.port)
            rule = self._ruleset.words(endpoint.index, seen.mark, packet)
        except ValueError:
            action, rule = Action.REFUSE, "closed"
        address = socket.inet_ntoa(number(seen.destination))
        return Refusal(
            sandbox=endpoint.box,
            layer="packet",
            name=next(iter(self._ruleset.names_of(endpoint.index, address)), None),
            address=address,
            port=seen.port,
            protocol=str(protocol) if seen.protocol in PROTOCOLS else str(seen.protocol),
            rule=rule,
            at=time.time(),
            count=count,
            dry_run=action is Action.WATCH,
        )


def parse(body: bytes) -> Seen | None:
    """One logged packet as the kernel tells it, its bytes being a sandbox's; None: not to be made out.

    Raises: ValueError where the kernel's lengths do not fit.
    """
    found = dict(attributes(body))
    packet = found.get(_PAYLOAD, b"")
    if len(packet) < _HEADER or packet[0] >> 4 != 4:  # noqa: PLR2004 - IPv4
        return None
    length = (packet[0] & 0xF) * 4
    protocol = packet[9]
    ports = packet[length + 2 : length + 4] if protocol != ICMP and length >= _HEADER else b""
    return Seen(
        source=socket.inet_ntoa(packet[12:16]),
        destination=int.from_bytes(packet[16:20], "big"),
        protocol=protocol,
        port=int.from_bytes(ports, "big") if protocol in PROTOCOLS else 0,
        mark=int.from_bytes(found.get(_MARK, b""), "big"),
    )


@contextlib.asynccontextmanager
async def open_refusals(
    router: NetNs, ruleset: Ruleset, endpoints: Endpoints, sink: Callable[[Refusal], None]
) -> AsyncGenerator[Refusals]:
    """Read the packet filter's log in the router's namespace until the block ends. Raises: EngineFailure."""
    refusals = Refusals(ruleset, endpoints, sink)
    loop = asyncio.get_running_loop()
    with await _listening(router) as channel:
        refusals.read = partial(_read, channel, refusals)
        loop.add_reader(channel, refusals.read)
        try:
            yield refusals
        finally:
            loop.remove_reader(channel)
            refusals.close()


async def _listening(router: NetNs) -> socket.socket:
    channel = await router.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
    try:
        nfnetlink.prepare(channel)
        # Bound first: the kernel knows no options of a group that nobody listens to.
        for options in (
            attribute(1, _BIND),
            attribute(2, struct.pack("!IBB", _SNAPSHOT, _COPY_PACKET, 0)) + attribute(4, number(_FLUSH)),
        ):
            nfnetlink.ask(channel, LOG, Message(_CONFIGURE, options, resource=LOG_GROUP))
    except OSError as error:
        channel.close()
        raise EngineFailure("the packet filter's log cannot be read", internal=str(error)) from error
    return channel


def _read(channel: socket.socket, refusals: Refusals) -> None:
    for _ in range(_READS):
        try:
            data = channel.recv(_DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            refusals.lost += 1
            continue
        try:
            for _, message in messages(data):
                packet = parse(message.body[4:]) if message.kind == LOG << 8 else None
                if packet is not None:
                    refusals.see(packet)
        except ValueError:
            _logger.warning("the packet filter's log has a record of a wrong length")
