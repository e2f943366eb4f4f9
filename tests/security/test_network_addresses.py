"""Group D, addresses: metadata services, the host, private ranges, other sandboxes, in every form (cases 49 and 50).

Each attempt is made by a program in the sandbox. That it was refused is seen from inside (at once, in words) and from
outside: nothing arrived in the world. That it could have worked is seen beside, with what the operator opened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from network_lab_support import MISSING, NONE, OPEN, Lab, assert_refused, policy
from world_support import (
    EVIL,
    GOOD,
    HOST_PORT,
    METADATA,
    METADATA6,
    OUTSIDE,
    PRIVATE,
    PUBLIC6,
    World,
    running_world,
)

pytestmark = pytest.mark.real

GENEROUS = (policy(default="allow"), policy("0.0.0.0/0"), policy("*", "0.0.0.0/0"), policy(dry_run=True))
"""Policies that allow all that a tenant can."""
BELOW_A_SECOND = 1.0


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The control: a server whose operator opened what is closed, in a world of its own."""
    ranges = ",".join([*(f"{address}/32" for address in (*METADATA, *PRIVATE)), f"{OUTSIDE}/32"])
    with running_world(tmp_path_factory.mktemp("opened-world")) as world:
        server = world.server(tmp_path_factory.mktemp("opened"), COVE_NETWORK_OPENED_RANGES=ranges, COVE_POOL_SIZE="1")
        server.start()
        lab = Lab(server, world)
        yield lab
        lab.close()
        server.down()
        shutil.rmtree(server.data_dir, ignore_errors=True)


def attempts(addresses: tuple[str, ...], port: int = 80) -> str:
    return f"""
        for address in {addresses!r}:
            word, seconds = timed(tcp, address, {port})
            say(address, word)
            say(address + " late", seconds)
        say("control", echoed({GOOD!r}))
    """


def split(told: dict[str, Any]) -> tuple[dict[str, str], list[float]]:
    """The words of the attempts, and their seconds; the control must have worked."""
    assert told.pop("control") == "open", told
    seconds = [told.pop(key) for key in list(told) if key.endswith(" late")]
    return told, seconds


def test_49_metadata_addresses_are_refused_at_once(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    words, seconds = split(lab.inside(box, attempts(METADATA)))
    assert_refused(words)
    assert max(seconds) < BELOW_A_SECOND, seconds
    assert not [one for one in lab.world.seen if one.at in METADATA]


@pytest.mark.parametrize("network", GENEROUS, ids=["default-allow", "cidr", "star", "dry-run"])
def test_49_whatever_a_tenant_allows_metadata_stays_closed(lab: Lab, network: dict[str, object]) -> None:
    words, _ = split(lab.inside(lab.box(network), attempts(METADATA)))
    assert_refused(words)
    assert not [one for one in lab.world.seen if one.at in METADATA]


def test_49_control_metadata_answers_where_the_operator_opened_it(opened: Lab, driver: str) -> None:
    box = opened.box(OPEN, driver)
    told = opened.inside(box, f"say('metadata', http({METADATA[0]!r})); say('private', echoed({PRIVATE[0]!r}))")
    assert told["metadata"]["at"] == METADATA[0], told
    assert told["private"] == "open"


def test_49_metadata_in_other_spellings(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    told = lab.inside(
        box,
        f"""
        for text in ("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "0xA9.0376.43518"):
            try:
                address = socket.inet_ntoa(socket.inet_aton(text))
            except OSError:
                address = text
            say(text, tcp(address, 80))
            say(text + " by name", resolve(text) and tcp(resolve(text)[0], 80) or "ECONNREFUSED")
        for text in ("::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "::169.254.169.254",
                     {METADATA6!r}, "2002:a9fe:a9fe::1"):
            say(text, tcp(text, 80))
        say("control", echoed({GOOD!r}))
        """,
    )
    words, _ = split(told)
    assert_refused(words, allowed=MISSING)
    assert not [one for one in lab.world.seen if one.at in {*METADATA, METADATA6}]


def test_49_names_of_metadata_services_resolve_to_nothing(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    told = lab.inside(
        box,
        """
        for name in ("metadata.example", "metadata.google.internal", "mapped.example", "loopback.example",
                     "private.example", "host.example"):
            say(name, resolve(name))
        say("half-private.example", resolve("half-private.example"))
        say("good.example", resolve("good.example"))
        """,
    )
    assert told.pop("good.example") == [GOOD]
    assert told.pop("half-private.example") == [GOOD]
    assert not any(told.values()), told


def test_49_a_rule_inside_a_closed_range_is_refused_by_name(lab: Lab) -> None:
    for target in ("169.254.169.254/32", "10.0.0.0/8", "127.0.0.1/32", "168.63.129.16/32", f"{OUTSIDE}/32"):
        answer = lab.client.post("/sandboxes", json={"network": policy(target)})
        assert answer.status_code in {400, 422}, (target, answer.text)
        assert "network" in answer.text
        assert target.split("/")[0] in answer.text, answer.text


def host_addresses(world: World) -> tuple[str, ...]:
    """Every IPv4 address of the server's outside, so of the host, but its loopback's."""
    links = json.loads(world.outside.command("ip", "-j", "-4", "addr"))
    found = {info["local"] for link in links for info in link["addr_info"]}
    return tuple(sorted(found - {"127.0.0.1"}))


def test_50_the_host_and_its_services(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN if driver == "runc" else policy(default="allow"), driver)
    addresses = host_addresses(lab.world)
    assert OUTSIDE in addresses
    assert len(addresses) > 1, "the uplink's address belongs to the host too"
    told = lab.inside(
        box,
        f"""
        for address in {addresses!r}:
            for port in ({HOST_PORT}, 22, {lab.server.port}):
                say("%s:%d" % (address, port), tcp(address, port))
            say("udp " + address, udp(address, {HOST_PORT}))
        say("own loopback", tcp("127.0.0.1", {HOST_PORT}))
        say("own loopback, the API", tcp("127.0.0.1", {lab.server.port}))
        say("control", echoed({GOOD!r}))
        """,
    )
    words, _ = split(told)
    assert_refused(words)
    assert not [one for one in lab.world.seen if one.port == HOST_PORT]


def test_50_control_the_host_answers_where_the_operator_opened_it(opened: Lab) -> None:
    box = opened.box(OPEN)
    told = opened.inside(box, f"say('host', http({OUTSIDE!r}, port={HOST_PORT}))")
    assert told["host"]["port"] == HOST_PORT, told


def test_50_the_gateway_answers_at_its_own_ports_only(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    ports = (1, 22, 54, 80, 111, 443, 853, 3127, 3131, 8080, HOST_PORT, lab.server.port, 65535)
    told = lab.inside(
        box,
        f"""
        for port in {ports!r}:
            say(str(port), tcp("169.254.1.1", port))
        for port in (67, 123, 161, 5353, {HOST_PORT}):
            say("udp %d" % port, udp("169.254.1.1", port))
        say("dns", ask("good.example"))
        say("dns by tcp", ask("good.example", transport="tcp"))
        """,
    )
    assert told.pop("dns") == [0, 1]
    assert told.pop("dns by tcp") == [0, 1]
    assert_refused(told)


def test_50_private_shared_and_test_ranges(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    more = ("172.17.0.1", "192.168.1.1", "10.213.0.1", "169.254.1.2", "0.0.0.1", "192.0.2.1", "203.0.113.1")
    words, seconds = split(lab.inside(box, attempts((*PRIVATE, *more))))
    assert_refused(words)
    assert max(seconds) < BELOW_A_SECOND, seconds
    assert not [one for one in lab.world.seen if one.at in PRIVATE]


def test_50_multicast_broadcast_and_what_is_reserved(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    with lab.world.sniffing() as packets:
        told = lab.inside(
            box,
            f"""
            for address in ("224.0.0.1", "224.0.0.251", "239.255.255.250", "240.0.0.1", "255.255.255.255"):
                try:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 32)
                        s.settimeout(0.2)
                        s.sendto(b"anybody", (address, 5353))
                        say(address, s.recv(100).decode())
                except OSError as error:
                    say(address, word_of(error))
            say("control", udp({GOOD!r}, 9999))
            """,
        )
    assert told.pop("control") == "open"
    assert set(told.values()) <= {*MISSING, "slow"}, told
    first = {packet[16] for packet in packets if packet[0] >> 4 == 4}
    assert int(GOOD.split(".")[0]) in first
    assert not [octet for octet in first if octet >= 224]


def test_50_no_ipv6_at_all(lab: Lab, driver: str) -> None:
    box = lab.box(policy("*", default="allow"), driver)
    with lab.world.sniffing() as packets:
        told = lab.inside(
            box,
            f"""
            for address in ({PUBLIC6!r}, {METADATA6!r}, "fe80::1%1", "fe80::1", "fd99::1", "ff02::1", "64:ff9b::b00:a"):
                say(address, tcp(address, 80))
                say("udp " + address, udp(address, 9999, limit=0.3))
            say("names", resolve("six.example"))
            say("control", echoed({GOOD!r}))
            """,
        )
    assert told.pop("control") == "open"
    assert told.pop("names") == []
    assert_refused(told, allowed=frozenset({*MISSING, "gaierror"}))
    # The two ends of the world's wire speak ICMPv6 to each other (neighbours, multicast reports).
    assert not [packet for packet in packets if packet[0] >> 4 == 6 and packet[6] in {6, 17}]


def test_50_other_sandboxes_are_reached_by_links_alone(lab: Lab, driver: str) -> None:
    server_program = """
        s = socket.create_server(("0.0.0.0", 8000))
        def serve():
            while True:
                c, _ = s.accept()
                c.sendall(c.recv(100))
                c.close()
        threading.Thread(target=serve, daemon=True).start()
        time.sleep(60)
    """
    victim = lab.box(OPEN, driver, name="victim")
    lab.start(victim, server_program)
    address = lab.facts(victim)["address"]
    assert address
    lab.until(lambda: lab.inside(victim, "say('up', echoed('127.0.0.1', 8000))")["up"] == "open")
    generous = lab.box(policy("*", "0.0.0.0/0", default="allow"), driver)
    linked = lab.box({"mode": "none", "links": ["victim"]}, driver)
    attempt = f"""
        say("tcp", echoed({address!r}, 8000))
        say("other port", tcp({address!r}, 8001))
        say("udp", udp({address!r}, 8000, limit=0.5))
        say("by name", resolve("victim.cove.internal"))
        say("elsewhere", tcp({GOOD!r}, 80))
    """
    told = lab.inside(generous, attempt)
    assert told.pop("by name") == []
    told.pop("elsewhere")
    assert_refused(told)
    told = lab.inside(linked, attempt)
    assert told["tcp"] == "open"
    assert told["by name"] == [address]
    assert_refused({"elsewhere": told["elsewhere"]})
    # A link leads one way: the other end opens nothing of its own.
    back = lab.facts(linked)["address"]
    assert_refused(lab.inside(victim, f"say('back', tcp({back!r}, 8000))"))


def test_50_none_is_none(lab: Lab, driver: str) -> None:
    box = lab.box(NONE, driver)
    with lab.world.sniffing() as packets:
        told = lab.inside(
            box,
            f"""
            for address in ({GOOD!r}, {EVIL!r}, {METADATA[0]!r}, {OUTSIDE!r}, "169.254.1.1", "10.0.0.5"):
                say(address, tcp(address, 80))
                say("udp " + address, udp(address, 53, limit=0.3))
            say("name", resolve("good.example"))
            """,
        )
    assert told.pop("name") == []
    assert_refused(told)
    assert not [packet for packet in packets if packet[0] >> 4 == 4]
    assert not lab.world.dns.asked


def test_50_a_rule_lets_through_what_it_names_and_no_more(lab: Lab, driver: str) -> None:
    box = lab.box(policy(f"{GOOD}/32:9999"), driver)
    told = lab.inside(
        box,
        f"""
        say("control", echoed({GOOD!r}))
        say("other port", tcp({GOOD!r}, 8080))
        say("other host", echoed({EVIL!r}))
        say("udp", udp({GOOD!r}, 443))
        """,
    )
    words, _ = split(told)
    assert_refused(words)
    assert {(one.at, one.port) for one in lab.world.seen if one.kind != "dns"} == {(GOOD, 9999)}
