"""Messages of rtnetlink: the bytes that iproute2 sends, and answers of any shape."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.network import rtnetlink as rt

MAC = bytes.fromhex("02c000000a01")


def test_an_address_is_asked_for_as_iproute2_does() -> None:
    # ip addr replace 10.213.0.7/32 dev eth0 (index 2)
    packed = rt.new_address(2, "10.213.0.7").pack(9, ack=True)
    assert packed == bytes.fromhex(
        "28000000 1400 0505 09000000 00000000 02200000 02000000 080002000ad50007 080001000ad50007"
    )


def test_an_address_of_the_link_is_told_from_one_of_the_world() -> None:
    assert rt.new_address(2, "169.254.1.1", is_link=True).body[3] == 253
    assert rt.new_address(2, "169.254.64.1").body[3] == 0


def test_a_default_route_has_a_gateway_and_no_target() -> None:
    # ip route replace default via 169.254.1.1 dev eth0 proto static
    packed = rt.new_route(2, None, "169.254.1.1").pack(1, ack=True)
    assert packed == bytes.fromhex(
        "2c000000 1800 0505 01000000 00000000 02000000fe040001 00000000 08000500a9fe0101 0800040002000000"
    )


def test_a_route_over_a_link_has_its_scope() -> None:
    # ip route replace 10.213.0.7/32 dev sv7 proto static
    packed = rt.new_route(7, "10.213.0.7").pack(1, ack=True)
    assert packed == bytes.fromhex(
        "2c000000 1800 0505 01000000 00000000 02200000fe04fd01 00000000 080001000ad50007 0800040007000000"
    )


def test_a_neighbour_is_permanent() -> None:
    # ip neigh replace 10.213.0.7 lladdr 02:c0:00:00:0a:01 dev sv7
    packed = rt.new_neighbour(7, "10.213.0.7", MAC).pack(1, ack=True)
    assert packed == bytes.fromhex(
        "30000000 1c00 0505 01000000 00000000 02000000 07000000 80000000 080001000ad50007 0a00020002c000000a010000"
    )


def test_a_pair_names_both_ends_and_the_namespace_of_the_other() -> None:
    request = rt.new_pair(
        rt.End(name="sv7", index=1007, mac=MAC), rt.End(name="eth0", index=2, namespace=33, is_up=False)
    )
    ours = dict(rt.attributes(request.body[16:]))
    assert ours[3] == b"sv7\0"
    assert ours[1] == MAC
    info = dict(rt.attributes(ours[18]))
    assert info[1] == b"veth"
    peer = dict(rt.attributes(info[2]))[1]
    theirs = dict(rt.attributes(peer[16:]))
    assert struct.unpack_from("=BxHiII", peer) == (0, 0, 2, 0, 0)
    assert theirs[3] == b"eth0\0"
    assert theirs[28] == struct.pack("=I", 33)


def test_a_rate_beyond_32_bits_is_told_in_64() -> None:
    def options(rate: int) -> dict[int, bytes]:
        return dict(rt.attributes(dict(rt.attributes(rt.limit_rate(2, rate, 65536, 65536).body[20:]))[2]))

    assert 4 not in options(10**9)
    assert options(10**10)[4] == struct.pack("=Q", 10**10)


def test_counters_are_those_of_the_64_bit_attribute() -> None:
    body = struct.pack("=BxHiII", 0, 1, 1007, 1, 0) + rt.attribute(3, b"sv7\0")
    body += rt.attribute(23, struct.pack("=QQQQ", 1, 2, 3_000_000_000_000, 4) + bytes(64))
    assert rt.read_link(body) == rt.Link(
        index=1007, name="sv7", is_up=True, received_bytes=3_000_000_000_000, sent_bytes=4
    )


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=6))
def test_attributes_come_back_as_they_were_written(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(rt.attribute(kind, value) for kind, value in pairs)
    assert list(rt.attributes(data)) == pairs


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        list(rt.messages(data))
    with suppress(ValueError):
        list(rt.attributes(data))
    with suppress(ValueError):
        rt.read_link(data)
    with suppress(ValueError):
        rt.read_address(data)


@pytest.mark.parametrize("length", [0, 3, 999])
def test_an_attribute_longer_than_the_message_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="wrong length"):
        list(rt.attributes(struct.pack("=HH", length, 1)))
