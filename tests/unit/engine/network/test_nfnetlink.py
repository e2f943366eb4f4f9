"""Messages to nftables as bytes, and what comes back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.network import expressions, nfnetlink
from cove.engine.network.boxrules import FIELDS, VALUE
from cove.engine.network.expressions import nested, number
from cove.engine.network.nfnetlink import Element
from cove.engine.network.rtnetlink import attribute

# What `strace -e sendmsg nft -f` (nftables 1.0.6) shows for
#   table ip t { map pieces7 { type ipv4_addr . inet_proto . inet_service : mark; flags interval
#                elements = { 1.0.0.0-1.0.0.255 . 6-17 . 0-65535 : 0x01000001 } } }
_NEWSET = bytes.fromhex(
    "a4000000090a01040300000000000000020000000600010074000000"
    "0c00020070696563657337000800030000000 08c08000400 0000730d08000500 0000000c"
    "08000600 00000013 08000700 00000004 08000a00 00000001"
    "2c000980 28000280 0c000180 08000100 00000004 0c000180 08000100 00000001 0c000180 08000100 00000002"
    "20000d00 0004000000000104010000000308 0004 0d00000001000604 00000000".replace(" ", "")
)
_NEWSETELEM = bytes.fromhex(
    "6c0000000c0a010404000000000000000200000006000100740000000c000200706965636573370008000400000000013c000380"
    "38000180140001801000010001000000060000000000000014000a8010000100010000ff11000000ffff00000c0002800800010001000001"
)
# The same of `limit rate over 10/second burst 20 packets accept`.
_RULE = bytes.fromhex(
    "440001800a0001006c696d6974000000340002800c000100000000000000000a0c00020000000000000000010800030000000014"
    "080004000000000008000500000000013000018 00e000100696d6d6564696174650000001c000280080001000000000010000280"
    "0c0002800800010000000001".replace(" ", "")
)


def test_a_map_of_ranges_is_made_as_nft_makes_it() -> None:
    assert nfnetlink.new_map("t", "pieces7", FIELDS, VALUE).pack(nfnetlink.NFTABLES, 3) == _NEWSET


def test_an_element_is_made_as_nft_makes_it() -> None:
    one = Element(
        key=bytes.fromhex("010000000600000000000000"),
        last=bytes.fromhex("010000ff11000000ffff0000"),
        value=struct.pack("=I", 0x01000001),
    )
    (message,) = nfnetlink.new_elements("t", "pieces7", [one])
    packed = message.pack(nfnetlink.NFTABLES, 4)
    # nft names the map by its number of the transaction too (attribute 4), which those need that have no name yet.
    by_number = bytes.fromhex("0800040000000001")
    assert by_number in _NEWSETELEM
    assert packed[4:] == _NEWSETELEM.replace(by_number, b"")[4:]
    assert len(packed) == len(_NEWSETELEM) - len(by_number) == int.from_bytes(packed[:4], "little")


def test_a_rule_is_made_as_nft_makes_it() -> None:
    message = nfnetlink.new_rule("t", "c", (expressions.is_over(10, 20), expressions.accept()))
    assert message.body.endswith(_RULE)


def test_a_transaction_asks_for_an_answer_to_its_last_change_only() -> None:
    changes = [nfnetlink.new_chain("t", "a"), nfnetlink.flush_chain("t", "a"), nfnetlink.delete_chain("t", "a")]
    packed = nfnetlink.batch(changes, 0)
    seen: list[tuple[int, int, int]] = []
    at = 0
    while at < len(packed):
        length, kind, flags, sequence, _ = struct.unpack_from("=LHHLL", packed, at)
        seen.append((kind, flags & 0x4, sequence))
        at += length
    assert seen == [(16, 0, 0), (0xA03, 0, 1), (0xA08, 0, 2), (0xA05, 4, 3), (17, 0, 4)]


def test_many_elements_go_in_several_messages_since_an_attribute_has_16_bits_of_length() -> None:
    messages = nfnetlink.new_elements("t", "s", [Element(key=number(n)) for n in range(2000)])
    assert len(messages) > 1
    for message in messages:
        assert len(message.body) < 65536
    assert sum(message.body.count(bytes.fromhex("08000100")) for message in messages) == 2000


def test_no_elements_make_no_message() -> None:
    assert nfnetlink.new_elements("t", "s", []) == []
    assert nfnetlink.delete_elements("t", "s", []) == []


def test_elements_are_read_back_with_what_they_give_and_the_time_left() -> None:
    element = nested(
        1, nested(1, attribute(1, b"keykey12")), nested(2, attribute(1, b"\1\0\0\1")), attribute(5, number(1500, 8))
    )
    body = (
        attribute(1, b"t\0") + attribute(2, b"s\0") + nested(3, element, nested(1, nested(1, attribute(1, b"other"))))
    )
    first, second = nfnetlink.elements_of(body)
    assert (first.key, first.value, first.left_s) == (b"keykey12", b"\1\0\0\1", 1.5)
    assert (second.key, second.value, second.left_s) == (b"other", b"", None)


def test_chains_of_other_tables_are_not_ours() -> None:
    body = attribute(1, b"t\0") + attribute(3, b"box7\0")
    assert nfnetlink.chain_of(body, "t") == "box7"
    assert nfnetlink.chain_of(body, "other") is None


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        list(nfnetlink.elements_of(data))
    except ValueError:
        return


@pytest.mark.parametrize("port", [0, 1, 65535])
def test_numbers_are_big_endian(port: int) -> None:
    assert number(port, 2) == struct.pack("!H", port)
