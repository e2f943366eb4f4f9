"""Raw nfnetlink: transactions of nftables and dumps. Messages are pure bytes; `transact` and `dump` speak them.

Only what Cove changes while sandboxes live (linux/netfilter/nfnetlink.h, nf_tables.h); what stays the same for all of
them is said once as text (`baseline.py`). Why not libnftables for both: it reads back all that exists before it changes
anything (docs/decisions/0013-network.md). Numbers are big-endian, as nfnetlink has them. To add a message: a function
here, with golden bytes in the tests (`strace -e sendmsg nft …` shows what they must be).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec import Struct

from cove.engine.network.expressions import nested, number, text, verdict
from cove.engine.network.rtnetlink import attribute, attributes, messages

NETFILTER: Final = 12
"""NETLINK_NETFILTER."""
NFTABLES: Final = 10
CONNTRACK: Final = 1
LOG: Final = 4
FAMILY: Final = socket.AF_INET

_NEWTABLE: Final = 0
_GETTABLE: Final = 1
_DELTABLE: Final = 2
_NEWCHAIN: Final = 3
_GETCHAIN: Final = 4
_DELCHAIN: Final = 5
_NEWRULE: Final = 6
_DELRULE: Final = 8
_NEWSETELEM: Final = 12
_GETSETELEM: Final = 13
_DELSETELEM: Final = 14
_NEWSET: Final = 9
_DELSET: Final = 11
_RANGES: Final = 0x4 | 0x8 | 0x80
"""NFT_SET_INTERVAL, NFT_SET_MAP and NFT_SET_CONCAT."""
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17

_REQUEST: Final = 0x1
_ACK: Final = 0x4
_DUMP: Final = 0x300
_CREATE: Final = 0x400
_APPEND: Final = 0x800
_DUMP_INTERRUPTED: Final = 0x10
_ERROR: Final = 2
_DONE: Final = 3

_HEADER: Final = struct.Struct("=LHHLL")
_GENERIC: Final = struct.Struct("!BBH")
"""struct nfgenmsg: family, version, resource."""

_MAP_NOTES: Final = struct.pack("=BBIBBIBBBBIBBBBI", 0, 4, 0, 1, 4, 1, 3, 8, 0, 4, 13, 1, 0, 6, 4, 0)
"""What `nft` notes beside such a map: without it, listing the rules ends libnftables, and with it this process."""

_SEND_BUFFER: Final = 4 * 1024 * 1024
"""A transaction is one datagram: some thousand rules of half a KiB."""
_RECEIVE_BUFFER: Final = 1024 * 1024
_ELEMENTS_PER_MESSAGE: Final = 512
"""They are one attribute, whose length has 16 bits."""
_DUMP_TRIES: Final = 5
_SOL_NETLINK: Final = 270
_CAP_ACK: Final = 10
_SO_SNDBUFFORCE: Final = 32


class Message(Struct, frozen=True):
    """One message of a subsystem: its number there, flags beside `REQUEST`, the attributes behind `nfgenmsg`."""

    kind: int
    body: bytes
    flags: int = 0
    family: int = FAMILY
    resource: int = 0

    def pack(self, subsystem: int, sequence: int, extra: int = 0) -> bytes:
        """As bytes for the kernel."""
        content = _GENERIC.pack(self.family, 0, self.resource) + self.body
        kind = subsystem << 8 | self.kind
        return _HEADER.pack(16 + len(content), kind, _REQUEST | self.flags | extra, sequence, 0) + content


class Element(Struct, frozen=True, kw_only=True):
    """An element of a set or map. `last`: the end of its range; `jump`, `value`: what a map gives; 0 s: it stays."""

    key: bytes
    last: bytes | None = None
    jump: str | None = None
    value: bytes | None = None
    timeout_s: float = 0


class Found(Struct, frozen=True):
    """An element as a dump tells it. `left_s` None: it stays."""

    key: bytes
    value: bytes
    left_s: float | None


# Messages of nftables.


def new_chain(table: str, chain: str) -> Message:
    """A chain without a hook; nothing where it exists."""
    return Message(_NEWCHAIN, attribute(1, text(table)) + attribute(3, text(chain)), _CREATE)


def delete_chain(table: str, chain: str) -> Message:
    """A chain with its rules. Refused while anything goes to it."""
    return Message(_DELCHAIN, attribute(1, text(table)) + attribute(3, text(chain)))


def flush_chain(table: str, chain: str) -> Message:
    """All rules of a chain."""
    return Message(_DELRULE, attribute(1, text(table)) + attribute(2, text(chain)))


def new_rule(table: str, chain: str, expressions: Iterable[bytes]) -> Message:
    """A rule behind those that the chain has."""
    body = attribute(1, text(table)) + attribute(2, text(chain))
    return Message(_NEWRULE, body + nested(4, *(nested(1, one) for one in expressions)), _CREATE | _APPEND)


def new_map(table: str, name: str, fields: Sequence[tuple[int, int]], value: tuple[int, int]) -> Message:
    """A map from ranges over several fields. `fields`, `value`: nftables' number of their type, and bytes of each."""
    key_type = 0
    for kind, _ in fields:
        key_type = key_type << 6 | kind
    lengths = [attribute(1, number(size)) for _, size in fields]
    numbers = {3: _RANGES, 4: key_type, 5: 4 * len(fields), 6: value[0], 7: value[1], 10: 1}
    body = attribute(1, text(table)) + attribute(2, text(name))
    body += b"".join(attribute(kind, number(one)) for kind, one in numbers.items())
    body += nested(9, nested(2, *(nested(1, length) for length in lengths)))
    return Message(_NEWSET, body + attribute(13, _MAP_NOTES), _CREATE)


def delete_map(table: str, name: str) -> Message:
    """A map or set with its elements. Refused while a rule reads it."""
    return Message(_DELSET, attribute(1, text(table)) + attribute(2, text(name)))


def flush_elements(table: str, name: str) -> Message:
    """All elements of a map or set."""
    return Message(_DELSETELEM, attribute(1, text(table)) + attribute(2, text(name)))


def new_elements(table: str, name: str, elements: Sequence[Element]) -> list[Message]:
    """Elements of a set or map; nothing for those that are there."""
    return _elements(_NEWSETELEM, table, name, elements, _CREATE)


def delete_elements(table: str, name: str, keys: Iterable[bytes]) -> list[Message]:
    """The whole transaction is refused (ENOENT) if one is not there, or its time is over."""
    return _elements(_DELSETELEM, table, name, [Element(key=key) for key in keys], 0)


def list_chains(table: str) -> Message:
    """For `dump`; the answer has the chains of all tables: see `chain_of`."""
    return Message(_GETCHAIN, attribute(1, text(table)))


def list_elements(table: str, name: str) -> Message:
    """For `dump`; see `elements_of`."""
    return Message(_GETSETELEM, attribute(1, text(table)) + attribute(2, text(name)))


def _elements(kind: int, table: str, name: str, elements: Sequence[Element], flags: int) -> list[Message]:
    head = attribute(1, text(table)) + attribute(2, text(name))
    parts = (elements[at : at + _ELEMENTS_PER_MESSAGE] for at in range(0, len(elements), _ELEMENTS_PER_MESSAGE))
    return [Message(kind, head + nested(3, *(nested(1, _element(one)) for one in part)), flags) for part in parts]


def _element(element: Element) -> bytes:
    packed = nested(1, attribute(1, element.key))
    if element.last is not None:
        packed += nested(10, attribute(1, element.last))
    if element.jump is not None:
        packed += nested(2, verdict("jump", element.jump))
    if element.value is not None:
        packed += nested(2, attribute(1, element.value))
    if element.timeout_s:
        packed += attribute(4, number(max(1, int(element.timeout_s * 1000)), 8))
    return packed


# Answers.


def chain_of(body: bytes, table: str) -> str | None:
    """The name of the chain that an answer to `list_chains` tells of; None: of another table."""
    found = dict(attributes(body))
    return _name(found.get(3, b"")) if _name(found.get(1, b"")) == table else None


def elements_of(body: bytes) -> Iterator[Found]:
    """The elements that one answer to `list_elements` tells. Raises: ValueError where lengths do not fit."""
    for kind, part in attributes(body):
        for _, one in attributes(part) if kind == 3 else ():  # noqa: PLR2004 - NFTA_SET_ELEM_LIST_ELEMENTS
            fields = dict(attributes(one))
            key = dict(attributes(fields.get(1, b""))).get(1, b"")
            value = dict(attributes(fields.get(2, b""))).get(1, b"")
            left = fields.get(5)
            yield Found(key, value, None if left is None else int.from_bytes(left, "big") / 1000)


def _name(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="replace")


# The socket.


def connect() -> socket.socket:
    """A netfilter socket for the namespace of the calling thread. Raises: OSError."""
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
    try:
        return prepare(channel)
    except OSError:
        channel.close()
        raise


def prepare(channel: socket.socket) -> socket.socket:
    """Make a fresh netfilter socket fit for the calls here. Returns it. Raises: OSError."""
    channel.bind((0, 0))
    channel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    channel.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
    channel.setblocking(False)
    return channel


def batch(changes: Sequence[Message], first: int) -> bytes:
    """One transaction as bytes: the kernel does all of it or nothing. The last change asks for an answer."""
    resource = _GENERIC.pack(socket.AF_UNSPEC, 0, NFTABLES)
    parts = [_HEADER.pack(20, _BATCH_BEGIN, _REQUEST, first, 0) + resource]
    last = len(changes) - 1
    parts += [one.pack(NFTABLES, first + 1 + at, _ACK if at == last else 0) for at, one in enumerate(changes)]
    parts.append(_HEADER.pack(20, _BATCH_END, _REQUEST, first + 1 + len(changes), 0) + resource)
    return b"".join(parts)


def transact(channel: socket.socket, changes: Sequence[Message]) -> None:
    """Do all of `changes` in one transaction of nftables.

    The kernel works within `send`, so the answers lie ready behind it and no time can pass. Some ten microseconds for
    ten changes. Raises: OSError with the first refusal's number; then nothing has changed.
    """
    if not changes:
        return
    packed = batch(changes, 0)
    channel.sendto(packed, (0, 0))
    refusal, is_answered = 0, False
    while not is_answered:
        try:
            data = channel.recv(_RECEIVE_BUFFER)
        except BlockingIOError:
            break
        for sequence, message in messages(data):
            if message.kind != _ERROR:
                continue
            code = -int(struct.unpack_from("=i", message.body)[0])
            refusal = refusal or code
            is_answered |= sequence in {0, len(changes)}
    if not is_answered and not refusal:
        refusal = errno.EPROTO
    if refusal:
        _drain(channel)
        raise OSError(refusal, f"nftables: {os.strerror(refusal)}")


def dump(channel: socket.socket, subsystem: int, request: Message) -> list[bytes]:
    """All that the kernel tells for `request`: what follows `nfgenmsg`, per message. Again if it changed meanwhile.

    Takes time with what there is: call it from a thread. Raises: OSError.
    """
    for _ in range(_DUMP_TRIES):
        channel.sendto(request.pack(subsystem, 1, _DUMP), (0, 0))
        found, is_whole = _collect(channel)
        if is_whole:
            return found
    raise OSError(errno.EINTR, "netfilter changed faster than it could be read")


def ask(channel: socket.socket, subsystem: int, request: Message) -> None:
    """One request outside a transaction (connection tracking, log). Raises: OSError with the refusal's number."""
    channel.sendto(request.pack(subsystem, 1, _ACK), (0, 0))
    while True:
        for _, message in messages(channel.recv(_RECEIVE_BUFFER)):
            if message.kind != _ERROR:
                continue  # of a log that is on already
            code = -int(struct.unpack_from("=i", message.body)[0])
            if code:
                raise OSError(code, f"netfilter: {os.strerror(code)}")
            return


def _collect(channel: socket.socket) -> tuple[list[bytes], bool]:
    found: list[bytes] = []
    is_whole = True
    while True:
        data = channel.recv(_RECEIVE_BUFFER)
        is_whole &= not _was_interrupted(data)
        for _, message in messages(data):
            if message.kind == _DONE:
                return found, is_whole
            if message.kind == _ERROR:
                code = -int(struct.unpack_from("=i", message.body)[0])
                raise OSError(code, f"netfilter: {os.strerror(code)}")
            found.append(message.body[_GENERIC.size :])


def _was_interrupted(data: bytes) -> bool:
    at = 0
    while at + _HEADER.size <= len(data):
        length, _, flags, _, _ = _HEADER.unpack_from(data, at)
        if flags & _DUMP_INTERRUPTED:
            return True
        at += max(_HEADER.size, (length + 3) & ~3)
    return False


def _drain(channel: socket.socket) -> None:
    """Take what is left of a refused transaction's answers, so that the next one does not read them."""
    try:
        while channel.recv(_RECEIVE_BUFFER):
            pass
    except BlockingIOError:
        return
