"""DNS messages, as few as we need: a client's query in, our answer out; our query out, an upstream's answer in. Pure.

What comes from either side is hostile. Of an upstream's answer only the answer section is read, within bounds on
records and labels; nothing of it is passed on as bytes, each answer is written anew. That is why this is no general
library: one built for that takes ten seconds, and the event loop with it, for a 64 KiB answer of chained compression
(measured, dnspython 2.9). Sources: RFC 1035 (format), 3597 (which types may be compressed), 6891 (EDNS), 8914 (extended
errors).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from msgspec import Struct

QUERY_BYTES: Final = 1232
"""Of a client's query; also what we take and send by UDP (the size that fits every path, DNS flag day 2020)."""

ANSWER_BYTES: Final = 16 * 1024
"""Of an upstream's answer over TCP. The largest honest ones (keys, long TXT lists) have a quarter of it."""

_RECORDS: Final = 256
_LABELS: Final = 2048
"""Labels read in one message, pointers followed included: bounds the work for chained compression to about 2 ms."""

_NAME_BYTES: Final = 255
_HEADER: Final = struct.Struct("!6H")
_RECORD: Final = struct.Struct("!2HIH")
_POINTER: Final = 0xC0
_POINTED: Final = 0x3FFF
_LABEL_BYTES: Final = 63
_CLASS_IN: Final = 1
_SOA_BYTES: Final = 20
_OPT: Final = 41
_EDE: Final = 15
_BLOCKED: Final = 15
_QR: Final = 0x8000
_OPCODE: Final = 0x7800
_TC: Final = 0x0200
_RD: Final = 0x0100
_RA: Final = 0x0080
_HOST_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_*")
_TTL_MAX: Final = 0x7FFFFFFF


class Kind(IntEnum):
    """Record types that are named somewhere in the code."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    DNAME = 39
    HTTPS = 65
    CAA = 257


class Rcode(IntEnum):
    """How an answer ends."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


_NAMES_AT: Final = {Kind.NS: 0, Kind.CNAME: 0, Kind.PTR: 0, Kind.DNAME: 0, Kind.MX: 2, Kind.SRV: 6}
"""Types whose data end in one name that may be compressed: after so many bytes. (SOA, with two, is its own case.)"""


class Malformed(Exception):
    """No message that we read. The text is for logs."""


class NotOurs(Malformed):
    """An answer to another query than ours; the right one may still come."""


class Query(Struct, frozen=True, kw_only=True):
    """A client's question. `question` are its bytes, for the answer to repeat them letter for letter.

    `name` without the trailing dot, as written (any case); empty: the root. `payload`: what fits into a UDP answer.
    """

    id: int
    name: str
    kind: int
    question: bytes
    recurse: bool
    has_edns: bool
    payload: int


class Record(Struct, frozen=True, kw_only=True):
    """One record of an answer, its names uncompressed. `target`: the name that a CNAME leads to, lower case."""

    name: str
    kind: int
    ttl: int
    data: bytes
    target: str = ""


class Answer(Struct, frozen=True, kw_only=True):
    """What an upstream said."""

    rcode: int
    is_truncated: bool
    records: tuple[Record, ...]


def parse_query(message: bytes) -> Query:
    """Read a client's query. Raises: Malformed (one that deserves FORMERR or no answer at all)."""
    if len(message) > QUERY_BYTES:
        raise Malformed("a query that long is none")
    number, flags, questions, answers, authorities, extras = _header(message)
    if flags & (_QR | _OPCODE) or (questions, answers, authorities) != (1, 0, 0) or extras > 1:
        raise Malformed("not a plain query")
    name, offset = _Names(message).read(12)
    if len(message) < offset + 4:
        raise Malformed("the question is cut off")
    kind, group = struct.unpack_from("!2H", message, offset)
    if group != _CLASS_IN:
        raise Malformed("not of the internet class")
    question, offset = message[12 : offset + 4], offset + 4
    payload = _payload(message, offset) if extras else 0
    return Query(
        id=number, name=name, kind=kind, question=question, recurse=bool(flags & _RD),
        has_edns=payload > 0, payload=max(512, min(payload, QUERY_BYTES)),
    )  # fmt: skip


def parse_answer(message: bytes, *, number: int, name: str, kind: int) -> Answer:
    """Read an upstream's answer to our query. Records of other classes are left out; see `Malformed` for the rest.

    Raises: NotOurs (not an answer to that query), Malformed (beyond our bounds).
    """
    theirs, flags, questions, answers, _, _ = _header(message)
    if theirs != number or not flags & _QR or flags & _OPCODE or questions != 1:
        raise NotOurs("not an answer to our query")
    names = _Names(message)
    asked, offset = names.read(12)
    if len(message) < offset + 4 or asked.lower() != name or message[offset : offset + 4] != _tail(kind):
        raise NotOurs("the answer to another question")
    offset += 4
    rcode = flags & 0xF
    if flags & _TC:
        return Answer(rcode=rcode, is_truncated=True, records=())
    if answers > _RECORDS:
        raise Malformed(f"an answer of {answers} records")
    records: list[Record] = []
    for _ in range(answers):
        record, offset = _record(names, message, offset)
        if record is not None:
            records.append(record)
    return Answer(rcode=rcode, is_truncated=False, records=tuple(records))


def build_query(number: int, name: str, kind: int) -> bytes:
    """Our query to an upstream: recursion desired, EDNS with our payload size."""
    opt = b"\0" + struct.pack("!2HIH", _OPT, QUERY_BYTES, 0, 0)
    return _HEADER.pack(number, _RD, 1, 0, 0, 1) + encode_name(name) + _tail(kind) + opt


def build_answer(
    query: Query, rcode: int, records: Sequence[Record] = (), *, limit: int = 0xFFFF, blocked: str = ""
) -> bytes:
    """Our answer to a client: truncated (TC, no records) where it is longer than `limit`.

    `blocked`: why a name is refused, which clients that speak EDNS get as an extended error.
    """
    extra = _opt(blocked) if query.has_edns else b""
    body = _Writer(query)
    for record in records:
        body.add(record)
    flags = _QR | _RA | (_RD if query.recurse else 0) | rcode
    counts = (1, len(records), 0, 1 if extra else 0)
    message = _HEADER.pack(query.id, flags, *counts) + bytes(body.data[12:]) + extra
    if len(message) <= limit:
        return message
    return _HEADER.pack(query.id, flags | _TC, 1, 0, 0, counts[3]) + query.question + extra


def build_refusal(message: bytes, rcode: int) -> bytes | None:
    """An answer to what `parse_query` did not take, or None: it had not even a header, or was an answer itself."""
    if len(message) < _HEADER.size or message[2] & 0x80:
        return None
    number, flags = struct.unpack_from("!2H", message)
    return _HEADER.pack(number, _QR | _RA | (flags & (_OPCODE | _RD)) | rcode, 0, 0, 0, 0)


def encode_name(name: str) -> bytes:
    """A name as labels, uncompressed. Raises: Malformed."""
    wire = bytearray()
    for label in name.split(".") if name else ():
        data = label.encode("ascii", "replace")
        if not 0 < len(data) <= _LABEL_BYTES or not _HOST_BYTES.issuperset(data):
            raise Malformed("no name")
        wire.append(len(data))
        wire += data
    if len(wire) >= _NAME_BYTES:
        raise Malformed("a name that is too long")
    return bytes(wire) + b"\0"


class _Names:
    """Reads the names of one message, within the bound on labels of the whole message."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._left = _LABELS

    def read(self, offset: int) -> tuple[str, int]:
        """The name at `offset` and where what follows it begins.

        A pointer leads strictly backwards, so a chain of them ends. Raises: Malformed.
        """
        message, labels, size = self._message, list[str](), 1
        behind, lowest = 0, offset
        while True:
            self._left -= 1
            if offset >= len(message) or self._left < 0:
                raise Malformed("a name that is cut off, or too many labels")
            length = message[offset]
            if length >= _POINTER:
                behind, offset = behind or offset + 2, self._pointed(offset, lowest)
                lowest = offset
                continue
            if length > _LABEL_BYTES:
                raise Malformed("a label of an unknown kind")
            if length == 0:
                return ".".join(labels), behind or offset + 1
            label = message[offset + 1 : offset + 1 + length]
            size += length + 1
            if len(label) < length or size > _NAME_BYTES or not _HOST_BYTES.issuperset(label):
                raise Malformed("a name that is cut off, too long, or of other than host letters")
            labels.append(label.decode("ascii"))
            offset += length + 1

    def _pointed(self, offset: int, lowest: int) -> int:
        if offset + 2 > len(self._message):
            raise Malformed("a pointer that is cut off")
        target = struct.unpack_from("!H", self._message, offset)[0] & _POINTED
        if not _HEADER.size <= target < lowest:
            raise Malformed("a pointer that does not lead back")
        return int(target)


class _Writer:
    """A message being written; names that stand in it already are pointed to."""

    def __init__(self, query: Query) -> None:
        self.data = bytearray(_HEADER.size) + query.question
        self._places: dict[str, int] = {query.name.lower(): _HEADER.size}

    def add(self, record: Record) -> None:
        self._name(record.name.lower())
        if record.kind != Kind.CNAME:
            self.data += _RECORD.pack(record.kind, _CLASS_IN, record.ttl, len(record.data)) + record.data
            return
        self.data += _RECORD.pack(record.kind, _CLASS_IN, record.ttl, 0)
        start = len(self.data)
        self._name(record.target)
        struct.pack_into("!H", self.data, start - 2, len(self.data) - start)

    def _name(self, name: str) -> None:
        place = self._places.get(name)
        if place is not None and name:
            self.data += struct.pack("!H", _POINTER << 8 | place)
            return
        if len(self.data) <= _POINTED:
            self._places[name] = len(self.data)
        self.data += encode_name(name)


def _header(message: bytes) -> tuple[int, int, int, int, int, int]:
    if len(message) < _HEADER.size:
        raise Malformed("no header")
    return _HEADER.unpack_from(message)


def _tail(kind: int) -> bytes:
    return struct.pack("!2H", kind, _CLASS_IN)


def _payload(message: bytes, offset: int) -> int:
    """The payload size that a query's OPT record offers, at least 512. Raises: Malformed (another record)."""
    if len(message) < offset + 1 + _RECORD.size or message[offset] != 0:
        raise Malformed("an extra record that is not EDNS")
    kind, size, _, length = _RECORD.unpack_from(message, offset + 1)
    if kind != _OPT or len(message) < offset + 1 + _RECORD.size + length:
        raise Malformed("an extra record that is not EDNS")
    return max(512, int(size))


def _opt(blocked: str) -> bytes:
    """Our OPT record; with the extended error 15, Blocked, and its words."""
    option = b""
    if blocked:
        text = blocked.encode("utf-8", "replace")[:200]
        option = struct.pack("!3H", _EDE, len(text) + 2, _BLOCKED) + text
    return b"\0" + struct.pack("!2HIH", _OPT, QUERY_BYTES, 0, len(option)) + option


def _record(names: _Names, message: bytes, offset: int) -> tuple[Record | None, int]:
    name, offset = names.read(offset)
    if len(message) < offset + _RECORD.size:
        raise Malformed("a record that is cut off")
    kind, group, ttl, length = _RECORD.unpack_from(message, offset)
    start = offset + _RECORD.size
    end = start + length
    if len(message) < end:
        raise Malformed("a record that is cut off")
    if group != _CLASS_IN:
        return None, end
    data, target = _data(names, message, kind, start, end)
    ttl = ttl if ttl <= _TTL_MAX else 0
    return Record(name=name.lower(), kind=kind, ttl=ttl, data=data, target=target), end


def _data(names: _Names, message: bytes, kind: int, start: int, end: int) -> tuple[bytes, str]:
    """A record's data with names uncompressed, and a CNAME's target."""
    if kind == Kind.A and end - start != 4:  # noqa: PLR2004 - an IPv4 address
        raise Malformed("an address that is none")
    if kind == Kind.SOA:
        primary, offset = names.read(start)
        mailbox, offset = names.read(offset)
        if end - offset != _SOA_BYTES:
            raise Malformed("a start of authority that is none")
        return encode_name(primary) + encode_name(mailbox) + message[offset:end], ""
    if kind not in _NAMES_AT:
        return message[start:end], ""
    offset = start + _NAMES_AT[Kind(kind)]
    target, behind = names.read(offset)
    if behind != end:
        raise Malformed("a name with something behind it")
    return message[start:offset] + encode_name(target), target.lower() if kind == Kind.CNAME else ""
