"""One spelling for each host's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.hostname import canonical_host


def wide(text: str) -> str:
    """The same text in full-width characters, which IDNA maps to the plain ones."""
    return "".join(chr(ord(one) + 0xFEE0) for one in text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        (f"{wide('example')}\u3002com", "example.com"),
        ("faß.example", "xn--fa-hia.example"),
        ("r3---sn-abc.example", "r3---sn-abc.example"),
        ("_sip._tcp.example.com", "_sip._tcp.example.com"),
        ("my_bucket.s3.example", "my_bucket.s3.example"),
        ("localhost", "localhost"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("0x7f.example", "0x7f.example"),
    ],
)
def test_a_name_has_one_spelling(text: str, canonical: str) -> None:
    assert canonical_host(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "example..com", ".example.com", "example.com..", "evil.example\0.good.example", "a b.example",
        "example.com:443", "user@example.com", "http://example.com", "example.com/", "*.example.com", "-a.example",
        "a-.example", "a" * 64 + ".example", ".".join(["a" * 63] * 4) + ".example", "example.com\n", "\texample.com",
        "127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "1.2.3.0x4", "0x",
        f"{wide('127')}.0.0.1",
        "127\u30020\u30020\u30021", "[::1]", "::1",
        "fd00:ec2::254", "example.com%00", "exa%6dple.com", "a\u200b\u0000.example",
        "♥" * 10 + ".example\u2028", "a" * 100_000, "ü" * 100_000, "\udce4.example", "a,b", "a\\b.example",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a host name|^this host name"):
        canonical_host(text)


@given(st.text(max_size=300))
def test_the_canonical_form_of_anything_is_its_own(text: str) -> None:
    try:
        once = canonical_host(text)
    except ValueError:
        return
    assert canonical_host(once) == once
    assert canonical_host(f"{once.upper()}.") == once
    assert once.isascii()
    assert len(once) <= 253
