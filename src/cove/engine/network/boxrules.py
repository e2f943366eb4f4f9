"""A sandbox's policy as what the kernel has of it: its chain, its map, its keys in the sets of the router. Pure.

Bits of a packet's mark, as the base rules have them too (`baseline.py`):

    31      whether it is to be looked up once more, with the addresses, among what names brought
    30      whether TCP to 80 and 443 goes to the proxy and QUIC is refused
    29      whether DNS over TLS is refused
    24-27   `Action`
    16-23   the generation of the sandbox's policy: what names brought under an older one fits no more
    0-15    from 1: the place of the outcome in the policy's `Flat`; from 0xF000: a `Code` of the base rules
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2s
from typing import Final

import msgspec

from cove.engine.network import expressions
from cove.engine.network.baseline import BASE_CODES, BROKER_PORT, DNS_PORT, INTERFACES, PROXY_PORT
from cove.engine.network.expressions import number
from cove.engine.network.flatten import Flat, Piece
from cove.engine.network.nfnetlink import Element
from cove.engine.network.steps import Action, Code, Mark
from cove.model.network import NetworkMode, NetworkPolicy, Protocol

NUMBERS: Final = {Protocol.TCP: expressions.TCP, Protocol.UDP: expressions.UDP, Protocol.ICMP: expressions.ICMP}
PROTOCOLS: Final = {number: protocol for protocol, number in NUMBERS.items()}
GENERATIONS: Final = 256
FIELDS: Final = ((7, 4), (12, 1), (13, 2))
"""nftables' numbers of `ipv4_addr`, `inet_proto` and `inet_service`, and the bytes of each."""
VALUE: Final = (19, 4)
"""`mark`."""
_NAME_BYTES: Final = 16
_LOOK_UP: Final = 1 << 31
_WEB_CHECKED: Final = 1 << 30
_NAMED: Final = 1 << 29
_FORM: Final = b"2"
"""Change it with what `flatten.py` makes of a policy: what an older server put in place is not taken for ours then."""
_CHAIN: Final = "box"
_MAP: Final = "pieces"


def mark_value(flat: Flat, place: int, generation: int) -> int:
    """The mark of an outcome."""
    outcome = flat.outcomes[place]
    flags = (_LOOK_UP, bool(outcome.names)), (_WEB_CHECKED, outcome.is_web_checked), (_NAMED, outcome.is_named)
    return sum(bit for bit, is_set in flags if is_set) | outcome.mark.action << 24 | generation << 16 | place + 1


def parse_mark(value: int) -> tuple[Action, int, int]:
    """Action, generation and code of a mark. Raises: ValueError for one that no rule sets."""
    return Action(value >> 24 & 0xF), value >> 16 & 0xFF, value & 0xFFFF


def base_mark(code: int) -> Code | None:
    """What a code of the base rules says; None: it is the place of an outcome."""
    return Code(code - BASE_CODES + Code.DEFAULT) if code >= BASE_CODES else None


def elements_of(flat: Flat, generation: int) -> Iterator[Element]:
    """What a policy's map has."""
    for piece in flat.pieces:
        first, last = _ends(piece)
        yield Element(key=first, last=last, value=native(mark_value(flat, piece.outcome, generation)))


def chain_rules(index: int, generation: int, connections_per_s: int | None) -> list[tuple[bytes, ...]]:
    """The rules of a sandbox's chain."""
    ask = (
        expressions.load_address(expressions.DESTINATION),
        expressions.load_protocol(1),
        expressions.load_port(2),
        *expressions.mark_from(map_of(index, generation)),
    )
    if connections_per_s is None:
        return [ask]
    mark = expressions.set_mark(Mark(Action.REFUSE, Code.RATE).action << 24 | BASE_CODES + Code.RATE - Code.DEFAULT)
    over = expressions.is_over(connections_per_s, max(1, connections_per_s))
    return [(*expressions.is_first(), over, *mark, expressions.accept()), ask]


def fingerprint(policy: NetworkPolicy) -> bytes:
    """By which a later start knows that the kernel has this policy: 12 bytes."""
    return blake2s(_FORM + msgspec.msgpack.encode(policy), digest_size=12).digest()


def native(value: int) -> bytes:
    """As the kernel has marks: in the machine's byte order."""
    return struct.pack("=I", value)


def chain_of(index: int) -> str:
    """The name of a sandbox's chain."""
    return f"{_CHAIN}{index}"


def map_of(index: int, generation: int) -> str:
    """The name of a sandbox's map: a new one for each policy, since filling one costs less than changing one."""
    return f"{_MAP}{index}x{generation}"


def index_of(chain: str) -> int | None:
    """Whose chain this is; None: of the base rules."""
    digits = chain.removeprefix(_CHAIN)
    return int(digits) if chain != digits and digits.isdigit() else None


def bound_key(index: int, address: str) -> bytes:
    """That packets with this source come over this interface only."""
    return f"{INTERFACES}{index}".encode().ljust(_NAME_BYTES, b"\0") + socket.inet_aton(address)


def parse_bound(key: bytes) -> tuple[int, str]:
    """Raises: ValueError for what `bound_key` does not make."""
    name = key[:_NAME_BYTES].rstrip(b"\0").decode()
    if not name.startswith(INTERFACES) or len(key) != _NAME_BYTES + 4:
        raise ValueError("a binding that is not ours")
    return int(name.removeprefix(INTERFACES)), socket.inet_ntoa(key[_NAME_BYTES:])


def link_keys(address: str, others: Iterable[str]) -> list[bytes]:
    """That a sandbox reaches others."""
    return [socket.inet_aton(address) + socket.inet_aton(other) for other in others]


def served_ports(policy: NetworkPolicy, *, has_links: bool) -> frozenset[int]:
    """The gateway's ports that a sandbox has a use for; all others are closed to it."""
    if policy.mode is not NetworkMode.NONE:
        return frozenset((DNS_PORT, PROXY_PORT, BROKER_PORT))
    return frozenset((*((DNS_PORT,) if has_links else ()), *((BROKER_PORT,) if policy.broker else ())))


def served_keys(address: str, ports: Iterable[int]) -> list[bytes]:
    """That a sandbox reaches these ports of the gateway."""
    return [socket.inet_aton(address) + struct.pack("!H2x", port) for port in ports]


def parse_served(key: bytes) -> int:
    """The port of a key."""
    return int(struct.unpack_from("!H", key, 4)[0])


def learned_key(box: str, address: int, mark: int) -> bytes:
    """What names brought: a sandbox, an address, and the mark that is to be looked up."""
    return socket.inet_aton(box) + number(address) + native(mark)


def _ends(piece: Piece) -> tuple[bytes, bytes]:
    numbers = [NUMBERS[protocol] for protocol in piece.protocols]
    return (
        number(piece.first) + bytes([min(numbers), 0, 0, 0]) + number(piece.ports.first, 2) + bytes(2),
        number(piece.last) + bytes([max(numbers), 0, 0, 0]) + number(piece.ports.last, 2) + bytes(2),
    )
