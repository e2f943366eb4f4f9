"""Group D: out over the network, under the policies `none` and `open`, the most that a tenant can ask for.

What is closed has to be refused at once and in words: a connect that gets no answer has left the machine, so it counts
as broken like one that succeeds. Names, rules and proxies are attacked by tests/security/test_network_*.py, in a world
of their own; here nothing beyond this machine is needed or asked.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cove.engine.attacks.target import SMALL, NotHere, Target, attempt, python, require, text_of
from cove.engine.driver import Box
from cove.engine.network.netns import NetNs
from cove.engine.network.ownaddresses import own_addresses
from cove.model.network import NO_NETWORK, OPEN_NETWORK, NetworkPolicy

_GATEWAY: Final = "169.254.1.1"
_SERVED: Final = (53, 3128, 3129, 3130)
"""Ports of the gateway that may answer: resolver, proxies, credentials."""

_TRY: Final = '''
import socket, time

def refused(what, address, port, kind=socket.SOCK_STREAM):
    """A connect, or a datagram that somebody might answer: an error at once is what must come back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    began = time.monotonic()
    try:
        with socket.socket(family, kind) as s:
            s.settimeout(3)
            s.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                s.send(b"anybody")
                s.recv(100)
        said("BROKEN", what, "answered")
    except TimeoutError:
        said("BROKEN", what, "no answer within 3 s: it was not refused here")
    except OSError as error:
        late = time.monotonic() - began > 1
        said("BROKEN" if late else "held", what, errno.errorcode.get(error.errno, str(error)) + " late" * late)
'''


@asynccontextmanager
async def _connected(target: Target, policy: NetworkPolicy = OPEN_NETWORK) -> AsyncGenerator[Box]:
    """A fresh box under `policy`, which holds before anything runs in it."""
    _require_network(target)
    async with target.box(SMALL, policy) as box:
        yield box


def _require_network(target: Target) -> None:
    if target.network is None or target.network.missing:
        raise NotHere("; ".join(target.network.missing) if target.network else "this build has no network")


async def _probe(box: Box, script: str) -> str:
    return await attempt(box, _TRY + script, timeout_s=90)


async def _require_alive(box: Box) -> None:
    """The network is there: its resolver says something, be it that nobody has that name."""
    result = await python(
        box,
        f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.connect(({_GATEWAY!r}, 53))
    s.send(struct.pack("!6H", 7, 256, 1, 0, 0, 0) + b"\\6nobody\\4cove\\x08internal\\0" + struct.pack("!HH", 1, 1))
    print(len(s.recv(600)))
""",
    )
    require(result.exit.code == 0, f"its resolver does not answer, so nothing was tried: {text_of(result)}")


@asynccontextmanager
async def _service_outside(target: Target) -> AsyncGenerator[tuple[list[str], int, list[str]]]:
    """A listener on all addresses of the machine, as the sandboxes' network sees it: them, its port, who came."""
    assert target.network is not None  # noqa: S101 - `_require_network` has looked
    outside = NetNs(target.network.config.outside, "attack")
    came: list[str] = []

    def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(str(writer.get_extra_info("peername")))
        writer.close()

    try:
        listener = await outside.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("0.0.0.0", 0))  # noqa: S104 - what a careless service of the machine does
        addresses = sorted(await outside.run(own_addresses))
        async with await asyncio.start_server(note, sock=listener):
            yield addresses, int(listener.getsockname()[1]), came
    finally:
        outside.close()


async def attack_d49_metadata_services(target: Target) -> str:
    """Metadata addresses of the clouds, in every spelling: decimal, hexadecimal, octal, mapped and embedded in IPv6."""
    async with _connected(target) as box:
        await _require_alive(box)
        return await _probe(
            box,
            """
for address in ("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"):
    refused(address, address, 80)
for text in ("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"):
    refused(text, socket.inet_ntoa(socket.inet_aton(text)), 80)
for address in ("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "2002:a9fe:a9fe::1"):
    refused(address, address, 80)
""",
        )


async def attack_d50_the_machine_and_its_services(target: Target) -> str:
    """A service that listens on all addresses of this machine, tried at each of them by TCP and UDP."""
    _require_network(target)
    async with _connected(target) as box:
        await _require_alive(box)
        async with _service_outside(target) as (addresses, port, came):
            held = await _probe(
                box,
                f"""
for address in {addresses!r}:
    refused(address, address, {port})
    refused(address + " ssh", address, 22)
    refused(address + " udp", address, {port}, socket.SOCK_DGRAM)
refused("its own loopback", "127.0.0.1", {port})
refused("0.0.0.0", "0.0.0.0", {port})
""",
            )
            require(not came, f"the machine's own service was reached from {came}")
    return held


async def attack_d50_the_gateway(target: Target) -> str:
    """Ports of the gateway, which is the server's side of the network: all below 1024 and some above."""
    async with _connected(target) as box:
        await _require_alive(box)
        held = await _probe(
            box,
            f"""
ports = [port for port in (*range(1, 1024), 2375, 3127, 3131, 5000, 6443, 8080, 8443, 9090, 10250, 65535)
         if port not in {_SERVED!r}]
for port in ports:
    with socket.socket() as s:
        s.settimeout(3)
        code = s.connect_ex(({_GATEWAY!r}, port))
    if code in (0, errno.EAGAIN, errno.ETIMEDOUT):
        said("BROKEN", "port %d" % port, "open" if code == 0 else "not refused")
said("held", "%d ports" % len(ports), "refused")
for port in (67, 68, 123, 161, 5353):
    refused("udp %d" % port, {_GATEWAY!r}, port, socket.SOCK_DGRAM)
""",
        )
    return held[-300:]


async def attack_d50_private_and_reserved_ranges(target: Target) -> str:
    """Private, shared, link-local, documentation, multicast and reserved addresses; the network's own ranges."""
    async with _connected(target) as box:
        await _require_alive(box)
        return await _probe(
            box,
            """
for address in ("10.0.0.1", "10.213.0.1", "100.64.0.1", "172.16.0.1", "172.17.0.1", "192.168.0.1", "192.168.1.1",
                "198.18.0.1", "192.0.2.1", "169.254.1.2", "169.254.64.1", "169.254.64.2", "0.0.0.1", "240.0.0.1"):
    refused(address, address, 443)
for address in ("224.0.0.1", "224.0.0.251", "239.255.255.250", "255.255.255.255"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            s.sendto(b"anybody", (address, 5353))
            said("BROKEN", address, "answered by %s" % s.recvfrom(100)[1][0])
        except OSError as error:
            said("held", address, errno.errorcode.get(error.errno, "nobody answered"))
for address in ("fe80::1", "fd00::1", "2001:db8::1", "2606:4700::1111", "64:ff9b::808:808"):
    refused(address, address, 443)
    refused(address + " udp", address, 443, socket.SOCK_DGRAM)
""",
        )


async def attack_d50_other_sandboxes(target: Target) -> str:
    """A server in another sandbox, tried by TCP and UDP at its own address and at those beside it."""
    async with _connected(target) as victim, _connected(target) as box:
        await _require_alive(box)
        address = IPv4Address(victim.facts.address)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(python(victim, _SERVER, timeout_s=60))
            await asyncio.sleep(0.5)
            held = await _probe(
                box,
                f"""
for address in ({str(address)!r}, {str(address + 1)!r}, {str(address - 1)!r}):
    if address == {box.facts.address!r}:
        continue
    refused(address, address, 8000)
    refused(address + " closed port", address, 8001)
    refused(address + " udp", address, 8000, socket.SOCK_DGRAM)
""",
            )
            await python(victim, "import socket; socket.create_connection(('127.0.0.1', 8000)).sendall(b'stop')")
        seen = text_of(serving.result())
        require(seen.strip() == "1", f"the other sandbox's server was reached: {seen}")
    return held


_SERVER: Final = """
import socket, threading
s = socket.create_server(("0.0.0.0", 8000))
count = 0
while True:
    c, _ = s.accept()
    count += 1
    if c.recv(4) == b"stop":
        break
print(count)
"""
"""Counts its connections until the one that ends it."""


async def attack_d55_resolvers_elsewhere(target: Target) -> str:
    """DNS by UDP and TCP to resolvers that are not the sandbox's own, public ones among them."""
    async with _connected(target) as box:
        await _require_alive(box)
        return await _probe(
            box,
            """
for address in ("8.8.8.8", "1.1.1.1", "9.9.9.9", "11.0.0.53"):
    refused(address, address, 53)
    refused(address + " udp", address, 53, socket.SOCK_DGRAM)
""",
        )


async def attack_d56_raw_and_other_protocols(target: Target) -> str:
    """Raw and packet sockets, ICMP, GRE, SCTP; changes of its own interface, routes and neighbours."""
    async with _connected(target) as box:
        held = await attempt(
            box,
            """
import socket, subprocess
for name, family, kind, proto in (("raw", 2, 3, 255), ("raw icmp", 2, 3, 1), ("gre", 2, 3, 47), ("packet", 17, 3, 768),
                                  ("packet, cooked", 17, 2, 768), ("raw icmp6", 10, 3, 58), ("vsock", 40, 1, 0)):
    try:
        socket.socket(family, kind, proto).close()
        said("BROKEN", name, "opened")
    except OSError as error:
        said("held", name, errno.errorcode.get(error.errno))
""",
        )
        if target.driver.name == "gvisor":
            # Its interface is the sentry's; what leaves it is judged as it is on the other drivers.
            return held
        return (
            held
            + "; "
            + await attempt(
                box,
                """
import subprocess
for words in ("address add 10.213.0.9/32 dev eth0", "link set eth0 address 02:00:00:00:00:01",
              "link set eth0 promisc on", "route add 10.0.0.0/8 via 169.254.1.1", "link add d0 type dummy",
              "neighbour add 169.254.1.2 lladdr 02:00:00:00:00:02 dev eth0", "link set eth0 down"):
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    said("held" if done.returncode else "BROKEN", words, done.stderr.strip()[:60])
""",
            )
        )


async def attack_d59_spoofed_senders(target: Target) -> str:
    """Packets with other senders, put onto the sandbox's own wire by the machine's root: as if it had every right.

    A third sandbox, which the second may reach by a link, must see none of them that the first one forges.
    """
    if target.driver.name == "gvisor":
        raise NotHere("its wire is held by the sentry; the router's rules are the same for every driver")
    async with _connected(target) as victim, _connected(target) as friend, _connected(target) as box:
        theirs, friends = victim.facts.address, friend.facts.address
        await friend.set_network(OPEN_NETWORK, {"victim": theirs})
        await _require_alive(box)
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(python(victim, _LISTEN, timeout_s=60))
            await asyncio.sleep(0.5)
            await _forge(box.facts.init_pid, friends, theirs)
            sent = await python(
                friend, f"import socket; socket.socket(2, 2).sendto(b'friend', ({theirs!r}, 9000)); print('sent')"
            )
        seen = text_of(listening.result())
        require("sent" in text_of(sent), text_of(sent))
        require("friend" in seen, f"the linked sandbox was not heard, so nothing was tried: {seen}")
        require("forged" not in seen, f"a forged packet arrived: {seen}")
    return "15 forged packets, none of them arrived; those of the linked sandbox did"


_LISTEN: Final = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 9000))
s.settimeout(15)
while True:
    data, sender = s.recvfrom(100)
    print(data.decode(), sender[0], flush=True)
    if data == b"friend":
        break
"""


async def _forge(init_pid: int, source: str, to: str) -> None:
    """Send packets that claim to come from `source` out of the eth0 of the box whose init that is."""
    space = NetNs(Path(f"/proc/{init_pid}/ns/net"), "forger")
    try:
        await space.run(lambda: _send_forged(source, to))
    finally:
        space.close()


def _send_forged(source: str, to: str) -> None:
    udp = struct.pack("!4H", 9000, 9000, 14, 0) + b"forged"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0x0800))
        own = wire.getsockname()[4]
        # A router takes packets for its own hardware address; broadcast ones and wrong senders are tried beside.
        neighbours = Path("/proc/thread-self/net/arp").read_text().split()
        gateway = bytes.fromhex(neighbours[neighbours.index(_GATEWAY) + 3].replace(":", ""))
        for target, sender in ((gateway, own), (b"\xff" * 6, own), (gateway, b"\x02\0\0\0\0\1")):
            for claimed in (source, to, _GATEWAY, "127.0.0.1", "11.0.0.99"):
                wire.send(target + sender + b"\x08\0" + _packet(claimed, to, udp))


def _packet(source: str, to: str, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram."""
    ends = IPv4Address(source).packed + IPv4Address(to).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, 17, 0) + ends
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + payload


async def attack_d60_no_network_is_none(target: Target) -> str:
    """The policy `none`: nothing answers, neither the gateway nor a name nor anybody else."""
    async with _connected(target, NO_NETWORK) as box:
        return await _probe(
            box,
            """
for address in ("169.254.1.1", "8.8.8.8", "10.213.0.1", "169.254.169.254", "::ffff:8.8.8.8", "2606:4700::1111"):
    refused(address, address, 53)
    refused(address + " udp", address, 53, socket.SOCK_DGRAM)
try:
    socket.getaddrinfo("one.one.one.one", 443)
    said("BROKEN", "a name", "was resolved")
except OSError as error:
    said("held", "a name", str(error))
""",
        )
