"""Who is on the network: numbers, addresses, and who has them."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.network.endpoints import Directory, Process
from cove.engine.network.topology import (
    TRANSITS,
    NetworkConfig,
    box_mac,
    index_of_link,
    link_name,
    router_mac,
    transit,
)
from cove.model.errors import CapacityExceeded
from cove.model.network import OPEN_NETWORK

CONFIG = NetworkConfig(instance="0123456789ab", run_dir=Path("/run/cove/0123456789ab"))
SMALL = NetworkConfig(instance="0123456789ab", run_dir=Path("/run/cove/x"), subnet=IPv4Network("10.9.0.0/29"))
INIT = Process(1, 2)


def test_a_box_is_known_by_its_address_until_it_leaves() -> None:
    directory = Directory(CONFIG)
    made = directory.add("one", directory.take(), INIT)
    assert directory.by_address(made.address) == made == directory.by_box("one")
    directory.remove("one")
    assert directory.by_address(made.address) is None
    assert directory.process("one") is None


def test_an_address_is_not_given_again_while_others_were_unused_for_longer() -> None:
    directory = Directory(SMALL)
    first = directory.take()
    directory.give_back(first)
    assert [directory.take() for _ in range(4)] == [3, 4, 5, 6]
    assert directory.take() == first


def test_when_all_addresses_are_used_the_next_waits() -> None:
    directory = Directory(SMALL)
    for _ in SMALL.indexes:
        directory.take()
    with pytest.raises(CapacityExceeded):
        directory.take()


def test_a_number_from_before_a_restart_is_given_to_one_only_when_it_is_free() -> None:
    directory = Directory(SMALL)
    directory.mark(4)
    directory.give_back(4)
    taken = [directory.take() for _ in SMALL.indexes]
    assert sorted(taken) == list(SMALL.indexes)
    with pytest.raises(CapacityExceeded):
        directory.take()


def test_a_number_from_before_a_restart_is_nobody_elses() -> None:
    directory = Directory(SMALL)
    directory.mark(2)
    assert directory.take() == 3


def test_a_policy_of_a_box_that_left_brings_it_not_back() -> None:
    directory = Directory(CONFIG)
    made = directory.add("one", directory.take(), INIT)
    directory.remove("one")
    directory.change(made, OPEN_NETWORK, {})
    assert directory.by_box("one") is None
    assert directory.by_address(made.address) is None


@given(st.sampled_from(CONFIG.indexes))
def test_number_address_and_interface_name_each_other(index: int) -> None:
    assert CONFIG.index_of(CONFIG.address(index)) == index == index_of_link(link_name(index))
    assert box_mac(index) != router_mac(index)
    assert len(link_name(index)) < 16


@pytest.mark.parametrize("address", ["10.213.0.0", "10.213.0.1", "10.213.255.255", "10.214.0.5", "::1", "", "x"])
def test_an_address_that_no_box_has_has_no_number(address: str) -> None:
    assert CONFIG.index_of(address) is None


@pytest.mark.parametrize("name", ["uplink", "lo", "sv", "svx", "sv1x", "asv1", "eth0", "sv1234567890"])
def test_other_interfaces_are_no_boxs(name: str) -> None:
    assert index_of_link(name) is None


def test_transit_addresses_of_two_servers_never_meet() -> None:
    taken = [address for number in range(TRANSITS) for address in transit(number)]
    assert len(taken) == len(set(taken))
    assert taken[0] == "169.254.64.1"
    assert all(64 <= int(address.split(".")[2]) <= 127 for address in taken)


def test_the_name_outside_is_as_long_as_one_may_be() -> None:
    assert CONFIG.outside_link == "cv-0123456789ab"
