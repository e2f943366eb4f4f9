"""HTTP/1.1 to a port of a sandbox: one request forwarded, its answer streamed back, or the connection tunnelled.

Bodies go through unbuffered in both directions at once, with back-pressure and flat memory. Requests are framed anew
from what our own strict parser understood, so nothing that a client sends can mean two things. What headers become is
`proxyheaders.py`, who may come in is `core/exposures.py`.
"""

from __future__ import annotations

import html
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Final

from msgspec import Struct

from cove.core.ports import PortLink, Ports
from cove.edge.errors import BadUpstream, Failure
from cove.edge.exchange import Exchange
from cove.edge.interrupt import interruptible
from cove.edge.ops import ErrorWriter
from cove.edge.proxyheaders import Headers, Place, request_headers, response_headers, wanted_upgrade
from cove.edge.tunnel import Tunnel, join
from cove.edge.upstream import SWITCHING, Head, Upstream
from cove.model.access import Principal
from cove.model.errors import Conflict, CoveError

CONTINUE_S: Final = 1.0
"""How long an application may think about `Expect: 100-continue`; many know nothing of it and wait for the body."""

_AGAIN: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""What may be sent again, without a body, if a resting connection turns out to have been closed."""

_NO_LENGTH: Final = frozenset({204, 304})
"""uvicorn takes a Content-Length for a promise of a body, which these have not."""


PAGE_HEADERS: Final = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; sandbox"),
    (b"cache-control", b"no-store"),
)


class Target(Struct, frozen=True, kw_only=True):
    """Whose request, to what. `path` and `query` are bytes as the client sent them; `drop`: headers that stay here."""

    who: Principal
    ref: str
    place: Place
    path: bytes
    query: bytes
    drop: frozenset[bytes] = frozenset()


class Proxied:
    """The answer of an application inside a sandbox."""

    def __init__(self, ports: Ports, target: Target) -> None:
        self._ports = ports
        self._target = target

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Forward the request, stream the answer."""
        del table
        request = _Request(exchange, self._target)
        fresh = not request.can_repeat
        while True:
            async with AsyncExitStack() as stack:
                link = await self._link(stack, fresh=fresh)
                try:
                    await _relay(request, link)
                except BadUpstream:
                    if not link.was_used or request.has_answer or not request.can_repeat:
                        raise
                else:
                    return
            fresh = True

    async def _link(self, stack: AsyncExitStack, *, fresh: bool) -> PortLink:
        target = self._target
        try:
            return await stack.enter_async_context(
                self._ports.link(target.who, target.ref, target.place.port, fresh=fresh)
            )
        except Conflict as error:
            raise BadUpstream(
                f"{error.public}: start the program, and let it listen on 127.0.0.1 or 0.0.0.0 inside"
            ) from error


class _Request:
    """The client's request, as it goes on."""

    def __init__(self, exchange: Exchange, target: Target) -> None:
        scope = exchange.scope
        headers: Headers = scope["headers"]
        self.exchange = exchange
        self.target = target
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
        target = self.target
        query = b"?" + target.query if target.query else b""
        headers = request_headers(self.exchange.scope["headers"], target.place, drop=target.drop, upgrade=self.upgrade)
        if self.is_chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        elif self.length is not None:
            headers.append((b"content-length", self.length))
        if self.expects:
            headers.append((b"expect", b"100-continue"))
        lines = [self.method.encode(), b" ", target.path, query, b" HTTP/1.1\r\n"]
        for name, value in headers:
            lines += [name, b": ", value, b"\r\n"]
        lines.append(b"\r\n")
        return b"".join(lines)

    async def send_body(self, link: PortLink, upstream: Upstream) -> None:
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


async def _relay(request: _Request, link: PortLink) -> None:
    exchange, port = request.exchange, request.target.place.port
    upstream = Upstream(link.stream, port, is_head_request=request.is_head)
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
    headers = response_headers(head.headers, request.target.place, has_length=head.status not in _NO_LENGTH)
    headers = [one for one in headers if one[0] != b"date"]  # uvicorn sets its own
    if is_early:
        headers.append((b"connection", b"close"))  # the body that was announced may come or not
    return headers


async def _switch(request: _Request, link: PortLink, upstream: Upstream, head: Head) -> None:
    """Pass on 101 and become a wire. Raises: BadUpstream (nobody asked for it)."""
    exchange, place = request.exchange, request.target.place
    if request.upgrade is None:
        raise BadUpstream(f"port {place.port} in the sandbox switched to another protocol unasked")
    headers = response_headers(head.headers, place, has_length=False)
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


def wants_page(exchange: Exchange) -> bool:
    """Whether a person looks at the answer: a browser asks for HTML first."""
    return b"text/html" in (exchange.header(b"accept") or b"")


def error_page(failure: Failure) -> bytes:
    """A failure of ours for a person. It has no script and loads nothing."""
    error: CoveError = failure.error
    title = f"{failure.status} {failure.code}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem}"
        "code{color:#666}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(error.public)}</p>"
        f"<p><code>{html.escape(failure.request_id)}</code></p></html>"
    ).encode()
