"""The way out of the router: forwarding for Cove alone, and the machine as it was when the last server has left."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.engine.network import uplink
from cove.engine.network.topology import NetworkConfig
from cove.engine.network.wayout import WayOut
from world_namespace_support import Namespace, wire

pytestmark = pytest.mark.real


class Machine:
    """An outside between two strangers, and a router."""

    def __init__(self, folder: Path) -> None:
        self.outside, self.left, self.right = Namespace(), Namespace(), Namespace()
        # A new namespace begins as the machine is, which forwards while any server has sandboxes with a network.
        self.outside.command("sysctl", "-qw", "net.ipv4.ip_forward=0")
        for space, name, net in ((self.left, "left", "11.1.1"), (self.right, "right", "11.2.2")):
            wire(self.outside, name, space, "eth0")
            self.outside.ip(f"addr add {net}.1/24 dev {name}")
            space.ip(f"addr add {net}.2/24 dev eth0", f"route add default via {net}.1")
        self.folder = folder
        self.routers: list[Namespace] = []

    def connect(self, instance: str, number: int) -> NetworkConfig:
        (self.folder / instance).mkdir()
        config = NetworkConfig(instance=instance, run_dir=self.folder / instance)
        router = Namespace()
        self.routers.append(router)
        router.run(lambda: uplink.make_pair(config, self.outside.fd, number))
        self.outside.run(lambda: uplink.finish_outside(config, number))
        router.run(lambda: uplink.finish_router(number))
        return config

    @property
    def is_forwarding(self) -> bool:
        return self.outside.command("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"

    def rules(self) -> str:
        return self.outside.command("nft", "list", "ruleset")

    def close(self) -> None:
        for space in (*self.routers, self.left, self.right, self.outside):
            space.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()
    shutil.rmtree(tmp_path)


def reaches(source: Namespace, address: str, at: Namespace) -> bool:
    with at.listener(address, 4711), closing(source.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
        client.settimeout(0.5)
        try:
            client.connect((address, 4711))
        except OSError:
            return False
        return True


def test_a_machine_that_forwards_nothing_forwards_for_cove_alone(machine: Machine) -> None:
    config = machine.connect("aaaaaaaaaaaa", 7)
    assert machine.is_forwarding
    assert reaches(machine.routers[0], "11.2.2.2", machine.right)
    assert not reaches(machine.left, "11.2.2.2", machine.right)
    assert not reaches(machine.routers[0], "11.1.1.1", machine.outside)
    machine.outside.run(lambda: uplink.remove(config))
    assert not machine.is_forwarding
    assert machine.rules() == ""
    machine.outside.run(lambda: uplink.remove(config))


def test_what_forwarding_sets_along_with_it_is_put_back(machine: Machine) -> None:
    settings = {"all/accept_redirects": "0", "left/forwarding": "1", "right/forwarding": "0"}
    for name, value in settings.items():
        machine.outside.sysctl(f"ipv4/conf/{name}", value)
    configs = [machine.connect("aaaaaaaaaaaa", 7), machine.connect("bbbbbbbbbbbb", 8)]
    for config in configs:
        machine.outside.run(lambda config=config: uplink.remove(config))
    assert not machine.is_forwarding
    files = {name: f"/proc/sys/net/ipv4/conf/{name}" for name in settings}
    assert {name: machine.outside.command("cat", file).strip() for name, file in files.items()} == settings


def test_what_the_operator_lets_pass_goes_on_passing(machine: Machine) -> None:
    machine.outside.sysctl("ipv4/ip_forward", "1")
    config = machine.connect("aaaaaaaaaaaa", 7)
    assert reaches(machine.left, "11.2.2.2", machine.right)
    machine.outside.run(lambda: uplink.remove(config))
    assert machine.is_forwarding


def test_two_servers_share_it_and_do_not_reach_each_other(machine: Machine) -> None:
    one, two = machine.connect("aaaaaaaaaaaa", 7), machine.connect("bbbbbbbbbbbb", 8)
    assert all(reaches(router, "11.2.2.2", machine.right) for router in machine.routers)
    assert not reaches(machine.routers[0], "169.254.64.34", machine.routers[1])
    machine.outside.run(lambda: uplink.remove(one))
    assert machine.is_forwarding
    assert reaches(machine.routers[1], "11.2.2.2", machine.right)
    machine.outside.run(lambda: uplink.remove(two))
    assert not machine.is_forwarding
    assert machine.rules() == ""


def test_nothing_comes_in_by_the_uplink_that_was_not_asked_for(machine: Machine) -> None:
    machine.connect("aaaaaaaaaaaa", 7)
    machine.right.ip("route add 169.254.64.28/30 via 11.2.2.1")
    assert not reaches(machine.right, "169.254.64.30", machine.routers[0])


def test_what_is_noted_is_found_again_without_settings(machine: Machine) -> None:
    config = machine.connect("aaaaaaaaaaaa", 7)
    config.outside_note.write_text(f"/proc/{os.getpid()}/fd/{machine.outside.fd}")
    uplink.remove_noted(config.instance, config.run_dir)
    assert not machine.is_forwarding
    assert machine.outside.run(lambda: uplink.traces(config.instance)) == []


async def test_what_leads_to_a_former_outside_goes_too_when_all_is_taken_down(machine: Machine) -> None:
    """The operator named another one, and no sandbox was connected since."""
    config = machine.connect("aaaaaaaaaaaa", 7)
    config.outside_note.write_text(f"/proc/{os.getpid()}/fd/{machine.outside.fd}")
    await WayOut(replace(config, outside=Path(machine.left.path))).remove(None)
    assert not machine.is_forwarding
    assert machine.rules() == ""
