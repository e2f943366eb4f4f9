"""The only way out for the program that talks to registries: an HTTP proxy in its otherwise empty network namespace.

It sees every host that is asked for (registry, token server, redirects), resolves it once, checks the address it then
dials, limits the time to connect, counts bytes. TLS passes through unopened. Plain http is relayed only to hosts that
the operator listed for it. Nothing here trusts the program on the inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self
from urllib.parse import urlsplit

from cove.engine.clock import Clock
from cove.engine.images.addresses import RegistryRules, split_host

log = logging.getLogger(__name__)

HEAD_BYTES: Final = 32 * 1024
HEAD_LIMIT_S: Final = 15.0
CHUNK: Final = 256 * 1024
_RESOLVERS: Final = ThreadPoolExecutor(4, "cove-resolve")
"""Threads of their own: a name server that is silent must not keep the rest of the server from its threads."""

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Refused(Exception):
    """The rules forbid this connection. The text is for the caller of the pull."""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of `host`, in the system's order. Raises: OSError."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, look_up)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Outlet:
    """What one pull may reach, and what it did. `refused` has the reason for a connection that a rule stopped."""

    def __init__(
        self, rules: RegistryRules, clock: Clock, *, connect_s: float = 2.0, resolver: Resolve = resolve
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._connect_s = connect_s
        self._resolve = resolver
        self.bytes = 0
        self.last_byte_at = clock.monotonic()
        self.has_connected = False
        self.refused = ""
        self.unreachable = ""

    @asynccontextmanager
    async def serving(self, sockets: list[socket.socket], forwards: list[tuple[str, int]]) -> AsyncGenerator[None]:
        """Accept on the first of `sockets` as a proxy, on the others as wires to `forwards`. Closes all at the end."""
        handlers = [self._proxy, *(self._wire_to(host, port) for host, port in forwards)]
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(_Tasks())
            for sock, handler in zip(sockets, handlers, strict=True):
                server = await asyncio.start_server(tasks.wrap(handler), sock=sock.dup(), limit=HEAD_BYTES)
                stack.callback(server.close)
            yield

    async def dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to `host`: resolved once, to an address that was checked. Raises: Refused, OSError."""
        try:
            async with asyncio.timeout(self._connect_s):
                return await self._dial(host, port)
        except TimeoutError as error:
            self.unreachable = f"{host} does not answer"
            raise OSError(f"{host} does not answer") from error
        except OSError as error:
            self.unreachable = f"{host} cannot be reached: {error.strerror or 'unknown host'}"
            raise

    async def _dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        addresses = await self._resolve(host, port)
        allowed = [address for address in addresses if self._rules.may_dial(host, port, address)]
        if not allowed:
            self.refused = f"{host} is in an address range that is closed to pulls"
            raise Refused(self.refused)
        for address in allowed[:-1]:
            with contextlib.suppress(OSError):
                return await self._connected(address, port)
        return await self._connected(allowed[-1], port)

    async def _connected(self, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        pair = await asyncio.open_connection(address, port, limit=CHUNK)
        self.has_connected = True
        self.touch()
        return pair

    def touch(self) -> None:
        """Something came."""
        self.last_byte_at = self._clock.monotonic()

    async def _proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_LIMIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
            if method == "CONNECT":
                host, port = split_host(target, 443)
                far_reader, far_writer = await self.dial(host, port)
                first = b""
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                host, port, first = self._plain(method, target, head)
                far_reader, far_writer = await self.dial(host, port)
        except Refused:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        except OSError:
            writer.write(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, TimeoutError):
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        far_writer.write(first)
        await self._relay(reader, writer, far_reader, far_writer)

    def _plain(self, method: str, target: str, head: bytes) -> tuple[str, int, bytes]:
        """Where a clear-text request goes, and what is sent there. One request per connection, so each is checked."""
        parts = urlsplit(target)
        host, port = parts.hostname or "", parts.port or 80
        if parts.scheme != "http" or not host or method not in {"GET", "HEAD", "POST"}:
            raise ValueError("no request for a proxy")
        if not self._rules.is_plain(host, port):
            self.refused = f"{host} wants to be spoken to in clear text, which is not allowed"
            raise Refused(self.refused)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        dropped = (b"connection:", b"proxy-connection:", b"proxy-authorization:", b"keep-alive:")
        fields = [line for line in head.split(b"\r\n")[1:-2] if not line.lower().startswith(dropped)]
        lines = [f"{method} {path} HTTP/1.1".encode(), *fields, b"Connection: close", b"", b""]
        return host, port, b"\r\n".join(lines)

    def _wire_to(self, host: str, port: int) -> _Handler:
        async def wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far_reader, far_writer = await self.dial(host, port)
            except (Refused, OSError):
                return
            await self._relay(reader, writer, far_reader, far_writer)

        return wire

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        """Until the far side has said all, or either is gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                up = tasks.create_task(self._pump(reader, far_writer, counted=False))
                await self._pump(far_reader, writer, counted=True)
                up.cancel()
        finally:
            far_writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                if counted:
                    self.bytes += len(data)
                    self.touch()
                sink.write(data)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()


_Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class _Tasks:
    """The connections being served; leaving ends them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def wrap(self, handler: _Handler) -> _Handler:
        """The handler as one that this object knows of, and that always closes its connection."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - a coroutine runs in a task
            self._running.add(task)
            try:
                await handler(reader, writer)
                await writer.drain()
            except asyncio.CancelledError:
                pass  # the pull is over; the server's own bookkeeping takes a cancelled handler for an error
            except OSError as error:
                log.debug("a connection of a pull ended: %r", error)
            finally:
                self._running.discard(task)
                writer.close()

        return handle
