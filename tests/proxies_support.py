"""What tests of the two proxies share: names, servers on loopback addresses that keep what they are sent, a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from cove.engine.network.dnswire import Answer, Kind, Rcode, Record
from cove.engine.network.exits import Exits, Flow
from cove.engine.network.explicit import serve_explicit
from cove.engine.network.listener import bound
from cove.engine.network.port import Endpoint
from cove.engine.network.resolver import Judges, Resolver
from cove.engine.network.transparent import accepting_wires, proxy_shares
from cove.engine.network.tunnels import serve_direct
from cove.model.closed import Opening
from cove.model.network import NetworkMode, NetworkPolicy, NetworkRule, Refusal, Verdict, Visit
from cove.model.policy import ClosedRanges

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GOOD, OTHER, EVIL = "127.0.0.11", "127.0.0.12", "127.0.0.66"
ALERT = bytes.fromhex("15030300020231")


def policy(*allow: str, deny: Sequence[str] = (), default: Verdict = Verdict.DENY, dry: bool = False) -> NetworkPolicy:
    rules = [NetworkRule(verdict=Verdict.DENY, target=target) for target in deny]
    rules += [NetworkRule(verdict=Verdict.ALLOW, target=target) for target in allow]
    return NetworkPolicy(mode=NetworkMode.POLICY, rules=tuple(rules), default=default, dry_run=dry)


class World:
    """Names, servers that note what they are sent, one sandbox with a policy, and the proxies in front of it."""

    def __init__(self) -> None:
        self.names = {"good.example": GOOD, "other.example": OTHER, "evil.example": EVIL}
        self.policy = policy("good.example")
        self.refusals: list[Refusal] = []
        self.visits: list[Visit] = []
        self.served: list[tuple[str, bytes]] = []
        self.original = (GOOD, 80)
        self.port = 0
        self.proxy = 0
        closed = ClosedRanges([Opening("127.0.0.0/24")])
        judges = Judges(closed=lambda: closed, learner=self, report=self.refusals.append, visited=self.visits.append)
        self.exits = Exits(self, Resolver(self, judges), judges, self)

    def by_address(self, address: str) -> Endpoint | None:
        return Endpoint(box="b1", address=address, index=1, policy=self.policy)

    by_box = by_address

    async def learn(self, index: int, name: str, address: str, seconds: float) -> bool:  # noqa: ARG002
        raise AssertionError("the proxies open nothing in the packet filter")

    async def ask(self, name: str, kind: int) -> Answer:
        address = self.names.get(name)
        if address is None:
            return Answer(rcode=Rcode.NXDOMAIN, is_truncated=False, records=())
        record = Record(name=name, kind=kind, ttl=60, data=ipaddress.IPv4Address(address).packed)
        return Answer(rcode=Rcode.NOERROR, is_truncated=False, records=(record,) if kind == Kind.A else ())

    async def socket(self, family: int, kind: int, protocol: int = 0, /) -> socket.socket:
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    async def client(self, data: bytes = b"", *, original: str = GOOD) -> Pair:
        """A client that believes to be connected to `original`."""
        self.original = (original, self.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy)
        writer.write(data)
        return reader, writer

    async def get(self, data: bytes, *, original: str = GOOD) -> bytes:
        """All that comes back for `data`."""
        reader, writer = await self.client(data, original=original)
        try:
            async with asyncio.timeout(60):
                return await reader.read()
        finally:
            writer.close()


async def echo(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers HTTP with what was asked, and says anything else back."""
    address = writer.get_extra_info("sockname")[0]
    with contextlib.suppress(OSError, EOFError):
        while data := await reader.read(65536):
            world.served.append((address, data))
            body = b"from " + address.encode()
            if data[:5] in {b"GET /", b"POST ", b"HEAD ", b"OPTIO"}:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            elif data[:1] == b"\x16":
                writer.write(body)
            else:
                writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def world_of(serve: Serve | None = None, *, explicit: bool = False) -> AsyncGenerator[World]:
    world = World()
    handler = serve or (lambda reader, writer: echo(world, reader, writer))
    async with contextlib.AsyncExitStack() as stack:
        for address in (GOOD, OTHER, EVIL):
            server = await asyncio.start_server(handler, address, world.port)
            world.port = server.sockets[0].getsockname()[1]
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)

        async def direct(box: str, flow: Flow) -> None:
            await serve_direct(world.exits, box, flow, *world.original)

        listener = bound(await world.socket(socket.AF_INET, socket.SOCK_STREAM), "127.0.0.1", 0)
        world.proxy = listener.getsockname()[1]
        handle = serve_explicit(world.exits) if explicit else direct
        await stack.enter_async_context(accepting_wires(listener, world.exits, proxy_shares(), handle))
        yield world


def request(host: str, *more: str, method: str = "GET", path: str = "/") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {host}", *more, "", "")).encode()
