"""Connections to services: TLS that is verified, to an address that was resolved once and checked. Kept for a while.

A connection rests for the same sandbox and the same service only. It is used again only while everything that it was
opened under still holds.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from socket import socket
from typing import Final, NamedTuple, Protocol

from cove.edge.errors import BadUpstream, UpstreamTimeout
from cove.edge.tunnel import Tunnel
from cove.model.credentials import Service
from cove.model.errors import Forbidden

CONNECT_S: Final = 10.0
TLS_S: Final = 10.0
IDLE_S: Final = 20.0
"""How long a connection rests between two requests before it is closed: less than what servers allow."""

IDLE_CONNECTIONS: Final = 4
"""How many rest for one sandbox and service."""

Check = Callable[[str], None]
"""Whether an address may be dialled. Raises: Forbidden."""


class Outside(Protocol):
    """The world beyond the sandboxes' network, as the engine reaches it."""

    def resolve(self, host: str) -> Awaitable[list[str]]:
        """The IPv4 addresses of a name. Raises: OSError."""
        ...

    def connect(self, address: str, port: int) -> Awaitable[socket]:
        """A connected non-blocking socket. Raises: OSError."""
        ...


class ServiceStream:
    """The bytes of one connection, as a forwarded request wants them."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    @property
    def is_quiet(self) -> bool:
        """Whether it is open and nothing lies unread."""
        return self._tunnel.is_quiet

    async def __anext__(self) -> bytes:
        """The next bytes. Raises: StopAsyncIteration, BadUpstream (reset)."""
        data = await self._tunnel.read()
        if data:
            return data
        if self._tunnel.was_reset:
            raise BadUpstream("the connection was reset")
        raise StopAsyncIteration

    async def write(self, data: bytes) -> None:
        """Send. To one that has closed, nothing: it may have answered before, and whoever reads sees the end."""
        await self._tunnel.write(data)

    async def write_eof(self) -> None:
        """Send no more."""
        self._tunnel.write_eof()

    def close(self) -> None:
        """End it."""
        self._tunnel.close()


class ServiceLink:
    """A connection for one request. Whoever leaves it clean sets `keep`."""

    __slots__ = ("keep", "stream", "was_used")

    def __init__(self, stream: ServiceStream, *, was_used: bool) -> None:
        self.stream = stream
        self.was_used = was_used
        self.keep = False


class _Resting(NamedTuple):
    stream: ServiceStream
    address: str
    timer: asyncio.TimerHandle


_Place = tuple[str, str, str, int]
"""Whose connection to which service, and where that was."""


class ServiceLinks:
    """All connections to services."""

    def __init__(self, outside: Outside, tls: ssl.SSLContext, *, stall_s: float) -> None:
        self._outside = outside
        self._tls = tls
        self._stall_s = stall_s
        self._resting: dict[_Place, list[_Resting]] = {}

    @asynccontextmanager
    async def link(self, sandbox: str, service: Service, check: Check, *, fresh: bool) -> AsyncGenerator[ServiceLink]:
        """A connection of a sandbox to a service. Raises: Forbidden (by `check`), BadUpstream, UpstreamTimeout."""
        place = (sandbox, service.name, service.host, service.port)
        taken = None if fresh else self._take(place, check)
        stream, address = taken or await self._opened(service, check)
        link = ServiceLink(stream, was_used=taken is not None)
        try:
            yield link
        finally:
            if link.keep and stream.is_quiet:
                self._rest(place, stream, address)
            else:
                stream.close()

    def close(self, sandbox: str | None, service: str | None) -> None:
        """Close what rests for a sandbox (None: any) and a service (None: any)."""
        for place in list(self._resting):
            if sandbox in {None, place[0]} and service in {None, place[1]}:
                for one in self._resting.pop(place):
                    one.timer.cancel()
                    one.stream.close()

    def _take(self, place: _Place, check: Check) -> tuple[ServiceStream, str] | None:
        resting = self._resting.get(place, [])
        while resting:
            one = resting.pop()
            one.timer.cancel()
            if one.stream.is_quiet:
                check(one.address)
                return one.stream, one.address
            one.stream.close()
        return None

    def _rest(self, place: _Place, stream: ServiceStream, address: str) -> None:
        resting = self._resting.setdefault(place, [])
        timer = asyncio.get_running_loop().call_later(IDLE_S, self._expire, place, stream)
        resting.append(_Resting(stream, address, timer))
        if len(resting) > IDLE_CONNECTIONS:
            oldest = resting.pop(0)
            oldest.timer.cancel()
            oldest.stream.close()

    def _expire(self, place: _Place, stream: ServiceStream) -> None:
        stream.close()
        left = [one for one in self._resting.get(place, ()) if one.stream is not stream]
        if left:
            self._resting[place] = left
        else:
            self._resting.pop(place, None)

    async def _opened(self, service: Service, check: Check) -> tuple[ServiceStream, str]:
        """Resolved once, and dialled at an address that was checked; the first that answers."""
        try:
            async with asyncio.timeout(CONNECT_S):
                addresses = await self._outside.resolve(service.host)
                sock, address = await self._connected(service, addresses, check)
        except TimeoutError:
            raise UpstreamTimeout(f"{service.host} did not take a connection in time: try again") from None
        except OSError as error:
            raise BadUpstream(f"{service.host} cannot be reached", internal=repr(error)) from None
        return ServiceStream(await self._secured(service, sock)), address

    async def _connected(self, service: Service, addresses: list[str], check: Check) -> tuple[socket, str]:
        refused: Forbidden | None = None
        failed: OSError | None = None
        for address in addresses:
            try:
                check(address)
                return await self._outside.connect(address, service.port), address
            except Forbidden as error:
                refused = error
            except OSError as error:
                failed = error
        if failed is None and refused is not None:
            raise refused
        raise failed or OSError("no address")

    async def _secured(self, service: Service, sock: socket) -> Tunnel:
        loop = asyncio.get_running_loop()
        try:
            _, tunnel = await loop.create_connection(
                lambda: Tunnel(self._stall_s),
                sock=sock,
                ssl=self._tls,
                server_hostname=service.host,
                ssl_handshake_timeout=TLS_S,
                ssl_shutdown_timeout=TLS_S,
            )
        except ssl.SSLCertVerificationError as error:
            raise BadUpstream(
                f"{service.host} shows a certificate that this server does not trust", internal=error.verify_message
            ) from None
        except (OSError, EOFError) as error:
            raise BadUpstream(f"{service.host} does not speak TLS as it should", internal=repr(error)) from None
        return tunnel


def tls_context(extra_ca: bytes) -> ssl.SSLContext:
    """How upstreams are verified: by the machine's certificates and the operator's extra ones (PEM)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if extra_ca:
        context.load_verify_locations(cadata=extra_ca.decode("ascii"))
    return context
