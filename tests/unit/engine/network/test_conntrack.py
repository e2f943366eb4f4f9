"""Entries of connection tracking as the kernel tells them."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from cove.engine.network.conntrack import parse
from cove.engine.network.expressions import nested, number
from cove.engine.network.rtnetlink import attribute


def entry(status: int = 0x10E, protocol: bytes = b"\6", ports: bytes = b"") -> bytes:
    addresses = attribute(1, socket.inet_aton("10.213.0.1")) + attribute(2, socket.inet_aton("11.1.1.1"))
    original = nested(1, addresses), nested(2, attribute(1, protocol), ports)
    return nested(1, *original) + attribute(3, number(status)) + attribute(12, number(77))


def test_a_flow_is_told_as_its_first_packet_had_it() -> None:
    ports = attribute(2, number(40000, 2)) + attribute(3, number(443, 2))
    flow = parse(entry(ports=ports))
    assert flow is not None
    assert (flow.source, flow.destination) == (socket.inet_aton("10.213.0.1"), socket.inet_aton("11.1.1.1"))
    assert (flow.protocol, flow.port, flow.is_proxied) == (6, 443, False)
    assert attribute(12, number(77)) in flow.handle
    proxied = parse(entry(status=0x12E, ports=ports))
    assert proxied is not None
    assert proxied.is_proxied


def test_icmp_has_no_port_and_ipv6_is_left_out() -> None:
    flow = parse(entry(protocol=b"\1"))
    assert flow is not None
    assert flow.port == 0
    assert (
        parse(nested(1, nested(1, attribute(3, bytes(16)), attribute(4, bytes(16))), nested(2, attribute(1, b"\6"))))
        is None
    )
    assert parse(b"") is None


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse(data)
    except ValueError:
        return
