"""Expressions of nftables as bytes: what a rule of a sandbox's chain is made of. Pure.

Values travel in registers of 32 bits, of which a rule has sixteen; a key of several parts lies in registers that follow
each other. Numbers: linux/netfilter/nf_tables.h. The same rules as text: `nft --debug=netlink`.
"""

from __future__ import annotations

import struct
from typing import Final

from cove.engine.network.rtnetlink import attribute

TCP: Final = 6
UDP: Final = 17
ICMP: Final = 1

SOURCE: Final = 12
DESTINATION: Final = 16
"""Where the addresses are in an IPv4 header."""

_NESTED: Final = 0x8000
_REGISTER: Final = 8
"""NFT_REG32_00: the first of the sixteen."""
_NETWORK: Final = 1
_TRANSPORT: Final = 2
_MARK: Final = 3
_L4PROTO: Final = 16
_CT_STATUS: Final = 2
_CONFIRMED: Final = 8
_EQUAL: Final = 0
_RESULT: Final = 8
"""A register behind those of a key."""
_VERDICTS: Final = {"accept": 1, "jump": -3}
_LIMIT_OVER: Final = 1


def number(value: int, size: int = 4) -> bytes:
    """Big-endian."""
    return value.to_bytes(size, "big")


def text(value: str) -> bytes:
    """With the NUL that the kernel wants."""
    return value.encode() + b"\0"


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute of attributes."""
    value = b"".join(parts)
    return struct.pack("=HH", 4 + len(value), kind | _NESTED) + value


def verdict(word: str, chain: str | None = None) -> bytes:
    """The data of a verdict: `accept`, or `jump` to `chain`."""
    packed = attribute(1, struct.pack("!i", _VERDICTS[word]))
    return nested(2, packed + (attribute(2, text(chain)) if chain is not None else b""))


def load_address(offset: int, register: int = 0) -> bytes:
    """The source or destination address."""
    return _payload(_NETWORK, offset, 4, register)


def load_port(register: int = 0) -> bytes:
    """The destination port; what is no TCP and no UDP has other bytes there."""
    return _payload(_TRANSPORT, 2, 2, register)


def load_protocol(register: int = 0) -> bytes:
    """The protocol inside IPv4, one byte."""
    return _expression("meta", attribute(1, number(_REGISTER + register)) + attribute(2, number(_L4PROTO)))


def is_first() -> tuple[bytes, ...]:
    """Go on only with the very first packet of a connection, as long as tracking has not noted it."""
    load = _expression("ct", attribute(1, number(_REGISTER)) + attribute(2, number(_CT_STATUS)))
    registers = b"".join(attribute(at, number(value)) for at, value in enumerate((_REGISTER, _REGISTER, 4), 1))
    confirmed = struct.pack("=I", _CONFIRMED)
    keep = _expression("bitwise", registers + _data(4, confirmed) + _data(5, bytes(4)))
    return load, keep, _compare(_EQUAL, bytes(4))


def set_mark(value: int) -> tuple[bytes, bytes]:
    """Mark the packet. The kernel has marks in the machine's byte order."""
    load = _expression("immediate", attribute(1, number(_REGISTER)) + _data(2, struct.pack("=I", value)))
    return load, _expression("meta", attribute(2, number(_MARK)) + attribute(3, number(_REGISTER)))


def mark_from(name: str) -> tuple[bytes, bytes]:
    """Mark the packet with what this map gives for the key in the registers; go on only if it has it."""
    fields = attribute(1, text(name)) + attribute(2, number(_REGISTER)) + attribute(3, number(_REGISTER + _RESULT))
    mark = attribute(2, number(_MARK)) + attribute(3, number(_REGISTER + _RESULT))
    return _expression("lookup", fields), _expression("meta", mark)


def is_over(per_second: int, burst: int) -> bytes:
    """Go on only with what comes faster than so many packets a second."""
    fields = (number(per_second, 8), number(1, 8), number(burst), number(0), number(_LIMIT_OVER))
    return _expression("limit", b"".join(attribute(at, field) for at, field in enumerate(fields, 1)))


def accept() -> bytes:
    """End the evaluation at this hook: the packet goes on."""
    return _expression("immediate", attribute(1, number(0)) + nested(2, verdict("accept")))


def _payload(base: int, offset: int, size: int, register: int) -> bytes:
    fields = (_REGISTER + register, base, offset, size)
    return _expression("payload", b"".join(attribute(at, number(field)) for at, field in enumerate(fields, 1)))


def _compare(operator: int, value: bytes) -> bytes:
    return _expression("cmp", attribute(1, number(_REGISTER)) + attribute(2, number(operator)) + _data(3, value))


def _data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(1, value))


def _expression(name: str, body: bytes) -> bytes:
    return attribute(1, text(name)) + nested(2, body)
