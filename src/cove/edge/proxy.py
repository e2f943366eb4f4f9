"""HTTP/1.1 to a port of a sandbox: the way that a request takes (`forwarding.py`), and the page that reports failures.

What headers become is `proxyheaders.py`, who may come in is `core/exposures.py`.
"""

from __future__ import annotations

import html
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from msgspec import Struct

from cove.core.ports import PortLink, Ports
from cove.edge.errors import BadUpstream, Failure
from cove.edge.exchange import Exchange
from cove.edge.forwarding import forward
from cove.edge.ops import ErrorWriter
from cove.edge.proxyheaders import Headers, Place, request_headers, response_headers
from cove.model.access import Principal
from cove.model.errors import Conflict, CoveError

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
        self._way = _PortWay(ports, target)

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Forward the request, stream the answer."""
        del table
        await forward(exchange, self._way)


class _PortWay:
    """To a port of a sandbox."""

    late = "see what keeps the program busy, or raise COVE_PROXY_TIMEOUT_S"

    def __init__(self, ports: Ports, target: Target) -> None:
        self._ports = ports
        self._target = target
        self.name = f"port {target.place.port} in the sandbox"
        self.path = target.path
        self.query = target.query

    @asynccontextmanager
    async def link(self, *, fresh: bool) -> AsyncGenerator[PortLink]:
        """A connection to the application."""
        target = self._target
        async with AsyncExitStack() as stack:
            try:
                link = await stack.enter_async_context(
                    self._ports.link(target.who, target.ref, target.place.port, fresh=fresh)
                )
            except Conflict as error:
                if error.field == "state":  # the sandbox is at rest, and work does not resume it
                    raise
                raise BadUpstream(
                    f"{error.public}: start the program, and let it listen on 127.0.0.1 or 0.0.0.0 inside"
                ) from error
            yield link

    def request_headers(self, headers: Headers, upgrade: bytes | None) -> Headers:
        """As the application shall see them."""
        return request_headers(headers, self._target.place, drop=self._target.drop, upgrade=upgrade)

    def response_headers(self, headers: Headers, *, has_length: bool) -> Headers:
        """As the world shall see them."""
        return response_headers(headers, self._target.place, has_length=has_length)

    def answered(self, status: int) -> None:
        """Nobody wants to know."""


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
