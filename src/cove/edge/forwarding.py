"""One HTTP/1.1 request forwarded over a connection, its answer streamed back, or the connection tunnelled.

Bodies go through unbuffered in both directions at once, with back-pressure and flat memory. Requests are framed anew
from what our own strict parser understood, so nothing that a client sends can mean two things. Where it goes, and what
headers become on the way, is a `Way`: a port of a sandbox (`proxy.py`), a service (`broker.py`).
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from http import HTTPStatus
from typing import Final, Protocol

from cove.edge.errors import BadUpstream, Malformed, Where
from cove.edge.exchange import Exchange
from cove.edge.interrupt import interruptible
from cove.edge.proxyheaders import Headers, wanted_upgrade
from cove.edge.tunnel import Far, Tunnel, join
from cove.edge.upstream import SWITCHING, Head, Upstream

CONTINUE_S: Final = 1.0
"""How long an application may think about `Expect: 100-continue`; many know nothing of it and wait for the body."""

_AGAIN: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""What may be sent again, without a body, if a resting connection turns out to have been closed."""

_NO_LENGTH: Final = frozenset({204, 304})
"""uvicorn takes a Content-Length for a promise of a body, which these have not."""


class Link(Protocol):
    """A connection that may have carried a request before. Whoever leaves it clean sets `keep`."""

    keep: bool

    @property
    def stream(self) -> Far:
        """The bytes."""
        ...

    @property
    def was_used(self) -> bool:
        """Whether it was at rest before this request."""
        ...


class Way(Protocol):
    """Where one request goes. `path` and `query` are bytes as they are sent."""

    @property
    def name(self) -> str:
        """What answers, as the subject of a sentence."""
        ...

    @property
    def late(self) -> str:
        """What may be done where it does not answer in time."""
        ...

    @property
    def path(self) -> bytes:
        """The path."""
        ...

    @property
    def query(self) -> bytes:
        """The query without its question mark."""
        ...

    def link(self, *, fresh: bool) -> AbstractAsyncContextManager[Link]:
        """A connection for this request; `fresh`: none that has rested. Raises: CoveError."""
        ...

    def request_headers(self, headers: Headers, upgrade: bytes | None) -> Headers:
        """What is sent of a client's headers (lowercase names), without framing."""
        ...

    def response_headers(self, headers: Headers, *, has_length: bool) -> Headers:
        """What the client gets of an answer's headers. `has_length`: Content-Length may stay."""
        ...

    def answered(self, status: int) -> None:
        """The head of an answer is here. Called once, before it goes on."""
        ...


async def forward(exchange: Exchange, way: Way) -> None:
    """Forward the request, stream the answer. Raises: what the way's `link` raises, BadUpstream, UpstreamTimeout."""
    request = _Request(exchange, way)
    fresh = not request.can_repeat
    while True:
        async with way.link(fresh=fresh) as link:
            try:
                await _relay(request, link)
            except BadUpstream:
                if not link.was_used or request.has_answer or not request.can_repeat:
                    raise
            else:
                return
        fresh = True


class _Request:
    """The client's request, as it goes on."""

    def __init__(self, exchange: Exchange, way: Way) -> None:
        scope = exchange.scope
        headers: Headers = scope["headers"]
        self.exchange = exchange
        self.way = way
        self.method: str = scope["method"]
        self.is_head = self.method == "HEAD"
        self.upgrade = wanted_upgrade(headers) if exchange.can_switch else None
        self.is_chunked = exchange.header(b"transfer-encoding") is not None
        self.length = exchange.header(b"content-length")
        self.has_body = self.is_chunked or self.length not in {None, b"0"}
        self.expects = self.has_body and (exchange.header(b"expect") or b"").lower() == b"100-continue"
        self.can_repeat = self.method in _AGAIN and not self.has_body and self.upgrade is None
        self.has_answer = False
        self.is_sent = False

    def head(self) -> bytes:
        """Request line and headers, framed by us."""
        way = self.way
        query = b"?" + way.query if way.query else b""
        headers = way.request_headers(self.exchange.scope["headers"], self.upgrade)
        if self.is_chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        elif self.length is not None:
            headers.append((b"content-length", self.length))
        if self.expects:
            headers.append((b"expect", b"100-continue"))
        lines = [self.method.encode(), b" ", way.path, query, b" HTTP/1.1\r\n"]
        for name, value in headers:
            lines += [name, b": ", value, b"\r\n"]
        lines.append(b"\r\n")
        return b"".join(lines)

    async def send_body(self, link: Link, upstream: Upstream) -> None:
        """Send the body as it arrives, and let its clock start when it has all; return when the client goes."""
        timeout_s = self.exchange.limits.proxy_s
        async for piece in self.exchange.body_chunks():
            if self.is_chunked:
                await link.stream.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                await link.stream.write(piece)
            upstream.put_off(timeout_s)
        if self.is_chunked:
            await link.stream.write(b"0\r\n\r\n")
        self.is_sent = True
        await self.exchange.wait_gone()


async def _relay(request: _Request, link: Link) -> None:
    exchange, way = request.exchange, request.way
    upstream = Upstream(link.stream, way.name, late=way.late, is_head_request=request.is_head)
    limit_s = exchange.limits.proxy_s
    async with AsyncExitStack() as stack:
        early = None
        await upstream.send_head(request.head(), limit_s)
        if request.expects:
            found = await upstream.interim(CONTINUE_S)
            early = found if found is not None and found.status >= HTTPStatus.OK else None
        try:
            if early is None:
                # The feed also watches the client, so that nobody works for one that has gone.
                await stack.enter_async_context(interruptible(exchange, request.send_body(link, upstream)))
            head = early or await upstream.head(limit_s)
        finally:
            request.has_answer = request.has_answer or upstream.has_answered
        way.answered(head.status)
        if head.status == SWITCHING:
            await _switch(request, link, upstream, head)
            return
        await exchange.relay(head.status, _answer_headers(request, head, is_early=early is not None))
        if early is not None:
            await stack.enter_async_context(interruptible(exchange))
        async for piece in upstream.body():
            await exchange.write(piece)
        # Before the end of the answer is out: the next request may come at once, and finds this connection at rest.
        link.keep = upstream.is_reusable and request.is_sent
        await exchange.write(b"", more=False)


def _answer_headers(request: _Request, head: Head, *, is_early: bool) -> Headers:
    headers = request.way.response_headers(head.headers, has_length=head.status not in _NO_LENGTH)
    headers = [one for one in headers if one[0] != b"date"]  # uvicorn sets its own
    if is_early:
        headers.append((b"connection", b"close"))  # the body that was announced may come or not
    return headers


async def _switch(request: _Request, link: Link, upstream: Upstream, head: Head) -> None:
    """Pass on 101 and become a wire. Raises: BadUpstream (nobody asked for it)."""
    exchange, way = request.exchange, request.way
    if request.upgrade is None:
        raise BadUpstream(f"{way.name} switched to another protocol unasked")
    headers = way.response_headers(head.headers, has_length=False)
    offered = [value for name, value in head.headers if name == b"upgrade"] or [request.upgrade]
    headers += [(b"connection", b"Upgrade"), (b"upgrade", offered[0])]
    lines = [b"HTTP/1.1 101 Switching Protocols\r\n"]
    for name, value in headers:
        lines += [name, b": ", value, b"\r\n"]
    lines += [b"\r\n", upstream.rest]
    tunnel = Tunnel(exchange.limits.reader_stall_s)
    exchange.hand_over(SWITCHING, b"".join(lines), tunnel)
    async with exchange.stopping.signal() as stop:
        stop.add_done_callback(lambda done: None if done.cancelled() else tunnel.close())
        await join(tunnel, link.stream)


def check_coding(headers: Headers) -> None:
    """Only chunks are taken off a body: what else lies around it the application would not learn. Raises: Malformed."""
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings not in ([], [b"chunked"]):
        raise Malformed(
            "the only transfer coding is chunked: use Content-Encoding", where=Where.HEADER, field="Transfer-Encoding"
        )
