"""Which names brought which addresses."""

from __future__ import annotations

from cove.engine.network.brought import ADDRESSES, NAMES, Brought


def test_the_latest_name_comes_first_and_ended_ones_are_known_but_do_not_hold() -> None:
    brought = Brought()
    brought.add(1, "a.example", 10.0)
    brought.add(1, "b.example", 20.0)
    assert brought.names(1) == ("b.example", "a.example")
    assert brought.valid(1, 15.0) == {"b.example": 20.0}
    brought.add(1, "a.example", 30.0)
    assert brought.names(1) == ("a.example", "b.example")
    assert brought.names(2) == ()
    assert brought.valid(2, 0.0) == {}


def test_a_shorter_time_does_not_end_what_holds_longer() -> None:
    brought = Brought()
    brought.add(1, "a.example", 100.0)
    brought.add(1, "a.example", 10.0)
    assert brought.valid(1, 50.0) == {"a.example": 100.0}


def test_addresses_and_names_are_bounded_and_the_oldest_go() -> None:
    brought = Brought()
    for n in range(NAMES + 2):
        brought.add(0, f"h{n}.example", 1.0)
    assert len(brought.names(0)) == NAMES
    assert "h0.example" not in brought.names(0)
    gone = [address for n in range(1, ADDRESSES + 3) for address in brought.add(n, "a.example", 1.0)]
    assert gone == [0, 1, 2]
    assert len(brought.addresses()) == ADDRESSES
