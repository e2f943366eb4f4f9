"""A DNS server for tests that answers what it is told to, well-formed or hostile; bytes are made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, HTTPS, ANY = 1, 2, 5, 6, 12, 15, 16, 28, 33, 65, 255
NXDOMAIN, SERVFAIL, REFUSED = 3, 2, 5
_HEADER = struct.Struct("!6H")


def encode_name(name: str) -> bytes:
    """A name in labels; a name of latin-1 characters may hold any byte but a dot."""
    labels = [label.encode("latin-1") for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def record(name: str, kind: int, data: bytes, ttl: int = 60) -> bytes:
    return encode_name(name) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def address_record(name: str, address: str, ttl: int = 60) -> bytes:
    parsed = ipaddress.ip_address(address)
    return record(name, A if parsed.version == 4 else AAAA, parsed.packed, ttl)


def cname_record(name: str, target: str, ttl: int = 60) -> bytes:
    return record(name, CNAME, encode_name(target), ttl)


@dataclass(frozen=True)
class Query:
    """One question as it came."""

    ident: int
    name: str
    """In lower case, without the last dot."""
    kind: int
    question: bytes
    """The question section, to be repeated."""
    transport: str
    source: str
    server: str
    at: float = field(default_factory=time.monotonic)

    @classmethod
    def parse(cls, data: bytes, transport: str, source: str, server: str) -> Query:
        ident = int(_HEADER.unpack_from(data)[0])
        labels: list[str] = []
        at = _HEADER.size
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode("latin-1"))
            at += 1 + length
        (kind,) = struct.unpack_from("!H", data, at + 1)
        return cls(ident, ".".join(labels).lower(), kind, data[_HEADER.size : at + 5], transport, source, server)

    def reply(
        self, answers: Sequence[bytes] = (), rcode: int = 0, extra: Sequence[bytes] = (), flags: int = 0
    ) -> bytes:
        head = _HEADER.pack(self.ident, 0x8180 | flags | rcode, 1, len(answers), 0, len(extra))
        return head + self.question + b"".join(answers) + b"".join(extra)


@dataclass(frozen=True)
class Late:
    """An answer that is made after a while."""

    seconds: float
    then: Callable[[Query], bytes | Late | None]


Answer = Callable[[Query], bytes | Late | None]
"""Makes the bytes of an answer; None: none is sent."""


def addresses(*texts: str, ttl: int = 60) -> Answer:
    """The address records of the asked name."""

    def answer(query: Query) -> bytes:
        kinds = {A: 4, AAAA: 6}
        fitting = [text for text in texts if ipaddress.ip_address(text).version == kinds.get(query.kind)]
        return query.reply([address_record(query.name, text, ttl) for text in fitting])

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Another answer each time an address is asked for, the last one for good."""
    count = 0
    lock = threading.Lock()

    def answer(query: Query) -> bytes | Late | None:
        nonlocal count
        with lock:
            turn = min(count, len(answers) - 1)
            count += query.kind == A
        return answers[turn](query)

    return answer


def alias(target: str, *texts: str, ttl: int = 60) -> Answer:
    """A CNAME, and the target's addresses with it."""

    def answer(query: Query) -> bytes:
        chain = [cname_record(query.name, target, ttl)]
        if query.kind == A:
            chain += [address_record(target, text, ttl) for text in texts if ":" not in text]
        return query.reply(chain)

    return answer


def late(seconds: float, then: Answer) -> Answer:
    """The same, so much later; other questions are answered meanwhile."""
    return lambda _query: Late(seconds, then)


def never(_query: Query) -> None:
    """No answer at all."""


def wrong_ident(query: Query) -> bytes:
    """What somebody who cannot see the question would send."""
    whole = addresses("11.0.0.66")(query)
    assert isinstance(whole, bytes)
    return struct.pack("!H", query.ident ^ 0x5555) + whole[2:]


def wrong_question(query: Query) -> bytes:
    """An answer to something that nobody asked."""
    other = encode_name("other.example") + struct.pack("!HH", A, 1)
    head = _HEADER.pack(query.ident, 0x8180, 1, 1, 0, 0)
    return head + other + address_record("other.example", "11.0.0.66")


def unasked_extra(query: Query) -> bytes:
    """A good answer, with an address for somebody else's name beside it: cache poison."""
    poison = [address_record("good.example", "11.0.0.66", 86400)]
    return query.reply([address_record(query.name, "11.0.0.12"), *poison], extra=poison)


def pointer_loop(query: Query) -> bytes:
    """An answer whose owner name is a compression pointer to itself."""
    at = _HEADER.size + len(query.question)
    looped = struct.pack("!H", 0xC000 | at) + struct.pack("!HHIH", A, 1, 60, 4) + b"\x0b\0\0\x42"
    return query.reply([looped])


def huge(query: Query) -> bytes:
    """As much as a TCP answer can be; over UDP, the sign to come again by TCP."""
    if query.transport == "udp":
        return query.reply(flags=0x0200)
    room = 65535 - _HEADER.size - len(query.question)
    one = len(address_record(query.name, "11.0.0.12"))
    return query.reply([address_record(query.name, f"11.9.{n >> 8}.{n & 255}") for n in range(room // one)])


def by_tcp_only(then: Answer) -> Answer:
    """Truncated over UDP."""
    return lambda query: query.reply(flags=0x0200) if query.transport == "udp" else then(query)


def garbage(query: Query) -> bytes:
    """Right head, then nothing that could be parsed."""
    return _HEADER.pack(query.ident, 0x8180, 1, 40000, 40000, 40000) + b"\xff" * 40


def refused(query: Query) -> bytes:
    return query.reply(rcode=REFUSED)


class NameServer:
    """Answers by name, `*.zone` for all below a zone; what is not known does not exist. `asked` is everything heard."""

    def __init__(self, names: dict[str, Answer]) -> None:
        self.names = dict(names)
        self.asked: list[Query] = []

    def forget(self) -> None:
        self.asked.clear()

    def asked_names(self) -> set[str]:
        return {query.name for query in self.asked}

    async def answer(self, query: Query) -> bytes | None:
        self.asked.append(query)
        found = self.names.get(query.name)
        parts = query.name.split(".")
        for depth in range(1, len(parts)):
            found = found or self.names.get("*." + ".".join(parts[depth:]))
        reply = query.reply(rcode=NXDOMAIN) if found is None else found(query)
        while isinstance(reply, Late):
            await asyncio.sleep(reply.seconds)
            reply = reply.then(query)
        return reply

    async def over_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, any number of questions."""
        source, server = writer.get_extra_info("peername")[0], writer.get_extra_info("sockname")[0]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, struct.error, IndexError):
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                query = Query.parse(await reader.readexactly(length), "tcp", source, server)
                if (reply := await self.answer(query)) is not None:
                    writer.write(struct.pack("!H", len(reply)) + reply)
                    await writer.drain()
        writer.close()

    def over_udp(self, server: str) -> DatagramAnswers:
        """The protocol of one UDP socket."""
        return DatagramAnswers(self, server)


class DatagramAnswers(asyncio.DatagramProtocol):
    def __init__(self, names: NameServer, server: str) -> None:
        self._names = names
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # asyncio's own is none by class

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        with contextlib.suppress(struct.error, IndexError):
            query = Query.parse(data, "udp", addr[0], self._server)
            task = asyncio.get_running_loop().create_task(self._reply(query, addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _reply(self, query: Query, addr: tuple[str, int]) -> None:
        reply = await self._names.answer(query)
        if reply is not None and self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(reply, addr)
