"""Refusals are counted together, told soon and told in bounded number."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cove.engine.network.expressions import number
from cove.engine.network.port import Endpoint
from cove.engine.network.refusals import PER_BOX, PER_TICK, SEEN, TICK_S, Refusals, Seen, parse
from cove.engine.network.rtnetlink import attribute
from cove.engine.network.ruleset import Ruleset
from cove.engine.network.steps import Packet
from cove.model.network import Refusal


class Rules:
    """What a ruleset says of marks and names."""

    def words(self, index: int, mark: int, packet: Packet) -> str:
        if mark == 0 or packet.port < 0:
            raise ValueError("no mark of ours")
        return f"rule {index}"

    def names_of(self, _index: int, address: str) -> tuple[str, ...]:
        return ("a.example",) if address == "11.1.1.1" else ()


class Table:
    def by_address(self, address: str) -> Endpoint | None:
        boxes = {f"10.213.0.{n}": Endpoint(box=f"sb_{n}", address=f"10.213.0.{n}", index=n) for n in (1, 2)}
        return boxes.get(address)

    def by_box(self, box: str) -> Endpoint | None:
        return self.by_address(f"10.213.0.{box.removeprefix('sb_')}")


def make() -> tuple[Refusals, list[Refusal]]:
    told: list[Refusal] = []
    return Refusals(cast("Ruleset", Rules()), Table(), told.append), told


def seen(port: int = 22, source: str = "10.213.0.1", mark: int = 2 << 24 | 1) -> Seen:
    return Seen(
        source=source, destination=int.from_bytes(socket.inet_aton("11.1.1.1"), "big"), protocol=6, port=port, mark=mark
    )


def noted(box: str = "sb_1", port: int = 0, count: int = 1) -> Refusal:
    return Refusal(
        sandbox=box,
        layer="dns",
        name="n.example",
        address=None,
        port=port,
        protocol="udp",
        rule="r",
        at=5.0,
        count=count,
    )


async def test_repeats_are_one_with_their_count_and_soon() -> None:
    refusals, told = make()
    for _ in range(1000):
        refusals.see(seen())
    await asyncio.sleep(TICK_S * 1.5)
    (one,) = told
    assert (one.sandbox, one.name, one.address, one.port, one.protocol) == ("sb_1", "a.example", "11.1.1.1", 22, "tcp")
    assert (one.rule, one.count, one.layer, one.dry_run) == ("rule 1", 1000, "packet", False)


async def test_the_same_again_waits_and_is_counted_meanwhile() -> None:
    refusals, told = make()
    for _ in range(5):
        refusals.note(noted())
        refusals.flush()
    assert [one.count for one in told] == [1]
    refusals.note(noted(port=1))
    refusals.flush()
    assert len(told) == 2
    refusals.close()


async def test_what_listens_tells_through_the_same_bounds() -> None:
    refusals, told = make()
    refusals.note(noted(count=3))
    refusals.note(replace(noted(count=4), at=9.0))
    refusals.flush()
    assert [(one.count, one.at) for one in told] == [(7, 5.0)]
    refusals.close()


async def test_one_box_takes_no_more_than_its_part_and_what_is_left_out_is_counted() -> None:
    refusals, told = make()
    for port in range(1000):
        refusals.note(noted(port=port))
    refusals.note(noted("sb_2"))
    refusals.flush()
    boxes = [one.sandbox for one in told]
    assert boxes.count("sb_2") == 1
    assert boxes.count("sb_1") < PER_TICK
    assert refusals.lost == 1000 - PER_BOX
    refusals.close()


async def test_unknown_sources_and_marks_tell_no_lies() -> None:
    refusals, told = make()
    refusals.see(seen(source="10.213.9.9"))
    refusals.see(seen(mark=0))
    refusals.flush()
    assert [one.rule for one in told] == ["closed"]
    refusals.close()


async def test_memory_is_bounded_while_the_loop_is_busy() -> None:
    refusals, _ = make()
    for at in range(6_000):
        refusals.see(seen(port=at))
    assert refusals.lost == 6_000 - SEEN
    refusals.close()


def packet(protocol: int, rest: bytes, words: int = 5) -> bytes:
    head = bytes([0x40 | words, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]) + socket.inet_aton("10.213.0.1")
    return head + socket.inet_aton("11.1.1.1") + bytes(4 * (words - 5)) + rest


def logged(payload: bytes, mark: int = 7) -> bytes:
    return attribute(2, number(mark)) + attribute(9, payload)


def test_a_logged_packet_is_read_with_options_and_without_ports() -> None:
    assert parse(logged(packet(17, b"\0\1\0\x35"))) == replace(seen(53), protocol=17, mark=7)
    assert parse(logged(packet(6, b"\0\1\1\xbb", words=7))) == replace(seen(443), mark=7)
    assert parse(logged(packet(1, b"\x08\0\xff\xff"))) == replace(seen(0), protocol=1, mark=7)
    assert parse(logged(packet(47, b"\0\0\1\1"))) == replace(seen(0), protocol=47, mark=7)


@given(st.binary(max_size=100))
def test_any_packet_is_read_or_left_out(payload: bytes) -> None:
    found = parse(logged(payload))
    assert found is None or 0 <= found.port <= 65535
