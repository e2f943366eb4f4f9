"""A router with the packet rules, two boxes and a world behind it, made of namespaces: what the rules' tests stand in.

No sandbox, no server: `sv1` and `sv2` are the router's ends of two boxes' interfaces, `up0` leads to a world that has
every address on its loopback which a test asks for, with echoing servers at some ports of all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

from cove.engine.network.netns import NetNs
from cove.engine.network.port import Endpoint
from cove.engine.network.ruleset import Ruleset, open_ruleset
from cove.model.closed import ClosedRanges, Opening
from cove.model.network import NetworkPolicy, Refusal
from world_namespace_support import Namespace, wire

RANGE = "10.213.0.0/16"
ADDRESSES = {1: "10.213.0.1", 2: "10.213.0.2"}
METADATA = "169.254.169.254"
PRIVATE = "10.9.9.9"
PUBLIC = "11.1.1.1"
OTHER = "11.2.2.2"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - of namespaces of the test
TRANSIT = "169.254.64.2"
TCP_PORTS = (22, 53, 80, 443, 853, 5432)
UDP_PORTS = (53, 123, 443, 5000)
WAIT_S = 3.0
"""Longer than this nothing takes here: what is silent then is dropped."""
REFUSED = errno.ECONNREFUSED
UNREACHABLE = errno.EHOSTUNREACH
PROHIBITED = errno.EACCES


class Table:
    """Who is on the network."""

    def __init__(self) -> None:
        self.boxes = {address: Endpoint(box=f"sb_{n}", address=address, index=n) for n, address in ADDRESSES.items()}

    def by_address(self, address: str) -> Endpoint | None:
        return self.boxes.get(address)

    def by_box(self, box: str) -> Endpoint | None:
        return next((one for one in self.boxes.values() if one.box == box), None)


class Yard:
    """See the module."""

    def __init__(self, router: Namespace, boxes: dict[int, Namespace], world: Namespace) -> None:
        self.space = router
        self.boxes = boxes
        self.world = world
        self.router = NetNs(Path(router.path), "router")
        self.ruleset: Ruleset
        self.refusals: list[Refusal] = []
        self.proxied: list[tuple[str, int]] = []

    async def apply(self, policy: NetworkPolicy, box: int = 1, links: dict[str, str] | None = None) -> None:
        await self.ruleset.apply(box, ADDRESSES[box], policy, links or {})

    async def tcp(self, address: str, port: int, box: int = 1) -> str:
        """`open`, or the name of what went wrong."""
        with self.boxes[box].socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            try:
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(client, (address, port)), WAIT_S)
                return await self.echo(client)
            except (TimeoutError, OSError) as error:
                return _name(error)

    async def echo(self, client: socket.socket) -> str:
        """Whether a connection still carries bytes."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.sock_sendall(client, b"x"), WAIT_S)
            return "open" if await asyncio.wait_for(loop.sock_recv(client, 1), WAIT_S) == b"x" else "closed"
        except (TimeoutError, OSError) as error:
            return _name(error)

    async def connected(self, address: str, port: int, box: int = 1) -> socket.socket:
        """A connection that works."""
        client = self.boxes[box].socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(client, (address, port)), WAIT_S)
        assert await self.echo(client) == "open"
        return client

    async def udp(self, address: str, port: int, box: int = 1, payload: bytes = b"x") -> str:
        """`open` if it is answered, `silent`, or the name of what went wrong."""
        with self.boxes[box].socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            try:
                await loop.sock_connect(client, (address, port))
                await loop.sock_sendall(client, payload)
                return "open" if await asyncio.wait_for(loop.sock_recv(client, 65536), WAIT_S) == payload else "other"
            except (TimeoutError, OSError) as error:
                return _name(error)

    async def ping(self, address: str, box: int = 1) -> str:
        """`open` if an echo is answered. A raw socket, so that errors of ICMP are seen as answers too."""
        with self.boxes[box].socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendto(client, ping_packet(), (address, 0))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    while True:
                        kind = (await loop.sock_recv(client, 1500))[20]
                        if kind in {0, 3}:
                            return "open" if kind == 0 else "refused"
            return "silent"

    def raw(self, packet: bytes, box: int = 1) -> None:
        """Send a whole IPv4 packet as it is."""
        with self.boxes[box].socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
            sender.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))


def _name(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "silent"
    code = error.errno if isinstance(error, OSError) else 0
    return {errno.ECONNREFUSED: "refused", errno.EHOSTUNREACH: "refused", errno.ECONNRESET: "reset"}.get(
        code or 0, errno.errorcode.get(code or 0, "?")
    )


def ping_packet() -> bytes:
    """An echo request with its sum."""
    body = b"\x08\x00\x00\x00\x12\x34\x00\x01"
    total = sum(int.from_bytes(body[at : at + 2], "big") for at in range(0, len(body), 2))
    total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + (~total & 0xFFFF).to_bytes(2, "big") + body[4:]


def ip_packet(source: str, target: str, protocol: int, payload: bytes, options: bytes = b"") -> bytes:
    """A whole packet; the kernel fills in its sum."""
    words = (20 + len(options)) // 4
    head = bytes([0x40 | words, 0]) + (20 + len(options) + len(payload)).to_bytes(2, "big") + b"\0\0\0\0"
    head += bytes([64, protocol, 0, 0]) + socket.inet_aton(source) + socket.inet_aton(target)
    return head + options + payload


@contextlib.asynccontextmanager
async def yard(*, opened: tuple[Opening, ...] = ()) -> AsyncGenerator[Yard]:
    """All of it, until the block ends."""
    spaces = [Namespace() for _ in range(4)]
    router, one, two, world = spaces
    async with contextlib.AsyncExitStack() as stack:
        for space in spaces:
            stack.callback(space.close)
        _connect(router, {1: one, 2: two}, world)
        made = Yard(router, {1: one, 2: two}, world)
        stack.callback(made.router.close)
        closed = ClosedRanges(opened, inside=[RANGE, "169.254.64.0/18"])
        made.ruleset = await stack.enter_async_context(open_ruleset(made.router, addresses=RANGE, closed=closed))
        await _serve(stack, made)
        yield made


def _connect(router: Namespace, boxes: dict[int, Namespace], world: Namespace) -> None:
    for index, box in boxes.items():
        wire(router, f"sv{index}", box, "eth0")
        router.ip(
            f"addr add 169.254.1.1/32 dev sv{index}",
            f"route add {ADDRESSES[index]}/32 dev sv{index} src 169.254.1.1",
        )
        box.ip(
            f"addr add {ADDRESSES[index]}/32 dev eth0",
            "route add 169.254.1.1/32 dev eth0 scope link",
            "route add default via 169.254.1.1",
        )
    wire(router, "up0", world, "down0")
    router.ip(f"addr add {TRANSIT}/30 dev up0", "route add default via 169.254.64.1")
    router.sysctl("ipv4/ip_forward", "1")
    addresses = (PUBLIC, OTHER, PRIVATE, METADATA, "192.168.7.7", "172.16.7.7", "100.100.100.200", "168.63.129.16")
    world.ip("addr add 169.254.64.1/30 dev down0", *(f"addr add {one}/32 dev lo" for one in addresses))


async def _serve(stack: contextlib.AsyncExitStack, made: Yard) -> None:
    writers: set[asyncio.StreamWriter] = set()

    async def end() -> None:
        for writer in tuple(writers):
            writer.transport.abort()
        while writers:
            await asyncio.sleep(0)

    stack.push_async_callback(end)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()
        writers.discard(writer)

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw: bytes = writer.get_extra_info("socket").getsockopt(socket.SOL_IP, 80, 16)
        made.proxied.append((socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")))
        await echo(reader, writer)

    listening = [(made.world, EVERYWHERE, port, echo) for port in TCP_PORTS]
    listening += [(made.space, "169.254.1.1", port, echo) for port in (53, 3128, 3130, 9999)]
    listening += [(made.space, "169.254.1.1", 3129, proxy)]
    listening += [(made.boxes[2], EVERYWHERE, 7000, echo)]
    for space, address, port, handler in listening:
        server = await asyncio.start_server(handler, sock=space.listener(address, port))
        stack.callback(server.close)
    loop = asyncio.get_running_loop()
    # Bound to each address: a server of all would answer from another one.
    datagrams = [(made.world, address, port) for port in UDP_PORTS for address in (PUBLIC, OTHER)]
    datagrams += [(made.space, "169.254.1.1", 53)]
    for space, address, port in datagrams:
        transport, _ = await loop.create_datagram_endpoint(_Echo, sock=space.datagrams(address, port))
        stack.callback(transport.close)


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)
