"""A world for sandboxes: an `outside` for a server (COVE_NETWORK_OUTSIDE) and an internet beyond it, in namespaces.

```
  the server's router ── uplink ──► outside ── veth ──► net: every address below, DNS, HTTP, TLS, echo
                                    11.255.0.1          11.255.0.2
```
`outside` stands for the machine: what listens there (port 7777 at every address of it) is the host's. `net` answers for
public addresses, other people's private ranges, metadata services and public resolvers, and keeps all that arrives:
`world.seen` (connections, datagrams), `world.dns.asked` (questions), so that a test can say that nothing got out.

`with running_world(folder) as world: server = world.server(folder)`; or the fixtures `world` and `world_server` of
tests/conftest.py, one of each per module. Nothing touches the machine's own network, and nothing outlives the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import world_dns_support as dns
from tests_support import RunningServer, make_server
from world_http_support import Authority, DatagramEcho, HttpServer, Seen, write_authority
from world_namespace_support import Namespace, wire

RESOLVER: Final = "11.0.0.53"
OTHER_RESOLVER: Final = "11.0.0.54"
"""Resolves everything too, but is not the server's."""
GOOD, API, EVIL, OTHER = "11.0.0.10", "11.0.0.11", "11.0.0.66", "11.0.0.12"
OUTSIDE: Final = "11.255.0.1"
"""The address of `outside`, so of the host, that the internet sees."""
METADATA: Final = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "169.254.170.2", "192.0.0.192")
PRIVATE: Final = ("10.0.0.5", "172.16.0.5", "192.168.0.5", "100.64.0.5", "198.18.0.5")
PUBLIC_RESOLVERS: Final = ("8.8.8.8", "1.1.1.1", "9.9.9.9")
PUBLIC: Final = (RESOLVER, OTHER_RESOLVER, GOOD, API, EVIL, OTHER, *PUBLIC_RESOLVERS)
METADATA6: Final = "fd00:ec2::254"
PUBLIC6: Final = "2600::10"
HTTP_PORT, TLS_PORT, OTHER_HTTP_PORT, OTHER_TLS_PORT, DOT_PORT, ECHO_PORT = 80, 443, 8080, 8443, 853, 9999
HOST_PORT: Final = 7777

NAMES: Final[dict[str, dns.Answer]] = {
    "good.example": dns.addresses(GOOD, PUBLIC6),
    "api.good.example": dns.addresses(API),
    "deep.api.good.example": dns.addresses(API),
    "evil.example": dns.addresses(EVIL),
    "sub.evil.example": dns.addresses(EVIL),
    "other.example": dns.addresses(OTHER),
    "fronted.example": dns.addresses(GOOD),  # another name at good.example's address
    "xn--mnchen-3ya.example": dns.addresses(OTHER),
    "zero.example": dns.addresses(GOOD, ttl=0),
    "metadata.example": dns.addresses("169.254.169.254"),
    "metadata.google.internal": dns.addresses("169.254.169.254"),
    "loopback.example": dns.addresses("127.0.0.1", "::1"),
    "private.example": dns.addresses("10.0.0.5"),
    "half-private.example": dns.addresses("10.0.0.5", GOOD),
    "host.example": dns.addresses(OUTSIDE),
    "mapped.example": dns.addresses("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
    "six.example": dns.addresses(PUBLIC6),
    "cname-good.example": dns.alias("good.example", GOOD),
    "cname-private.example": dns.alias("private.example", "10.0.0.5"),
    "cname-denied.example": dns.alias("evil.example", EVIL),
    "cname-loop.example": dns.alias("cname-loop.example"),
    "refused.example": dns.refused,
    "never.example": dns.never,
    "slow.example": dns.late(1.0, dns.addresses(GOOD)),
    "wrong-ident.example": dns.wrong_ident,
    "wrong-question.example": dns.wrong_question,
    "poison.example": dns.unasked_extra,
    "pointer-loop.example": dns.pointer_loop,
    "garbage.example": dns.garbage,
    "huge.example": dns.huge,
    "tcp-only.example": dns.by_tcp_only(dns.addresses(GOOD)),
    "dns.google": dns.addresses("8.8.8.8"),
    "cloudflare-dns.com": dns.addresses("1.1.1.1"),
    "*.tunnel.example": dns.addresses(OTHER),
    "*.wild.example": dns.addresses(OTHER),
}
"""What the world's DNS knows; a test may change `world.dns.names` and has it back as it was at the fixture's end."""


class World:
    """See the module. Made by `running_world`."""

    def __init__(self, folder: Path) -> None:
        self.outside, self.net = Namespace(), Namespace()
        self.authority = Authority()
        self.ca_file = write_authority(self.authority, folder)
        self.seen: list[Seen] = []
        self.dns = dns.NameServer(NAMES)
        self._http = HttpServer(self.authority, self.seen)
        self._ready = threading.Event()
        self._stop: Callable[[], object] = self._ready.set
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._lay_wires()

    def server(self, parent: Path, **env: str) -> RunningServer:
        """A server (not started) whose sandboxes' internet is this world."""
        return make_server(parent, **self.settings, **env)

    @property
    def settings(self) -> dict[str, str]:
        """What a server needs to be told, as environment variables."""
        return {"COVE_NETWORK_OUTSIDE": self.outside.path, "COVE_NETWORK_RESOLVERS": RESOLVER}

    def forget(self) -> None:
        """Start to look anew: nothing seen, nothing asked, every name as at first."""
        self.seen.clear()
        self.dns.forget()
        self.dns.names = dict(NAMES)

    def seen_at(self, address: str, port: int | None = None) -> list[Seen]:
        """What arrived there."""
        return [one for one in list(self.seen) if one.at == address and port in {None, one.port}]

    @contextlib.contextmanager
    def sniffing(self, *, place: str = "net") -> Iterator[list[bytes]]:
        """All IP packets that arrive over the wire between `outside` and `net`, from their IP header on."""
        where = {"net": self.net, "outside": self.outside}[place]
        tap = where.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        tap.bind(("world", 3))
        tap.settimeout(0.05)
        packets: list[bytes] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    data, (_, _, kind, *_) = tap.recvfrom(65536)
                    if kind != socket.PACKET_OUTGOING:
                        packets.append(data)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield packets
        finally:
            done.set()
            thread.join()
            tap.close()

    def close(self) -> None:
        self._stop()
        self._thread.join(60)
        self.outside.close()
        self.net.close()

    def start(self) -> None:
        """Serve; returns when everything listens."""
        self._thread.start()
        self._ready.wait(60)
        if self._failure is not None:
            raise self._failure

    def _lay_wires(self) -> None:
        wire(self.outside, "world", self.net, "world")
        self.outside.ip(
            f"addr add {OUTSIDE}/30 dev world",
            "route add default via 11.255.0.2",
            "addr add fd99::1/64 dev world nodad",
            "route add default via fd99::2",
        )
        everywhere = [f"addr add {address}/32 dev lo" for address in (*PUBLIC, *METADATA, *PRIVATE)]
        self.net.ip(
            "addr add 11.255.0.2/30 dev world",
            f"route add default via {OUTSIDE}",
            "addr add fd99::2/64 dev world nodad",
            "route add default via fd99::1",
            f"addr add {METADATA6}/128 dev lo nodad",
            f"addr add {PUBLIC6}/128 dev lo nodad",
            *everywhere,
        )

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        async with contextlib.AsyncExitStack() as stack:
            try:
                await self._listen(stack)
            except BaseException as error:
                self._failure = error
                raise
            finally:
                self._ready.set()
            await asyncio.Event().wait()

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        handlers: dict[int, Callable[..., Coroutine[Any, Any, None]]] = {
            HTTP_PORT: self._http.plain,
            OTHER_HTTP_PORT: self._http.plain,
            TLS_PORT: self._http.secure,
            OTHER_TLS_PORT: self._http.secure,
            DOT_PORT: self._http.echo,
            ECHO_PORT: self._http.echo,
            22: self._http.echo,
            53: self.dns.over_tcp,
        }
        for port, handler in handlers.items():
            for family in ("0.0.0.0", "::"):  # noqa: S104 - of a namespace of its own
                await stack.enter_async_context(_serving(handler, self.net.listener(family, port)))
        for family in ("0.0.0.0", "::"):  # noqa: S104
            await stack.enter_async_context(_serving(self._http.plain, self.outside.listener(family, HOST_PORT)))
        await self._bind(stack, self.outside, OUTSIDE, HOST_PORT, lambda: DatagramEcho(OUTSIDE, HOST_PORT, self.seen))
        for address in (*PUBLIC, *METADATA, *PRIVATE, METADATA6, PUBLIC6):
            for port in (TLS_PORT, ECHO_PORT):
                await self._bind(stack, self.net, address, port, self._echo(address, port))
        for address in (*PUBLIC, *METADATA, *PRIVATE):
            await self._bind(stack, self.net, address, 53, self._answering(address))

    def _echo(self, address: str, port: int) -> Callable[[], DatagramEcho]:
        return lambda: DatagramEcho(address, port, self.seen)

    def _answering(self, address: str) -> Callable[[], dns.DatagramAnswers]:
        return lambda: self.dns.over_udp(address)

    @staticmethod
    async def _bind(
        stack: contextlib.AsyncExitStack,
        where: Namespace,
        address: str,
        port: int,
        protocol: Callable[[], asyncio.DatagramProtocol],
    ) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(protocol, sock=where.datagrams(address, port))
        stack.callback(transport.close)


@contextlib.asynccontextmanager
async def _serving(handler: Callable[..., Coroutine[Any, Any, None]], sock: socket.socket) -> AsyncIterator[None]:
    server = await asyncio.start_server(handler, sock=sock, limit=1 << 20)
    try:
        yield
    finally:
        server.close()


@contextlib.contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """A world, gone at the end; `folder` gets its CA's certificate."""
    world = World(folder)
    try:
        world.start()
        yield world
    finally:
        world.close()
