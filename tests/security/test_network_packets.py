"""Group D, packets: what goes around names, and senders that are not who they say (cases 56 and 59).

Programs inside have no raw sockets, so the spoofs of `test_59_...from_its_own_interface` are sent by the machine's root
from inside the sandbox's network namespace: as if somebody inside had all capabilities there.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from network_lab_support import MISSING, OPEN, Lab, assert_refused, policy
from world_namespace_support import _call, in_own_thread
from world_support import EVIL, GOOD, OTHER, PRIVATE, PUBLIC6

pytestmark = pytest.mark.real

NAMED = policy("good.example")
_ICMP, _TCP, _UDP = 1, 6, 17


def protocols(packets: list[bytes]) -> set[int]:
    return {packet[9] for packet in packets if packet[0] >> 4 == 4}


def sources(packets: list[bytes]) -> set[str]:
    return {str(IPv4Address(packet[12:16])) for packet in packets if packet[0] >> 4 == 4}


def test_56_quic_is_closed_where_a_name_must_be_checked(lab: Lab, driver: str) -> None:
    named, wide = lab.box(NAMED, driver), lab.box(OPEN, driver)
    attempt = f"say('first', resolve('good.example')); say('quic', udp({GOOD!r}, 443, b'\\xc3' + b'q' * 1200))"
    assert lab.inside(wide, attempt) == {"first": [GOOD], "quic": "open"}
    lab.world.forget()
    told = lab.inside(named, attempt)
    assert told["first"] == [GOOD]
    assert_refused({"quic": told["quic"]})
    assert not lab.world.seen


def test_56_icmp_carries_nothing_out(lab: Lab, driver: str) -> None:
    box = lab.box(policy("good.example", f"tcp/{GOOD}/32"), driver)
    with lab.world.sniffing() as packets:
        told = lab.inside(
            box,
            f"""
            echo = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"secret" * 8
            total = sum(struct.unpack("!%dH" % (len(echo) // 2), echo))
            echo = echo[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + echo[4:]
            for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
                try:
                    with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as s:
                        s.settimeout(0.3)
                        s.sendto(echo, ({GOOD!r}, 0))
                        say(str(int(kind)), s.recv(1000).hex())
                except OSError as error:
                    say(str(int(kind)), word_of(error))
            say("control", echoed({GOOD!r}))
            """,
        )
    assert told.pop("control") == "open"
    assert set(told.values()) <= {*MISSING, "slow"}, told
    assert protocols(packets) == {_TCP}


def test_56_no_raw_sockets_and_no_other_protocols(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    with lab.world.sniffing() as packets:
        told = lab.inside(
            box,
            f"""
            for name, family, kind, proto in (
                ("raw", socket.AF_INET, socket.SOCK_RAW, 255), ("raw udp", socket.AF_INET, socket.SOCK_RAW, 17),
                ("gre", socket.AF_INET, socket.SOCK_RAW, 47), ("packet", 17, socket.SOCK_RAW, 0x0300),
                ("packet, cooked", 17, socket.SOCK_DGRAM, 0x0300), ("sctp", socket.AF_INET, socket.SOCK_STREAM, 132),
                ("dccp", socket.AF_INET, 6, 33), ("udplite", socket.AF_INET, socket.SOCK_DGRAM, 136),
                ("raw 6", socket.AF_INET6, socket.SOCK_RAW, 58),
            ):
                try:
                    with socket.socket(family, kind, proto) as s:
                        s.settimeout(0.3)
                        s.sendto(b"secret" * 8, ({GOOD!r}, 9999)) if family == socket.AF_INET else s.send(b"x" * 60)
                        say(name, "sent")
                except OSError as error:
                    say(name, word_of(error))
            say("control", udp({GOOD!r}, 9999))
            """,
        )
    assert told.pop("control") == "open"
    if driver != "gvisor":
        told.pop("udplite")  # the kernel sends it; the router's rules know no such protocol
        assert "sent" not in told.values(), told
    assert protocols(packets) <= {_TCP, _UDP}


def test_56_fragments_are_judged_whole(lab: Lab, driver: str) -> None:
    ruled, wide = lab.box(policy(f"udp/{GOOD}/32:9999"), driver), lab.box(OPEN, driver)
    attempt = f"""
        large = os.urandom(6000)
        say("to what is allowed", udp({GOOD!r}, 9999, large, limit=3))
        say("other port", udp({GOOD!r}, 443, large))
        say("other host", udp({EVIL!r}, 9999, large))
        say("private", udp({PRIVATE[0]!r}, 9999, large))
    """
    assert lab.inside(wide, attempt)["other host"] == "open"
    lab.world.forget()
    told = lab.inside(ruled, attempt)
    assert told.pop("to what is allowed") == "open"
    assert_refused(told, allowed=frozenset({*MISSING, "slow"}))
    assert {(one.at, one.port) for one in lab.world.seen} == {(GOOD, 9999)}


def test_56_ipv6_is_no_way_around_rules_of_ipv4(lab: Lab, driver: str) -> None:
    box = lab.box(policy("*", deny=(f"{GOOD}/32",), default="allow"), driver)
    told = lab.inside(
        box,
        f"""
        say("six", tcp({PUBLIC6!r}, 80))
        say("mapped", tcp("::ffff:{GOOD}", 9999))
        say("names", resolve("six.example"))
        say("control", tcp("::ffff:{EVIL}", 9999))
        """,
    )
    assert told.pop("control") == "open"
    assert told.pop("names") == []
    assert_refused(told, allowed=frozenset(MISSING))
    assert {one.at for one in lab.world.seen} == {EVIL}


def test_41_one_sandbox_does_not_take_all_of_the_connections_that_are_tracked(lab: Lab) -> None:
    greedy, other = lab.box(OPEN), lab.box(OPEN)
    told = lab.inside(
        greedy,
        f"""
        failed = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for turn in range(30000):
                try:
                    s.sendto(b"x", ({OTHER!r} if turn % 2 else {EVIL!r}, 1024 + turn // 2))
                except OSError:
                    failed += 1
        say("one more", echoed({GOOD!r}, limit=2))
        """,
    )
    assert told["one more"] != "open", "no limit was met, so nothing was tried"
    assert lab.inside(other, f"say('control', echoed({GOOD!r}))") == {"control": "open"}


def test_59_the_interface_cannot_be_changed_from_inside(lab: Lab, driver: str) -> None:
    victim, box = lab.box(OPEN, driver), lab.box(OPEN, driver)
    address = lab.facts(victim)["address"]
    with lab.world.sniffing() as packets:
        told = lab.inside(
            box,
            f"""
            import fcntl, subprocess
            def run(*argv):
                try:
                    return "done" if subprocess.run(argv, capture_output=True).returncode == 0 else "EPERM"
                except OSError as error:
                    return word_of(error)
            say("add address", run("ip", "address", "add", {address + "/32"!r}, "dev", "eth0"))
            say("route", run("ip", "route", "add", "10.0.0.0/8", "via", "169.254.1.1"))
            say("mac", run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"))
            say("promiscuous", run("ip", "link", "set", "eth0", "promisc", "on"))
            say("neighbour", run("ip", "neighbour", "add", "169.254.1.2", "lladdr", "02:00:00:00:00:02", "dev", "eth0"))
            say("forwarding", run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
            for name, option in (("freebind", 15), ("transparent", 19), ("nodefrag", 22)):
                try:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                        s.setsockopt(socket.IPPROTO_IP, option, 1)
                        s.bind(({address!r}, 0))
                        s.sendto(b"spoofed", ({GOOD!r}, 9999))
                        say(name, "sent")
                except OSError as error:
                    say(name, word_of(error))
            """,
        )
    if driver == "gvisor":
        # Its interface is the sentry's own, which may believe what it likes: what leaves it is checked by the router.
        assert address not in sources(packets)
    else:
        told.pop("freebind")  # allowed to anybody by the kernel; the packet is dropped
        assert_refused(told, allowed=frozenset({*MISSING, "ENOPROTOOPT", "EROFS"}))
    assert not [one for one in lab.world.seen if one.data == b"spoofed"]


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def packet(source: str, target: str, protocol: int, payload: bytes, **more: int) -> bytes:
    """An IPv4 packet; `fragment`: its offset in units of 8 bytes, with more to follow as bit 13."""
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        77,
        more.get("fragment", 0),
        64,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def datagram(port: int, data: bytes) -> bytes:
    """A UDP datagram without a checksum."""
    return struct.pack("!4H", 4444, port, 8 + len(data), 0) + data


def from_its_interface(init_pid: int, work: Callable[[socket.socket], None]) -> None:
    """Do `work` with a socket at the wire of a sandbox's own eth0."""

    def inside() -> None:
        fd = os.open(f"/proc/{init_pid}/ns/net", os.O_RDONLY)
        try:
            _call("setns", fd, 0x40000000)
        finally:
            os.close(fd)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0x0800))
            work(wire)

    in_own_thread(inside)


def gateway_mac(init_pid: int) -> bytes:
    """The link address of the router's end, as the sandbox's kernel learned it."""
    told = subprocess.run(
        ["nsenter", "-t", str(init_pid), "-n", "ip", "neighbour", "show", "169.254.1.1"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return bytes.fromhex(told[told.index("lladdr") + 1].replace(":", ""))


@pytest.mark.parametrize("driver", ["runc", "crun"])
def test_59_spoofs_from_its_own_interface_are_dropped(lab: Lab, driver: str) -> None:
    victim, box = lab.box(OPEN, driver), lab.box(OPEN, driver)
    theirs, own = lab.facts(victim)["address"], lab.facts(box)
    assert lab.inside(box, f"say('warm', udp({GOOD!r}, 9999))") == {"warm": "open"}
    gateway = gateway_mac(own["init_pid"])
    data = datagram(9999, b"spoofed")
    spoofs = [
        packet(source, target, _UDP, data)
        for source in (theirs, "169.254.1.1", "127.0.0.1", "11.0.0.99", "10.0.0.5", "0.0.0.0", "255.255.255.255")  # noqa: S104
        for target in (GOOD, theirs, PRIVATE[0], "169.254.169.254")
    ]
    own_frames = [
        packet(own["address"], PRIVATE[0], _UDP, data),
        packet(own["address"], PRIVATE[0], _UDP, data[:8] + b"x" * 16, fragment=0x2000),
        packet(own["address"], PRIVATE[0], _UDP, b"tail of it", fragment=2),
        packet(own["address"], GOOD, 47, b"\0\0\x08\0" + packet(own["address"], PRIVATE[0], _UDP, data)),
        packet(own["address"], GOOD, 4, packet(own["address"], PRIVATE[0], _UDP, data)),
    ]
    spoofed_arp = bytes.fromhex("0001080006040002020000000001") + IPv4Address(theirs).packed + gateway + bytes(4)

    def send(wire: socket.socket) -> None:
        own_mac = wire.getsockname()[4]
        for one in (*spoofs, *own_frames):
            wire.send(gateway + own_mac + b"\x08\0" + one)
        # As if the victim's address were here, from this address and from an invented one.
        for mac in (own_mac, bytes.fromhex("020000000001")):
            wire.send(b"\xff" * 6 + mac + b"\x08\x06" + spoofed_arp)
        wire.send(gateway + bytes.fromhex("020000000001") + b"\x08\0" + packet(theirs, GOOD, _UDP, data))
        wire.send(gateway + own_mac + b"\x08\0" + packet(own["address"], GOOD, _UDP, datagram(9999, b"control")))

    with lab.world.sniffing() as packets:
        from_its_interface(own["init_pid"], send)
        lab.until(lambda: [one for one in lab.world.seen if one.data == b"control"])
        told = lab.inside(victim, f"say('still', echoed({GOOD!r})); say('udp', udp({GOOD!r}, 9999))")
    assert told == {"still": "open", "udp": "open"}, "the victim's address was taken over"
    assert not [one for one in lab.world.seen if b"spoofed" in one.data]
    # What answers an echo that nobody waits for is an ICMP error, which belongs to that flow.
    assert not [one for one in packets if one[9] not in {_TCP, _UDP} and (one[9], one[20]) != (_ICMP, 3)]
    assert len(sources(packets)) == 1, "all that leaves has the host's own address"
