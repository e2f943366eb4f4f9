"""The server's one ASGI application: whose request it is, its id, its time, its log line. No dialect, no rule.

Whose request: the longest prefix; else, at the root, one table in this order (design, section 4): a header that one
dialect claims, a path that one dialect has, the key's prefix, the dialect that the key was minted for; else
the first dialect that has the path.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Final

from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp

from cove.core.facade import Core
from cove.edge.auth import LOCAL_MARK
from cove.edge.dialect import Dialect
from cove.edge.endpoint import EXCHANGE, PORT, SERVER_FAULT, Endpoint, NotFoundEndpoint, PortEndpoint
from cove.edge.exchange import Exchange, Receive, Scope, Send
from cove.edge.limits import EdgeLimits
from cove.edge.ops import Op, Services
from cove.edge.portforms import by_host, by_path
from cove.edge.stopping import Stopping
from cove.model.errors import CoveError
from cove.model.origin import Origin, working_for
from cove.model.spans import Trace

requests_log = logging.getLogger("cove.requests")

HTTP: Final = "http"


class _Mounted:
    """A dialect with its routes: those below its prefixes, and those at the root."""

    def __init__(self, dialect: Dialect, services: Services, key_forms: tuple[str, ...]) -> None:
        self.dialect = dialect
        self.not_found = NotFoundEndpoint(dialect, services)
        self.port = PortEndpoint(dialect, services, key_forms)
        below = [op for op in dialect.ops if not op.at_root]
        self.router = self._router(dialect.prefix, below, services)
        self.roots = Router(routes=self._root_routes(below, services), redirect_slashes=False)

    def has_root(self, scope: Scope) -> bool:
        """Whether one of its root routes has this path, or a port of a sandbox."""
        return self.is_for_port(scope) or any(route.matches(scope)[0] is not Match.NONE for route in self.roots.routes)

    def is_for_port(self, scope: Scope) -> bool:
        """Whether the path is a port's. Which one is left in the scope."""
        found = None if self.dialect.ports is None else by_path(self.dialect.ports, scope["raw_path"])
        if found is not None:
            scope[PORT] = found
        return found is not None

    def _router(self, prefix: str, ops: Sequence[Op], services: Services) -> Router:
        routes = _routes(self.dialect, prefix, ops, services)
        return Router(routes=routes, redirect_slashes=False, default=self.not_found)

    def _root_routes(self, below: Sequence[Op], services: Services) -> list[Route]:
        at_root = [op for op in self.dialect.ops if op.at_root]
        routes = _routes(self.dialect, "", at_root, services)
        for root in self.dialect.roots:
            routes += _routes(self.dialect, root, below, services)
        return routes


def _routes(dialect: Dialect, prefix: str, ops: Sequence[Op], services: Services) -> list[Route]:
    by_path: dict[str, list[Op]] = {}
    for op in ops:
        by_path.setdefault(op.path, []).append(op)
    return [Route(prefix + path, Endpoint(dialect, tuple(same), services)) for path, same in by_path.items()]


class Front:
    """The application. Dialects in the order of the table; the first one reports what belongs to none."""

    def __init__(
        self, dialects: Sequence[Dialect], services: Services, *, limits: EdgeLimits, stopping: Stopping
    ) -> None:
        self._core: Core = services.core
        key_forms = tuple(form for dialect in dialects for form in dialect.key_prefixes)
        self._mounted = [_Mounted(dialect, services, key_forms) for dialect in dialects]
        self._by_prefix = sorted(self._mounted, key=lambda one: -len(one.dialect.prefix))
        self._limits = limits
        self._stopping = stopping
        self._metrics = services.metrics
        self._tracer = services.tracer
        self._behind_proxy = services.facts.behind_proxy
        self._fallback = self._mounted[0]
        self._domain = services.facts.public_domain.encode() if self._fallback.dialect.ports else b""
        self.log_requests = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != HTTP:
            return
        exchange = Exchange(scope, receive, send, self._limits, self._stopping)
        scope[EXCHANGE] = exchange
        self._metrics.in_flight.inc()
        exchange.origin = Origin(
            request_id=exchange.request_id,
            address=exchange.client_address(behind_proxy=self._behind_proxy),
            via="unix" if scope.get(LOCAL_MARK) else HTTP,
            key="",
            name="",
            trace=None if self._tracer is None else self._tracer.begin(_trace_headers(exchange)),
        )
        try:
            app = self._choose(scope, exchange)
            exchange.origin.dialect = exchange.dialect
            with working_for(exchange.origin):
                await app(scope, receive, send)
        finally:
            self._metrics.in_flight.dec()
            elapsed = perf_counter() - exchange.started_at
            self._metrics.observe(exchange.dialect, exchange.op, exchange.status, elapsed)
            if exchange.origin.trace is not None:
                _end_trace(exchange.origin.trace, scope, exchange)
            if self.log_requests:
                self._log(scope, exchange, elapsed)

    def _choose(self, scope: Scope, exchange: Exchange) -> ASGIApp:
        path: str = scope["path"]
        if self._has_host_form(scope, exchange):
            return self._fallback.port
        for one in self._by_prefix:
            prefix = one.dialect.prefix
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in {"", "/"}:
                exchange.dialect = one.dialect.name
                return one.port if one.is_for_port(scope) else one.router
        found = self._at_root(scope, exchange)
        if found is None:
            exchange.dialect = self._fallback.dialect.name
            return self._fallback.not_found
        exchange.dialect = found.dialect.name
        return found.port if found.is_for_port(scope) else found.roots

    def _has_host_form(self, scope: Scope, exchange: Exchange) -> bool:
        """Whether it is for a port under a host name of its own. Such a name has nothing of the API below it."""
        host = exchange.header(b"host")
        form = self._fallback.dialect.ports
        if host is None or form is None or self._domain not in host.lower():
            return False
        found = by_host(form, self._domain.decode(), host, scope["raw_path"])
        if found is None:
            return False
        exchange.dialect = self._fallback.dialect.name
        scope[PORT] = found
        return True

    def _at_root(self, scope: Scope, exchange: Exchange) -> _Mounted | None:
        having = [one for one in self._mounted if one.has_root(scope)]
        for one in having:
            claim = one.dialect.claims_header
            if claim is not None and exchange.header(claim) is not None:
                return one
        if len(having) <= 1:
            return having[0] if having else None
        return self._by_key(having, exchange)

    def _by_key(self, having: list[_Mounted], exchange: Exchange) -> _Mounted | None:
        """Whose shared path it is, by the key that each of them would read."""
        for one in having:
            key = one.dialect.key_of(exchange)
            if key and key.startswith(one.dialect.key_prefixes or ("\0",)):
                return one
        if not any(one.dialect.key_of(exchange) for one in having):
            return having[0]  # such as a probe, which has none
        for one in having:
            key = one.dialect.key_of(exchange)
            if key and self._minted_for(key, exchange.origin.address) == one.dialect.name:
                return one
        return having[0]  # a key of no dialect, or none that works: the first says so, unless it needs no key

    def _minted_for(self, key: str, address: str) -> str | None:
        try:
            who = self._core.keys.authenticate(key)
            self._core.rate_limits.check_login(address, who.key_id)
        except CoveError:
            return None
        return who.dialect

    def _log(self, scope: Scope, exchange: Exchange, elapsed: float) -> None:
        requests_log.info(
            "request",
            extra={
                "request_id": exchange.request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": exchange.status,
                "ms": round(elapsed * 1000, 2),
                "dialect": exchange.dialect,
                "op": exchange.op,
                "key": exchange.principal,
                "sandbox": exchange.origin.sandbox,
            },
        )


def _trace_headers(exchange: Exchange) -> dict[str, str]:
    """What a caller may say of the trace that it is in (W3C Trace Context)."""
    found = ((name, exchange.header(name.encode())) for name in ("traceparent", "tracestate"))
    return {name: value.decode("latin-1") for name, value in found if value is not None}


def _end_trace(trace: Trace, scope: Scope, exchange: Exchange) -> None:
    """Close the request's span. No path and no query: they may hold names of files, and tokens."""
    origin = exchange.origin
    method: str = scope["method"]
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "http.response.status_code": exchange.status,
        "cove.dialect": exchange.dialect,
        "cove.op": exchange.op,
        "cove.request_id": exchange.request_id,
        "cove.key": origin.key,
        "cove.sandbox": origin.sandbox,
    }
    trace.end(f"{exchange.dialect} {exchange.op or method}", attributes, failed=exchange.status >= SERVER_FAULT)
