"""One request and its answer over ASGI: headers in, bytes out, marks for `Server-Timing`. No dialect, no routing.

To add a header to every answer: `Exchange.start`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from time import perf_counter
from typing import Any, Final

from cove.core.ratelimits import RateState
from cove.edge.errors import BodyStalled, BodyTooLarge, ClientGone, Malformed, Where
from cove.edge.limits import EdgeLimits
from cove.edge.stopping import Stopping
from cove.model.origin import Origin

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

TRANSPORT: Final = "cove.transport"
"""Where the protocol leaves the connection's transport in the ASGI scope."""

LOOK_S: Final = 1.0
"""How often a connection that is not read from now is looked at: did its client hang up?"""

TAKE_OVER: Final = "cove.take_over"
"""In the ASGI scope of a request that asks for another protocol: a function that sends a head and hands the connection
to an `asyncio.Protocol`, which gets all that the client sends from there on."""

SWITCHING_PROTOCOLS: Final = 101

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""What we take over from a caller: nothing that could forge a log line or a header."""


class Exchange:
    """One request being answered. Owned by one task."""

    __slots__ = (
        "_headers",
        "_receive",
        "_send",
        "body_done",
        "dialect",
        "gone",
        "limits",
        "marks",
        "op",
        "origin",
        "principal",
        "rate",
        "releases",
        "request_id",
        "scope",
        "started_at",
        "status",
        "stopping",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: EdgeLimits, stopping: Stopping) -> None:
        self.scope = scope
        self.limits = limits
        self.stopping = stopping
        self.started_at = perf_counter()
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] | None = None
        self.status = 0
        self.body_done = False
        self.gone = False
        self.marks: list[tuple[str, float]] = []
        self.op = ""
        self.origin = Origin()
        self.dialect = ""
        self.principal = ""
        self.rate: RateState | None = None
        self.releases: list[Callable[[], None]] = []
        given = self.header(b"x-request-id")
        taken = given is not None and _REQUEST_ID.fullmatch(given)
        self.request_id = given.decode() if given is not None and taken else f"req_{secrets.token_hex(8)}"

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """Request headers by lowercase name. Of a repeated one the first counts."""
        if self._headers is None:
            found: dict[bytes, bytes] = {}
            for name, value in self.scope["headers"]:
                found.setdefault(name, value)
            self._headers = found
        return self._headers

    def header(self, name: bytes) -> bytes | None:
        """One request header."""
        return self.headers.get(name)

    def text_header(self, name: str) -> str | None:
        """One request header as text. Raises: Malformed if it is not visible ASCII."""
        value = self.headers.get(name.lower().encode())
        if value is None:
            return None
        if not value.isascii() or not value.decode("ascii").isprintable():
            raise Malformed(
                f"the header {name} has characters other than visible ASCII", where=Where.HEADER, field=name
            )
        return value.decode("ascii")

    def client_address(self, *, behind_proxy: bool) -> str:
        """The client's address; empty on the unix socket.

        `behind_proxy`: a proxy that the operator put before us is believed, for the last entry of X-Forwarded-For,
        which is what it saw itself; whatever stands before that, anybody may have written.
        """
        client: str = self.scope["client"][0] if self.scope.get("client") else ""
        if not behind_proxy:
            return client
        lines = [value for name, value in self.scope["headers"] if name == b"x-forwarded-for"]
        last = lines[-1].decode("latin-1").rpartition(",")[2].strip() if lines else ""
        try:
            return str(ipaddress.ip_address(last))
        except ValueError:
            return client

    def mark(self, name: str, milliseconds: float) -> None:
        """Add a part to `Server-Timing`. Only before the answer starts."""
        self.marks.append((name, milliseconds))

    @property
    def has_started(self) -> bool:
        """Whether the answer's status line is out, so that a failure can no longer change it."""
        return self.status != 0

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers. The body follows with `write`."""
        await self._send(self._head(status, headers))

    async def relay(self, status: int, headers: Headers) -> None:
        """As `start`, with nothing of ours among the headers: the answer is somebody else's."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece of the body and wait until the client keeps up. Raises: ClientGone."""
        if self.gone:
            raise ClientGone("the client closed the connection")
        try:
            async with asyncio.timeout(self.limits.reader_stall_s):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            self.gone = True
            raise ClientGone("the client stopped reading") from None

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer. A HEAD request gets the headers only."""
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send(self._head(status, headers))
        if self.scope["method"] == "HEAD":
            body = b""
        await self.write(body, more=False)

    @property
    def can_switch(self) -> bool:
        """Whether the client asks for another protocol and the connection can be handed over."""
        return TAKE_OVER in self.scope

    def switch_protocols(self, taker: asyncio.Protocol, headers: Headers) -> None:
        """Answer 101 with `headers` and hand the connection to `taker`; only if `can_switch`, and then all is its own.

        `taker` gets the rest of the connection's events, until `connection_lost`. Raises: ClientGone.
        """
        if self.gone:
            raise ClientGone("the client closed the connection")
        found = self._head(SWITCHING_PROTOCOLS, headers)["headers"]
        lines = b"".join(b"%b: %b\r\n" % header for header in found)
        self.scope[TAKE_OVER](b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n%b\r\n" % lines, taker)

    def hand_over(self, status: int, head: bytes, taker: asyncio.Protocol) -> None:
        """As `switch_protocols`, with a whole head of somebody else's. Raises: ClientGone."""
        if self.gone:
            raise ClientGone("the client closed the connection")
        self.status = status
        self.scope[TAKE_OVER](head, taker)

    def _head(self, status: int, headers: Headers) -> Message:
        self.status = status
        headers.append((b"x-request-id", self.request_id.encode()))
        if self.rate is not None:
            headers += rate_headers(self.rate)
        headers.append((b"server-timing", self._server_timing()))
        return {"type": "http.response.start", "status": status, "headers": headers}

    def _server_timing(self) -> bytes:
        total = (perf_counter() - self.started_at) * 1000
        parts = "".join(f"{name};dur={value:.2f}, " for name, value in self.marks)
        return f"{parts}total;dur={total:.2f}".encode()

    async def read_body(self, limit: int) -> bytes:
        """The whole body. Raises: BodyTooLarge, BodyStalled, ClientGone."""
        self._refuse_announced(limit)
        first = await self._receive_body(self.limits.body_stall_s)
        if self.body_done:
            return first if len(first) <= limit else self._too_large(limit)
        pieces, size = [first], len(first)
        while not self.body_done:
            piece = await self._receive_body(self.limits.body_stall_s)
            size += len(piece)
            if size > limit:
                self._too_large(limit)
            pieces.append(piece)
        return b"".join(pieces)

    async def body_chunks(self, *, patient: bool = False) -> AsyncIterator[bytes]:
        """The body as it arrives, any size, flat memory: the next piece is read when the last one was taken.

        `patient`: the client may take its time between two pieces.
        Raises: BodyStalled, ClientGone (so that half an upload is never taken for a whole one).
        """
        while not self.body_done:
            piece = await self._receive_body(None if patient else self.limits.body_stall_s)
            if piece:
                yield piece

    async def wait_gone(self) -> None:
        """Return when the client has closed the connection."""
        while not self.body_done:  # the handler takes the body, and only one may receive
            await asyncio.sleep(LOOK_S)
            if self._has_hung_up():
                self.gone = True
                return
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                return

    def _has_hung_up(self) -> bool:
        """Whether the client has closed its side, although nobody reads from the connection now (poll(2))."""
        transport: asyncio.BaseTransport | None = self.scope.get(TRANSPORT)
        if transport is None or transport.is_closing():
            return transport is not None
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    async def _receive_body(self, stall_s: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(stall_s):
                message = await self._receive()
        except TimeoutError:
            raise BodyStalled(f"no more of the body came for {self.limits.body_stall_s:g} seconds") from None
        if message["type"] == "http.disconnect":
            self.gone = True
            raise ClientGone("the client closed the connection before the end of the body")
        if not message.get("more_body", False):
            self.body_done = True
        body: bytes = message.get("body", b"")
        return body

    def _refuse_announced(self, limit: int) -> None:
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced[:20]) > limit:
            self._too_large(limit)

    def _too_large(self, limit: int) -> bytes:
        raise BodyTooLarge(f"the body is larger than {limit} bytes")


def rate_headers(rate: RateState) -> Headers:
    """How often the caller may ask: the fields of draft-ietf-httpapi-ratelimit-headers-06, section 5."""
    return [
        (b"ratelimit-limit", b"%d" % rate.limit),
        (b"ratelimit-remaining", b"%d" % rate.remaining),
        (b"ratelimit-reset", b"%d" % rate.reset_s),
    ]
