"""The name in a ClientHello: of real ones, in any fragmentation, and of hostile ones."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.engine.network.sni import Hello, NotHello, Repeated, is_tls, read_hello
from hello_support import hello_of

REAL = hello_of("api.example")


def name_of(data: bytes) -> str | None:
    hello = read_hello(data)
    assert hello is not None
    return hello.name


def in_records(hello: bytes, size: int) -> bytes:
    """The same handshake bytes in records of `size`."""
    body = hello[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(piece)) + piece for piece in pieces)


def built(*extensions: tuple[int, bytes], session: bytes = b"", tail: bytes = b"") -> bytes:
    """A ClientHello by hand."""
    content = b"".join(struct.pack("!2H", kind, len(data)) + data for kind, data in extensions)
    body = b"\x03\x03" + b"r" * 32 + bytes([len(session)]) + session + b"\0\x02\x13\x01\x01\0"
    body += struct.pack("!H", len(content)) + content + tail
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def server_name(name: bytes, *, kind: int = 0, more: bytes = b"") -> tuple[int, bytes]:
    entry = bytes([kind]) + struct.pack("!H", len(name)) + name + more
    return 0, struct.pack("!H", len(entry)) + entry


def test_a_real_greeting_says_its_name() -> None:
    assert is_tls(REAL)
    assert read_hello(REAL) == Hello("api.example", len(REAL))
    assert read_hello(REAL + b"what follows") == Hello("api.example", len(REAL))
    assert name_of(hello_of(None)) is None


@settings(deadline=None)  # a loaded machine stands still for longer than any of these takes
@given(st.integers(0, len(REAL) - 1))
def test_a_part_of_a_greeting_needs_more(size: int) -> None:
    assert read_hello(REAL[:size]) is None


@pytest.mark.parametrize("size", [9, 10, 33, 100, 511])
def test_a_greeting_in_many_records_is_put_together(size: int) -> None:
    whole = in_records(REAL, size)
    assert read_hello(whole) == Hello("api.example", len(whole))
    assert read_hello(whole[: len(whole) - 1]) is None


def test_a_greeting_in_too_many_records_is_refused() -> None:
    with pytest.raises(NotHello, match="pieces"):
        read_hello(in_records(REAL, 1))


def test_unknown_extensions_are_skipped() -> None:
    grease, ech = (0x0A0A, b""), (0xFE0D, b"\0" * 100)
    assert name_of(built(grease, server_name(b"outer.example"), ech, session=b"s" * 32)) == "outer.example"


@pytest.mark.parametrize(
    ("why", "hello"),
    [
        ("two server names", built(server_name(b"a.example"), server_name(b"b.example"))),
        ("behind its end", built(server_name(b"a.example", more=b"\0\0\x09b.example"))),
        ("an unknown kind", built(server_name(b"a.example", kind=1))),
        ("behind its end", built(server_name(b"a.example"), tail=b"x")),
        ("session", built(server_name(b"a.example"), session=b"s" * 33)),
        ("no host name", built(server_name("ä.example".encode()))),
        ("ends too early", built((0, b"\0\x20\0\0\x40a"))),
        ("no TLS greeting", b"\x16\x03\x01\0\x04\x02\0\0\0"),
        ("no TLS greeting", b"\x16\x02"),
        ("no TLS greeting", b"\x16\x03\x01\0\x01\x01\x17\x03\x03\0\x01x"),
        ("lawful size", b"\x16\x03\x01\0\0"),
        ("lawful size", b"\x16\x03\x01\xff\xff"),
        ("too long", b"\x16\x03\x01\0\x04\x01\xff\0\0"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(why: str, hello: bytes) -> None:
    with pytest.raises(NotHello, match=why):
        read_hello(hello)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_noise_is_refused_and_nothing_else(noise: bytes) -> None:
    with contextlib.suppress(NotHello):
        read_hello(b"\x16\x03" + noise)


@settings(deadline=None)
@given(st.integers(5, len(REAL) - 1), st.integers(0, 255))
def test_a_changed_byte_never_ends_in_another_error(at: int, value: int) -> None:
    with contextlib.suppress(NotHello):
        read_hello(REAL[:at] + bytes([value]) + REAL[at + 1 :])


CHANGE_CIPHER = b"\x14\x03\x03\0\x01\x01"
ENCRYPTED = b"\x17\x03\x03\0\x04data"
SECOND = [b"", CHANGE_CIPHER]


def fed(stream: bytes, size: int) -> bytes:
    """What passes of a client's stream that arrives in pieces of `size`."""
    first = read_hello(stream)
    assert first is not None
    repeated = Repeated(first)
    return b"".join(repeated.feed(stream[at : at + size]) for at in range(0, len(stream), size))


@pytest.mark.parametrize("before", SECOND)
@pytest.mark.parametrize("size", [1, 7, 100, 10000])
def test_a_second_greeting_has_to_name_the_same_server(before: bytes, size: int) -> None:
    same, other = built(server_name(b"api.example")), built(server_name(b"evil.example"))
    assert fed(REAL + before + same + ENCRYPTED, size) == REAL + before + same + ENCRYPTED
    for second in (other, in_records(other, 20), built()):
        with pytest.raises(NotHello, match="second"):
            fed(REAL + before + second + ENCRYPTED, size)


@pytest.mark.parametrize("size", [1, 7, 10000])
def test_what_is_no_second_greeting_passes_at_once(size: int) -> None:
    key_exchange = b"\x16\x03\x03\0\x04\x10\0\0\0"
    for rest in (ENCRYPTED, CHANGE_CIPHER + ENCRYPTED, key_exchange + REAL, ENCRYPTED + REAL.replace(b"api", b"xyz")):
        assert fed(REAL + rest, size) == REAL + rest
