"""DNS messages: what honest ones say, and that hostile ones are refused quickly. dnspython is the second opinion."""

from __future__ import annotations

import contextlib
import struct
import time

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.engine.network.dnswire import (
    Answer,
    Kind,
    Malformed,
    NotOurs,
    Query,
    Rcode,
    Record,
    build_answer,
    build_query,
    build_refusal,
    encode_name,
    parse_answer,
    parse_query,
)

LABELS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
NAMES = st.lists(LABELS, min_size=1, max_size=8).map(".".join)


def answer_of(text: str, *, name: str = "www.example", kind: int = Kind.A, flags: str = "QR RD RA") -> bytes:
    """An answer with the records of `text`, as dnspython writes it."""
    message = dns.message.make_response(dns.message.from_wire(build_query(7, name, kind)))
    message.flags = dns.flags.from_text(flags)
    for line in filter(None, text.splitlines()):
        owner, ttl, rtype, data = line.split(None, 3)
        message.answer.append(dns.rrset.from_text(f"{owner}.", int(ttl), "IN", rtype, data))
    return message.to_wire()


def read(message: bytes, *, name: str = "www.example", kind: int = Kind.A) -> Answer:
    return parse_answer(message, number=7, name=name, kind=kind)


@settings(deadline=None)  # a loaded machine stands still for longer than any of these takes
@given(NAMES, st.integers(0, 0xFFFF), st.sampled_from(["A", "AAAA", "TXT"]))
def test_queries_are_read_as_dnspython_writes_them(name: str, number: int, kind: str) -> None:
    message = dns.message.make_query(name, kind, use_edns=True, payload=1400, id=number)
    query = parse_query(message.to_wire())
    assert (query.id, query.name, query.kind, query.payload) == (number, name, dns.rdatatype.from_text(kind), 1232)
    assert query.recurse
    assert query.has_edns


def test_the_case_of_a_question_comes_back() -> None:
    query = parse_query(dns.message.make_query("wWw.ExAmPle", "A", use_edns=False).to_wire())
    answer = dns.message.from_wire(build_answer(query, Rcode.NXDOMAIN))
    assert answer.question[0].name.to_text() == "wWw.ExAmPle."
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert answer.edns == -1
    assert query.payload == 512


@settings(deadline=None)
@given(NAMES, st.lists(st.binary(min_size=4, max_size=4), max_size=20), st.integers(0, 300))
def test_answers_are_written_as_dnspython_reads_them(name: str, addresses: list[bytes], ttl: int) -> None:
    query = parse_query(dns.message.make_query(name, "A").to_wire())
    alias = Record(name=name, kind=Kind.CNAME, ttl=ttl, data=b"", target=f"far.{name}"[:200])
    records = [alias, *(Record(name=alias.target, kind=Kind.A, ttl=ttl, data=one) for one in addresses)]
    answer = dns.message.from_wire(build_answer(query, Rcode.NOERROR, records))
    found = [item.to_text() for rrset in answer.answer if rrset.rdtype == dns.rdatatype.A for item in rrset]
    assert sorted(found) == sorted({".".join(map(str, one)) for one in addresses})
    back = parse_answer(build_answer(query, Rcode.NOERROR, records), number=query.id, name=name, kind=Kind.A)
    assert [record.data for record in back.records if record.kind == Kind.A] == addresses
    assert back.records[0].target == alias.target


def test_what_does_not_fit_is_truncated() -> None:
    query = parse_query(dns.message.make_query("big.example", "A", use_edns=False).to_wire())
    records = [Record(name="big.example", kind=Kind.A, ttl=1, data=bytes([9, 9, 0, at])) for at in range(100)]
    message = build_answer(query, Rcode.NOERROR, records, limit=query.payload)
    assert dns.message.from_wire(message).flags & dns.flags.TC
    assert len(message) <= 512
    assert len(dns.message.from_wire(build_answer(query, Rcode.NOERROR, records)).answer[0]) == 100


def test_a_refusal_says_why_to_who_speaks_edns() -> None:
    query = parse_query(dns.message.make_query("evil.example", "A", use_edns=True).to_wire())
    answer = dns.message.from_wire(build_answer(query, Rcode.NXDOMAIN, blocked="rule 2: deny *.example"))
    option = answer.options[0]
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, option.text) == (15, "rule 2: deny *.example")


def test_records_of_many_kinds_are_uncompressed() -> None:
    text = "www.example 60 CNAME a.www.example.\na.www.example 60 MX 10 mail.www.example.\n"
    text += 'a.www.example 5 SOA ns.www.example. admin.www.example. 1 2 3 4 5\na.www.example 5 TXT "x y"\n'
    found = read(answer_of(text))
    assert found.records[0].target == "a.www.example"
    by_kind = {record.kind: record.data for record in found.records}
    assert by_kind[Kind.MX] == b"\0\x0a" + encode_name("mail.www.example")
    assert by_kind[Kind.SOA] == encode_name("ns.www.example") + encode_name("admin.www.example") + struct.pack(
        "!5I", 1, 2, 3, 4, 5
    )
    assert by_kind[Kind.TXT] == b"\x03x y"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("another id", b"\0\x08" + answer_of("")[2:]),
        ("another name", answer_of("", name="other.example")),
        ("another type", answer_of("", kind=Kind.TXT)),
        ("a query", build_query(7, "www.example", Kind.A)),
    ],
)
def test_an_answer_to_something_else_is_not_ours(name: str, message: bytes) -> None:
    with pytest.raises(NotOurs):
        read(message)


HEAD = struct.pack("!6H", 7, 0x8180, 1, 1, 0, 0) + encode_name("www.example") + b"\0\1\0\1"
FIXED = struct.pack("!2HIH", 1, 1, 60, 4)


@pytest.mark.parametrize(
    ("why", "body"),
    [
        ("a pointer to itself", b"\xc0" + bytes([len(HEAD)]) + FIXED + b"abcd"),
        ("a pointer forwards", b"\xc0" + bytes([len(HEAD) + 4]) + FIXED + b"abcd"),
        ("a pointer into the header", b"\xc0\x02" + FIXED + b"abcd"),
        ("a label of an unknown kind", b"\x80a" + FIXED + b"abcd"),
        ("a dot inside a label", b"\x03a.b\0" + FIXED + b"abcd"),
        ("a NUL inside a label", b"\x03a\0b\0" + FIXED + b"abcd"),
        ("a name beyond 255 bytes", b"".join(b"\x3f" + b"a" * 63 for _ in range(4)) + b"\0" + FIXED + b"abcd"),
        ("an address of three bytes", b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 60, 3) + b"abc"),
        ("data beyond the end", b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 60, 400) + b"abcd"),
        ("nothing at all", b""),
    ],
)
def test_what_is_hostile_is_malformed(why: str, body: bytes) -> None:
    with pytest.raises(Malformed):
        read(HEAD + body)


def test_64_kib_of_chained_compression_cost_nothing() -> None:
    labels = b"".join(b"\x01a" for _ in range(120)) + b"\0"
    record = b"\xc0\x0c" + struct.pack("!2HIH", Kind.CNAME, 1, 60, 4) + b"\x01b\xc0\x10"
    for count in (4000, 256):
        head = struct.pack("!6H", 7, 0x8180, 1, count, 0, 0) + labels + b"\0\1\0\1"
        start = time.process_time()
        with pytest.raises(Malformed):
            read((head + record * count)[:65535], name=".".join("a" * 120))
        assert time.process_time() - start < 0.3


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_noise_is_refused_and_nothing_else(noise: bytes) -> None:
    for parse in (parse_query, lambda message: read(HEAD[:4] + b"\0\1\0\4" + message)):
        with contextlib.suppress(Malformed):
            parse(noise)
    refusal = build_refusal(noise, Rcode.FORMERR)
    assert refusal is None or len(refusal) == 12


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("!6H", 1, 0x0100, 2, 0, 0, 0) + encode_name("a.example") + b"\0\1\0\1",
        struct.pack("!6H", 1, 0x8100, 1, 0, 0, 0) + encode_name("a.example") + b"\0\1\0\1",
        struct.pack("!6H", 1, 0x2800, 1, 0, 0, 0) + encode_name("a.example") + b"\0\1\0\1",
        struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + encode_name("a.example") + b"\0\1\0\3",
        struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + encode_name("a.example") + b"\0",
        struct.pack("!6H", 1, 0x0100, 1, 0, 0, 1) + encode_name("a.example") + b"\0\1\0\1" + b"\1a\0" * 9,
    ],
)
def test_what_is_no_plain_query_is_malformed(message: bytes) -> None:
    with pytest.raises(Malformed):
        parse_query(message)


def test_a_query_is_what_dnspython_reads() -> None:
    query = dns.message.from_wire(build_query(513, "api.example", Kind.A))
    assert (query.id, query.question[0].to_text(), query.payload) == (513, "api.example. IN A", 1232)


def test_an_answer_to_an_answer_is_none() -> None:
    asked = Query(id=1, name="a", kind=1, question=b"\x01a\0\0\1\0\1", recurse=True, has_edns=False, payload=512)
    assert build_refusal(build_answer(asked, Rcode.NOERROR), Rcode.FORMERR) is None
