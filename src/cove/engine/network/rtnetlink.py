"""Raw rtnetlink: interfaces, addresses, routes, neighbours, queues. Messages are pure bytes; `RtNetlink` speaks them.

Only what Cove needs (rtnetlink(7), netlink(7), linux/rtnetlink.h, linux/if_link.h, linux/pkt_sched.h), all numbers in
the machine's byte order unless marked as the network's. The kernel is trusted to tell the truth, but no answer is taken
without its length being checked. To add a message: a function here, with golden bytes in the tests (`strace -e
sendmsg` of iproute2 shows what they must be).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import Final, Self

from msgspec import Struct

NEWLINK: Final = 16
DELLINK: Final = 17
GETLINK: Final = 18
NEWADDR: Final = 20
GETADDR: Final = 22
NEWROUTE: Final = 24
DELROUTE: Final = 25
NEWNEIGH: Final = 28
NEWQDISC: Final = 36
DELQDISC: Final = 37
_ERROR: Final = 2
_DONE: Final = 3

_REQUEST: Final = 0x1
_ACK: Final = 0x4
_DUMP: Final = 0x300
_REPLACE: Final = 0x100
_EXCLUSIVE: Final = 0x200
_CREATE: Final = 0x400

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINKINFO: Final = 18
_IFLA_STATS64: Final = 23
_IFLA_GROUP: Final = 27
_IFLA_NET_NS_FD: Final = 28
_IFLA_NUM_TX_QUEUES: Final = 31
_IFLA_NUM_RX_QUEUES: Final = 32
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_VETH_INFO_PEER: Final = 1
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_TCA_KIND: Final = 1
_TCA_OPTIONS: Final = 2
_TCA_TBF_PARMS: Final = 1
_TCA_TBF_RATE64: Final = 4
_TCA_TBF_BURST: Final = 6

_UP: Final = 1
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_SCOPE_HOST: Final = 254
_TABLE_MAIN: Final = 254
_TABLE_LOCAL: Final = 255
_PROTOCOL_STATIC: Final = 4
_UNICAST: Final = 1
_LOCAL: Final = 2
_NUD_PERMANENT: Final = 0x80
_TC_ROOT: Final = 0xFFFFFFFF

_HEADER: Final = struct.Struct("=LHHLL")
_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBi")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_NEIGH: Final = struct.Struct("=BxxxiHBB")
_TC: Final = struct.Struct("=BxxxiIII")
_RATESPEC: Final = struct.Struct("=BBHhHI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ANSWER_LIMIT_S: Final = 5.0
_BUFFER: Final = 256 * 1024
_NESTED: Final = 0x3FFF
"""Mask of an attribute's type without the bits for nesting and byte order."""

_TICK_NS: Final = 64
"""The unit of `struct tc_ratespec`'s table-less times: /proc/net/psched's first two words, 1000 and 64."""


class Message(Struct, frozen=True):
    """A message of the kernel: its type, and all behind its header."""

    kind: int
    body: bytes


class Link(Struct, frozen=True, kw_only=True):
    """An interface, and what passed over it as its own end sees it."""

    index: int
    name: str
    is_up: bool
    received_bytes: int = 0
    sent_bytes: int = 0


class End(Struct, frozen=True, kw_only=True):
    """One end of a pair of interfaces. `index` 0: any; `namespace`: a descriptor, None: where the socket is."""

    name: str
    index: int = 0
    mac: bytes = b""
    namespace: int | None = None
    is_up: bool = True


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data`. Raises: ValueError where lengths do not fit."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            raise ValueError("an attribute of a wrong length")
        yield kind & _NESTED, data[at + 4 : at + length]
        at += (length + 3) & ~3


def messages(data: bytes) -> Iterator[tuple[int, Message]]:
    """The messages in `data` with their sequence numbers. Raises: ValueError where lengths do not fit."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise ValueError("a message of a wrong length")
        yield sequence, Message(kind, data[at + _HEADER.size : at + length])
        at += (length + 3) & ~3


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _flags(*, is_up: bool) -> tuple[int, int]:
    return (_UP, _UP) if is_up else (0, 0)


class Request(Struct, frozen=True):
    """A message for the kernel, without the number that tells its answer."""

    kind: int
    flags: int
    body: bytes

    def pack(self, sequence: int, *, ack: bool) -> bytes:
        """Its bytes."""
        flags = self.flags | _REQUEST | (_ACK if ack else 0)
        length = _HEADER.size + len(self.body)
        return _HEADER.pack(length, self.kind, flags, sequence, 0) + self.body + bytes(-length % 4)


def _end(end: End) -> bytes:
    flags, change = _flags(is_up=end.is_up)
    body = _IFINFO.pack(0, 0, end.index, flags, change) + attribute(_IFLA_IFNAME, _text(end.name))
    if end.mac:
        body += attribute(_IFLA_ADDRESS, end.mac)
    # One queue each: the default is one per processor, which costs memory per sandbox and a lock each at every change.
    body += attribute(_IFLA_NUM_TX_QUEUES, struct.pack("=I", 1)) + attribute(_IFLA_NUM_RX_QUEUES, struct.pack("=I", 1))
    if end.namespace is not None:
        body += attribute(_IFLA_NET_NS_FD, struct.pack("=I", end.namespace))
    return body


def new_pair(ours: End, theirs: End) -> Request:
    """Make two interfaces that are joined to each other (veth(4))."""
    data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, _end(theirs)))
    info = attribute(_IFLA_INFO_KIND, b"veth") + data
    return Request(NEWLINK, _CREATE | _EXCLUSIVE, _end(ours) + attribute(_IFLA_LINKINFO, info))


def set_up(index: int, *, is_up: bool = True) -> Request:
    """Switch an interface on or off."""
    return Request(NEWLINK, 0, _IFINFO.pack(0, 0, index, _UP if is_up else 0, _UP))


def delete_link(index: int) -> Request:
    """Take an interface away, and its other end with it."""
    return Request(DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))


def set_group(index: int, group: int) -> Request:
    """Put an interface into a group."""
    return Request(NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + attribute(_IFLA_GROUP, struct.pack("=I", group)))


def delete_group(group: int) -> Request:
    """Take all interfaces of a group away, which costs no more than one: the kernel waits once for all."""
    return Request(DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + attribute(_IFLA_GROUP, struct.pack("=I", group)))


def new_address(link: int, address: str, prefix: int = 32, *, is_link: bool = False) -> Request:
    """Give an interface an address. `is_link`: it counts there only, so no packet that is passed on gets it."""
    raw = IPv4Address(address).packed
    scope = _SCOPE_LINK if is_link else _SCOPE_UNIVERSE
    body = _IFADDR.pack(socket.AF_INET, prefix, 0, scope, link)
    return Request(NEWADDR, _CREATE | _REPLACE, body + attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw))


def new_route(link: int, target: str | None, gateway: str | None = None) -> Request:
    """Send what is for `target` (None: for anybody) over an interface, to `gateway` where one is given."""
    scope = _SCOPE_LINK if gateway is None else _SCOPE_UNIVERSE
    prefix = 0 if target is None else 32
    body = _ROUTE.pack(socket.AF_INET, prefix, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, scope, _UNICAST, 0)
    if target is not None:
        body += attribute(_RTA_DST, IPv4Address(target).packed)
    if gateway is not None:
        body += attribute(_RTA_GATEWAY, IPv4Address(gateway).packed)
    return Request(NEWROUTE, _CREATE | _REPLACE, body + attribute(_RTA_OIF, struct.pack("=I", link)))


def local_route(link: int, family: int, *, is_there: bool = True) -> Request:
    """Take every address for the machine's own, at `link`, the loopback interface; or no longer."""
    kind, flags = (NEWROUTE, _CREATE | _REPLACE) if is_there else (DELROUTE, 0)
    body = _ROUTE.pack(family, 0, 0, 0, _TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _LOCAL, 0)
    return Request(kind, flags, body + attribute(_RTA_OIF, struct.pack("=I", link)))


def new_neighbour(link: int, address: str, mac: bytes) -> Request:
    """Say for good which hardware address has `address`: nobody is asked, so nobody can lie."""
    body = _NEIGH.pack(socket.AF_INET, link, _NUD_PERMANENT, 0, 0)
    body += attribute(_NDA_DST, IPv4Address(address).packed) + attribute(_NDA_LLADDR, mac)
    return Request(NEWNEIGH, _CREATE | _REPLACE, body)


def limit_rate(link: int, bytes_per_s: int, burst: int, queue: int) -> Request:
    """Let an interface send so much (tc-tbf(8)): `burst` bytes at once, and `queue` bytes wait."""
    # Times are in ticks of 64 ns: those that it takes to send `burst`.
    ticks = min(burst * 1_000_000_000 // max(bytes_per_s, 1) // _TICK_NS, 0xFFFFFFFF)
    rate = _RATESPEC.pack(0, 1, 0, 0, 0, min(bytes_per_s, 0xFFFFFFFF))
    none = bytes(_RATESPEC.size)
    parameters = rate + none + struct.pack("=III", queue, ticks, 0)
    options = attribute(_TCA_TBF_PARMS, parameters) + attribute(_TCA_TBF_BURST, struct.pack("=I", burst))
    if bytes_per_s > 0xFFFFFFFF:  # noqa: PLR2004 - what 32 bits hold
        options += attribute(_TCA_TBF_RATE64, struct.pack("=Q", bytes_per_s))
    body = _TC.pack(0, link, 0, _TC_ROOT, 0) + attribute(_TCA_KIND, b"tbf\0") + attribute(_TCA_OPTIONS, options)
    return Request(NEWQDISC, _CREATE | _REPLACE, body)


def lift_rate(link: int) -> Request:
    """Let an interface send as it can. The kernel refuses (ENOENT) where no limit was set."""
    return Request(DELQDISC, 0, _TC.pack(0, link, 0, _TC_ROOT, 0))


def get_links() -> Request:
    """Ask for every interface."""
    return Request(GETLINK, _DUMP, _IFINFO.pack(0, 0, 0, 0, 0))


def get_link(index: int = 0, name: str = "") -> Request:
    """Ask for one interface, by its number or its name."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + (attribute(_IFLA_IFNAME, _text(name)) if name else b"")
    return Request(GETLINK, 0, body)


def get_addresses() -> Request:
    """Ask for every IPv4 address."""
    return Request(GETADDR, _DUMP, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0))


def read_link(body: bytes) -> Link:
    """What a NEWLINK message says. Raises: ValueError."""
    if len(body) < _IFINFO.size:
        raise ValueError("a link message that is too short")
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    name, received, sent = "", 0, 0
    for kind, value in attributes(body[_IFINFO.size :]):
        if kind == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif kind == _IFLA_STATS64 and len(value) >= 32:  # noqa: PLR2004 - the first four of its counters
            _, _, received, sent = struct.unpack_from("=QQQQ", value)
    return Link(index=index, name=name, is_up=bool(flags & _UP), received_bytes=received, sent_bytes=sent)


def read_address(body: bytes) -> tuple[int, str]:
    """The interface and the address that a NEWADDR message tells of. Raises: ValueError."""
    if len(body) < _IFADDR.size:
        raise ValueError("an address message that is too short")
    *_, link = _IFADDR.unpack_from(body)
    for kind, value in attributes(body[_IFADDR.size :]):
        if kind == _IFA_LOCAL and len(value) == 4:  # noqa: PLR2004 - IPv4
            return link, str(IPv4Address(value))
    raise ValueError("an address message without an address")


class RtNetlink:
    """A socket to the kernel for one namespace: that of the thread that makes it. Used by one thread at a time.

    Calls block for some ten microseconds; one that the kernel does not answer ends after 5 s.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _BUFFER)
            self._socket.settimeout(_ANSWER_LIMIT_S)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def change(self, *requests: Request, ignore: Sequence[int] = ()) -> None:
        """Do all of `requests` in their order, in one call; a refused one does not stop those behind it.

        Raises: OSError with the first refusal's number, unless it is one of `ignore`.
        """
        first = self._sequence + 1
        self._sequence += len(requests)
        packed = [request.pack(first + n, ack=True) for n, request in enumerate(requests)]
        self._socket.sendto(b"".join(packed), (0, 0))
        refusals: dict[int, int] = {}
        answered = 0
        while answered < len(requests):
            for sequence, message in messages(self._receive()):
                if message.kind == _ERROR and first <= sequence < first + len(requests):
                    answered += 1
                    code = -int(struct.unpack_from("=i", message.body)[0])
                    if code and code not in ignore:
                        refusals[sequence - first] = code
        if refusals:
            at = min(refusals)
            raise OSError(refusals[at], f"rtnetlink message {requests[at].kind}: {os.strerror(refusals[at])}")

    def ask(self, request: Request) -> list[Message]:
        """The kernel's answers: one, or for a dump all. Raises: OSError with the refusal's number."""
        self._sequence += 1
        wanted = self._sequence
        is_dump = request.flags & _DUMP == _DUMP
        self._socket.sendto(request.pack(wanted, ack=False), (0, 0))
        found: list[Message] = []
        while True:
            for sequence, message in messages(self._receive()):
                if sequence != wanted:
                    continue
                if message.kind == _DONE:
                    return found
                if message.kind == _ERROR:
                    code = -int(struct.unpack_from("=i", message.body)[0])
                    raise OSError(code, f"rtnetlink message {request.kind}: {os.strerror(code)}")
                found.append(message)
                if not is_dump:
                    return found

    def links(self) -> list[Link]:
        """Every interface here. Raises: OSError."""
        return [read_link(one.body) for one in self.ask(get_links()) if one.kind == NEWLINK]

    def link(self, index: int = 0, name: str = "") -> Link | None:
        """One interface by its number or its name; None: there is none. Raises: OSError."""
        try:
            return read_link(self.ask(get_link(index, name))[0].body)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def addresses(self) -> list[tuple[int, str]]:
        """Every IPv4 address here, with its interface. Raises: OSError."""
        return [read_address(one.body) for one in self.ask(get_addresses()) if one.kind == NEWADDR]

    def _receive(self) -> bytes:
        data, _, flags, sender = self._socket.recvmsg(_BUFFER)
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, "an answer of the kernel was too long")
        # Another process may send to our port; only the kernel has number 0 (netlink(7)).
        return data if sender[0] == 0 else b""
