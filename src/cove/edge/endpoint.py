"""From an `Op` to an ASGI application: authenticate, decode, call the handler, deliver or report. No rule of its own.

Plain ASGI on purpose: Starlette's `BaseHTTPMiddleware` breaks streaming, cancellation and 30 µs of every request.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Final

from msgspec import Struct

from cove.edge.auth import authenticate, count_request
from cove.edge.decode import body_decoder, query_decoder
from cove.edge.dialect import Dialect
from cove.edge.errors import (
    BadUpstream,
    ClientGone,
    ErrorTable,
    Failure,
    MethodNotAllowed,
    NoSuchRoute,
    UpstreamTimeout,
    failure_headers,
)
from cove.edge.exchange import Exchange, Receive, Scope, Send
from cove.edge.interrupt import interruptible
from cove.edge.ops import Answer, Call, Nothing, Op, Services
from cove.edge.portforms import Found, open_port
from cove.edge.proxy import PAGE_HEADERS, error_page, wants_page
from cove.edge.websocket import check_handshake
from cove.model.access import Principal
from cove.model.errors import BadRequest, Conflict, CoveError, EngineFailure, FileError

log = logging.getLogger(__name__)

EXCHANGE: Final = "cove.exchange"
"""Where the front leaves the request's `Exchange` in the ASGI scope."""

PORT: Final = "cove.port"
"""Where the front leaves which port of a sandbox a request is for."""

CLIENT_GONE_STATUS: Final = 499
SERVER_FAULT: Final = 500
_NOT_OURS: Final = (BadRequest, Conflict, FileError, BadUpstream, UpstreamTimeout)
"""What callers and their programs bring about, whatever status a dialect has for it: they could fill the log."""

NOBODY: Final = Principal(key_id="", name="", project="", scopes=frozenset())


class Reporter:
    """Reports failures as one dialect does."""

    def __init__(self, table: ErrorTable) -> None:
        self._table = table

    def failure(self, error: CoveError, request_id: str) -> Failure:
        """`error` in the dialect's words, logged if it is our fault: a program in a sandbox could fill the log."""
        failure = self._table.failure(error, request_id)
        if failure.status >= SERVER_FAULT and not isinstance(error, _NOT_OURS):
            log.warning("%s: %s", error.public, error.internal, extra={"request_id": request_id, "code": failure.code})
        return failure

    def render(self, error: CoveError, request_id: str) -> bytes:
        """The body that reports `error`."""
        return self._table.render(self.failure(error, request_id))

    def frame(self, failure: Failure) -> bytes:
        """`failure` as a text message of a WebSocket."""
        return self._table.frame(failure)

    async def report(self, error: CoveError, exchange: Exchange) -> None:
        """Answer with `error`; if an answer is under way already, leave it incomplete, which closes the connection."""
        if isinstance(error, ClientGone) or exchange.gone:
            exchange.status = exchange.status or CLIENT_GONE_STATUS
            return
        if exchange.has_started:
            log.warning("an answer was cut: %s", error.public, extra={"request_id": exchange.request_id})
            return
        await self._respond(error, exchange)

    async def _respond(self, error: CoveError, exchange: Exchange) -> None:
        body = self.render(error, exchange.request_id)
        headers = failure_headers(error)
        headers.append((b"content-type", self._table.media_type_of(error)))
        await exchange.respond(self._table.row(error).status, headers, body)


class PageReporter(Reporter):
    """As a page for whoever looks with a browser, else as the dialect does."""

    async def _respond(self, error: CoveError, exchange: Exchange) -> None:
        if not wants_page(exchange):
            await super()._respond(error, exchange)
            return
        self.render(error, exchange.request_id)  # for the log
        failure = self._table.failure(error, exchange.request_id)
        headers = [*failure_headers(error), *PAGE_HEADERS]
        await exchange.respond(failure.status, headers, error_page(failure))


async def attend(exchange: Exchange, reporter: Reporter, handle: Callable[[], Awaitable[Answer]]) -> None:
    """Answer one request with what `handle` gives, or report its failure. Never raises for one that fails."""
    try:
        try:
            answer = await handle()
            await answer.deliver(exchange, reporter)
        except CoveError as error:
            await reporter.report(error, exchange)
    except ClientGone:
        exchange.status = exchange.status or CLIENT_GONE_STATUS
    except Exception:  # the outermost frame of a request: nothing above could report it
        log.exception("a request failed in an unforeseen way", extra={"request_id": exchange.request_id})
        failure = EngineFailure("Cove failed on this request; its log has the reason under this request id")
        await reporter.report(failure, exchange)
    finally:
        for release in exchange.releases:
            release()


class PortEndpoint:
    """The ports of sandboxes, as one dialect reports what goes wrong with them."""

    def __init__(self, dialect: Dialect, services: Services, key_forms: tuple[str, ...]) -> None:
        self._services = services
        self._reporter = PageReporter(dialect.errors)
        self._key_forms = key_forms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request that the front has found to be for a port."""
        del receive, send
        exchange: Exchange = scope[EXCHANGE]
        exchange.op = "proxy_port"
        found: Found = scope[PORT]
        await attend(exchange, self._reporter, lambda: open_port(exchange, self._services, found, self._key_forms))


class _Prepared(Struct, frozen=True):
    """An operation with its decoders made once."""

    op: Op
    body: Callable[[bytes], Any] | None
    query: Callable[[bytes], Any]


class Endpoint:
    """All methods of one path of one dialect."""

    def __init__(self, dialect: Dialect, ops: tuple[Op, ...], services: Services) -> None:
        self._dialect = dialect
        self._services = services
        self._reporter = Reporter(dialect.errors)
        self._ops: Mapping[str, _Prepared] = {op.method: _prepare(op) for op in ops}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Never raises for one that fails."""
        del receive, send
        exchange: Exchange = scope[EXCHANGE]
        await attend(exchange, self._reporter, lambda: self._handle(scope, exchange))

    async def _handle(self, scope: Scope, exchange: Exchange) -> Answer:
        method: str = scope["method"]
        found = self._ops.get(method)
        if found is None:
            if self._dialect.keys_first:
                self._caller(exchange)
            allowed = tuple(sorted(self._ops))
            raise MethodNotAllowed(f"{method} is not possible here; {', '.join(allowed)} is", allowed=allowed)
        op = found.op
        exchange.op = op.id
        who = NOBODY if op.public else self._caller(exchange)
        exchange.principal = who.key_id
        if op.websocket:
            check_handshake(exchange)
        raw = b"" if op.upload else await exchange.read_body(op.body_bytes or exchange.limits.json_body_bytes)
        call = Call(
            services=self._services,
            who=who,
            path=scope["path_params"],
            query=found.query(scope["query_string"]),
            body=found.body(raw) if found.body is not None else None,
            raw_body=raw,
            exchange=exchange,
        )
        before = perf_counter()
        if op.watched:
            async with interruptible(exchange):
                answer = await op.handler(call)
        else:
            answer = await op.handler(call)
        exchange.mark("core", (perf_counter() - before) * 1000)
        return answer

    def _caller(self, exchange: Exchange) -> Principal:
        return caller(self._dialect, self._services, exchange)


def caller(dialect: Dialect, services: Services, exchange: Exchange) -> Principal:
    """Who asks, by the key that this dialect reads. Raises: Unauthorized, Forbidden, RateLimited."""
    before = perf_counter()
    who = authenticate(exchange, services.core, dialect.key_of(exchange), dialect.name)
    exchange.origin.key, exchange.origin.name = who.key_id, who.name
    count_request(exchange, services.core, who)
    exchange.mark("auth", (perf_counter() - before) * 1000)
    return who


class NotFoundEndpoint:
    """What a dialect answers to a path that it does not have."""

    def __init__(self, dialect: Dialect, services: Services) -> None:
        self._dialect = dialect
        self._services = services
        self._reporter = Reporter(dialect.errors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 in the dialect's form."""
        del receive, send
        exchange: Exchange = scope[EXCHANGE]
        await attend(exchange, self._reporter, lambda: self._refuse(exchange))

    async def _refuse(self, exchange: Exchange) -> Answer:
        if self._dialect.keys_first:
            caller(self._dialect, self._services, exchange)
        raise NoSuchRoute("no operation has this path")


def _prepare(op: Op) -> _Prepared:
    body = None if op.upload else body_decoder(op.body if op.body is not None else Nothing)
    return _Prepared(op, body, query_decoder(op.query if op.query is not None else Nothing))
