"""What is closed to everything that works for a caller, and what the operator's list opens of it."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.closed import METADATA, ClosedRanges, Opening, is_special, parse_opening

HOST = "203.0.114.9"
"""An address of the server in public space."""


def ranges(*opened: str) -> ClosedRanges:
    return ClosedRanges(map(parse_opening, opened), own=(HOST, "10.1.2.3", "fe80::1%eth0"), inside=("10.213.0.0/16",))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("169.254.169.254", "closed: 169.254.169.254 (metadata)"),
        ("169.254.1.1", "closed: 169.254.0.0/16"),
        ("10.213.0.7", "closed: 10.213.0.0/16 (sandboxes)"),
        ("10.0.0.1", "closed: 10.0.0.0/8"),
        ("203.0.114.9", "closed: 203.0.114.9 (this server)"),
        ("127.0.0.1", "closed: 127.0.0.0/8"),
        ("239.1.2.3", "closed: 224.0.0.0/3"),
        ("255.255.255.255", "closed: 224.0.0.0/3"),
        ("fd00:ec2::254", "closed: fc00::/7"),
        ("::ffff:10.0.0.1", "closed: ::/8"),
        ("fe80::1", "closed: fe80::1 (this server)"),
        ("0x7f.1", "closed: no address"),
        ("8.8.8.8", None),
        ("203.0.114.10", None),
        ("2606:4700::1111", None),
    ],
)
def test_each_closed_address_says_what_closes_it(address: str, words: str | None) -> None:
    assert ranges().why(address) == words


def test_a_metadata_address_and_the_servers_own_open_only_by_themselves() -> None:
    wide = ranges("169.254.0.0/16", "100.64.0.0/10", "168.63.0.0/16", "192.0.0.0/24", "10.0.0.0/8", "203.0.114.0/24")
    assert all(wide.why(address) for address in METADATA)
    assert wide.why("10.1.2.3")
    assert wide.why(HOST)
    assert wide.why("169.254.3.3") is None
    assert wide.why("10.1.2.4") is None
    exact = ranges("169.254.169.254", "10.1.2.3/32")
    assert exact.why("169.254.169.254") is None
    assert exact.why("10.1.2.3") is None
    assert exact.why("169.254.169.253")


def test_nothing_opens_the_range_of_the_sandboxes() -> None:
    assert ranges("10.0.0.0/8", "10.213.0.0/16", "10.213.0.5").why("10.213.0.5")


def test_a_port_opens_that_port_only() -> None:
    opened = ranges("10.0.0.0/24:5432", "10.0.0.7:80")
    assert opened.why("10.0.0.9", 5432) is None
    assert opened.why("10.0.0.9", 80) == "closed: 10.0.0.0/8"
    assert opened.why("10.0.0.7", 80) is None
    assert opened.why("10.0.0.7") is None
    assert opened.why("10.0.1.7", 5432)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/8", "nonsense", "10.0.0.0:0", "10.0.0.1:x", "::1", "10.1:٣"])
def test_an_opening_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_opening(text)


cidrs = st.builds(
    lambda number, prefix: str(ipaddress.ip_network((number, prefix), strict=False)),
    st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([10 << 24, (169 << 24) + (254 << 16), 3 << 30])),
    st.integers(0, 32),
)
openings = st.lists(st.builds(Opening, cidrs, st.sampled_from([None, 80, 443])), max_size=6)


@given(openings, st.integers(0, 2**32 - 1), st.sampled_from([None, 80, 443, 9]), st.data())
def test_the_spans_agree_with_a_plain_look(
    opened: list[Opening], number: int, port: int | None, data: st.DataObject
) -> None:
    closed = ClosedRanges(opened, own=[HOST], inside=["10.213.0.0/16"])
    edges = [n for span in closed.spans for n in (span.first, span.last, span.first - 1, span.last + 1)]
    number = data.draw(st.one_of(st.just(number), st.sampled_from([e for e in edges if 0 <= e < 2**32])))
    address = ipaddress.IPv4Address(number)
    assert (closed.why(str(address), port) is not None) == _is_closed(opened, address, port)
    assert all(a.last < b.first for a, b in zip(closed.spans, closed.spans[1:], strict=False))


@given(openings, cidrs.filter(lambda text: int(text.rpartition("/")[2]) > 22))
def test_a_range_is_covered_where_every_address_is_closed(opened: list[Opening], network: str) -> None:
    closed = ClosedRanges(opened, own=[HOST], inside=["10.213.0.0/16"])
    every = all(closed.why(str(address)) for address in ipaddress.IPv4Network(network))
    assert (closed.covers(network) is not None) == every


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("10.0.0.0/8", "closed: 10.0.0.0/8"), ("169.254.0.0/16", "closed: 169.254.0.0/16"), ("0.0.0.0/0", None),
        ("10.0.0.0/7", None), ("8.8.8.8/32", None), ("192.0.0.0/16", None),
        ("255.255.255.255/32", "closed: 224.0.0.0/3"),
        ("203.0.114.9/32", "closed: 203.0.114.9 (this server)"),
    ],
)  # fmt: skip
def test_a_wide_range_is_covered_only_if_nothing_of_it_is_open(network: str, words: str | None) -> None:
    assert ranges().covers(network) == words
    assert ranges("10.0.0.0/24:80").covers("10.0.0.0/8") is None


def _is_closed(opened: list[Opening], address: ipaddress.IPv4Address, port: int | None) -> bool:
    if address in ipaddress.ip_network("10.213.0.0/16"):
        return True
    is_exact = str(address) in METADATA or str(address) == HOST
    if not is_exact and not is_special(str(address)):
        return False
    nets = [(ipaddress.IPv4Network(one.network), one.port) for one in opened]
    return not any(
        address in net and (not is_exact or net.prefixlen == 32) and (port is None or at is None or at == port)
        for net, at in nets
    )


def test_a_range_of_the_hosts_own_is_opened_by_each_address_only() -> None:
    opened = [parse_opening("11.9.0.0/16"), parse_opening("11.9.0.7:22")]
    closed = ClosedRanges(opened, own=["11.9.0.0/24"])
    assert closed.why("11.9.0.8", 22) == "closed: 11.9.0.0/24 (this server)"
    assert closed.why("11.9.0.7", 80) == "closed: 11.9.0.0/24 (this server)"
    assert closed.why("11.9.0.7", 22) is None
    assert closed.why("11.9.1.7", 22) is None
