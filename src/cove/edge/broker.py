"""The credentials broker: takes a sandbox's plain request, adds the key that the sandbox never has, sends it over TLS.

    http://169.254.1.1:3130/proxy/SERVICE/…  ──►  https://UPSTREAM/…

Who asks is known by the source address, which the router's rules vouch for. In this order a request is refused: no
credential; no rule for its method and path; no room; an address that is closed, or that the network policy refuses.
Redirects are passed on and never followed: the key goes to its service and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from time import monotonic, time
from types import MappingProxyType
from typing import Final

from msgspec.structs import replace

from cove.core.credentials import Credentials
from cove.edge.endpoint import CLIENT_GONE_STATUS, Reporter, attend
from cove.edge.errors import ClientGone, ErrorTable, Failure, Malformed, Row, Where
from cove.edge.exchange import Exchange, Receive, Scope, Send
from cove.edge.forwarding import check_coding, forward
from cove.edge.limits import EdgeLimits
from cove.edge.ops import ErrorWriter
from cove.edge.proxyheaders import Headers
from cove.edge.serviceheaders import incoming, outgoing, outgoing_query
from cove.edge.servicelinks import ServiceLink, ServiceLinks
from cove.edge.stopping import Stopping
from cove.engine.network.port import Endpoints
from cove.model.credentials import Grant
from cove.model.endpoints import canonical_path, refusal, with_prefix
from cove.model.errors import CapacityExceeded, CoveError, Forbidden, NotFound
from cove.model.network import NetworkMode, Protocol, Refusal, Verdict
from cove.model.origin import Origin, working_for
from cove.model.policy import ClosedRanges, Destination, decide

REQUESTS: Final = 64
"""Requests of one sandbox at a time."""

RATE: Final = 200.0
BURST: Final = 400.0
"""Requests of one sandbox in a second, and at once: each writes a line into the audit trail."""

REFUSE_S: Final = 0.5
"""How long a sandbox that asks too much waits to be told: its connections are bounded, so what it costs us is too."""

CONNECTIONS: Final = 128
"""Connections of one sandbox at a time."""

ANSWER_S: Final = 600.0
"""How long a service may take to begin its answer: a long completion that is not streamed takes minutes."""

_PREFIX: Final = "/proxy/"
_ECHOING: Final = frozenset({"TRACE", "TRACK"})
"""Methods that ask a server to send back what it got, the key with it."""


def _render(failure: Failure) -> bytes:
    """As the services' own clients look for a failure: `error.message` in most, `message` in GitHub's."""
    error = {"message": failure.error.public, "type": "cove_broker", "code": failure.code}
    return json.dumps({"error": error, "message": failure.error.public, "request_id": failure.request_id}).encode()


TABLE: Final = ErrorTable(
    rows=MappingProxyType(
        {
            "bad-request": Row(400, "bad-request"),
            "request-timeout": Row(408, "request-timeout"),
            "forbidden": Row(403, "forbidden"),
            "not-found": Row(404, "no-credential"),
            "capacity": Row(429, "too-many-requests"),
            "bad-upstream": Row(502, "bad-upstream"),
            "upstream-timeout": Row(504, "upstream-timeout"),
            "server-stopping": Row(503, "server-stopping"),
            "engine-failure": Row(500, "engine-failure"),
        }
    ),
    render=_render,
)


class Broker:
    """The broker's application. Made by the server, which listens for it in the router's namespace."""

    def __init__(  # noqa: PLR0913 - what it stands on, all by name
        self,
        credentials: Credentials,
        endpoints: Endpoints,
        links: ServiceLinks,
        *,
        closed: Callable[[], ClosedRanges],
        on_refusal: Callable[[Refusal], None],
        limits: EdgeLimits,
        stopping: Stopping,
    ) -> None:
        self._credentials = credentials
        self._endpoints = endpoints
        self._links = links
        self._closed = closed
        self._on_refusal = on_refusal
        self._limits = replace(limits, proxy_s=max(limits.proxy_s, ANSWER_S))
        self._stopping = stopping
        self._reporter = Reporter(TABLE)
        self._rooms: dict[str, _Room] = {}
        self._running: set[_Running] = set()
        credentials.on_change = self._changed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Never raises for one that fails."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self._limits, self._stopping)
        address = exchange.client_address(behind_proxy=False)
        origin = Origin(request_id=exchange.request_id, address=address, via="broker", key="", name="")
        exchange.origin = origin
        with working_for(origin):
            await attend(exchange, self._reporter, lambda: self._accept(exchange))

    def recheck(self, box: str) -> None:
        """The policy of a box has changed: cut what it refuses now."""
        for one in list(self._running):
            if one.way.grant.sandbox == box:
                one.recheck()

    async def serve(self, exchange: Exchange, way: ServiceWay) -> None:
        """Forward one request that may be made, and write down what became of it."""
        async with self._rooms.setdefault(way.grant.sandbox, _Room()).request():
            try:
                async with self._cuttable(way):
                    await forward(exchange, way)
            except CoveError as error:
                way.note(CLIENT_GONE_STATUS if isinstance(error, ClientGone) else TABLE.row(error).status)
                raise

    def check(self, grant: Grant, address: str) -> None:
        """Whether a service may be dialled at `address` for a sandbox. Raises: Forbidden, having told of it."""
        service = grant.service
        endpoint = self._endpoints.by_box(grant.sandbox)
        if endpoint is None:
            raise Forbidden("this sandbox has no network any more")
        policy = endpoint.policy
        reason = self._closed().why(address, service.port)
        if reason is not None:
            self._refused(grant, address, reason, is_dry=False)
            raise Forbidden(f"{service.host} has an address that is closed here")
        if policy.mode is NetworkMode.NONE:
            return  # whoever gave it a credential opened this one way
        where = Destination(name=service.host, address=address, port=service.port, protocol=Protocol.TCP)
        decision = decide(policy, where, self._closed())
        if decision.verdict is Verdict.DENY:
            self._refused(grant, address, decision.rule, is_dry=policy.dry_run)
            if not policy.dry_run:
                raise Forbidden(f"the network policy of this sandbox does not let it reach {service.host}")

    async def _accept(self, exchange: Exchange) -> _Brokered:
        endpoint = self._endpoints.by_address(exchange.origin.address)
        if endpoint is None:
            raise Forbidden("only sandboxes are served here")
        exchange.origin.sandbox = endpoint.box
        await self._rooms.setdefault(endpoint.box, _Room()).count()
        check_coding(exchange.scope["headers"])
        name, path = _split(exchange.scope["raw_path"])
        grant = self._credentials.grant(endpoint.box, name)
        if grant is None:
            has = ", ".join(self._credentials.services_of(endpoint.box)) or "none"
            raise NotFound(f"this sandbox has no credential for {name[:64]!r}; it has: {has}")
        path = with_prefix(path, grant.service.prefix)
        way = ServiceWay(self, grant, exchange, path)
        why = refusal(grant.rules, way.method, path, grant.service.prefix)
        if way.method in _ECHOING:
            why = f"{way.method} asks for the key to be sent back"
        if why is not None:
            way.note(HTTPStatus.FORBIDDEN)
            raise Forbidden(why)
        return _Brokered(self, way)

    @property
    def links(self) -> ServiceLinks:
        """The connections to services."""
        return self._links

    @property
    def credentials(self) -> Credentials:
        """Where uses are written down."""
        return self._credentials

    @asynccontextmanager
    async def _cuttable(self, way: ServiceWay) -> AsyncGenerator[None]:
        """Run the body; end it when its credential is taken away or its policy refuses it. Raises: Forbidden too."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in one
        running = _Running(way, task)
        self._running.add(running)
        try:
            yield
        except asyncio.CancelledError:
            if running.cause is None:
                raise
            task.uncancel()
            raise running.cause from None
        finally:
            self._running.discard(running)

    def _changed(self, sandbox: str | None, service: str | None) -> None:
        """What the core says: requests of a sandbox (None: any) to a service (None: any) end."""
        self._links.close(sandbox, service)
        for one in list(self._running):
            grant = one.way.grant
            if sandbox in {None, grant.sandbox} and service in {None, grant.service.name}:
                one.cut(Forbidden("this credential was taken away or changed"))
        if sandbox is not None and service is None:
            self._rooms.pop(sandbox, None)  # it has ended

    def _refused(self, grant: Grant, address: str, rule: str, *, is_dry: bool) -> None:
        self._on_refusal(
            Refusal(
                sandbox=grant.sandbox,
                layer="broker",
                name=grant.service.host,
                address=address,
                port=grant.service.port,
                protocol=Protocol.TCP.value,
                rule=rule,
                at=time(),
                dry_run=is_dry,
            )
        )


class ServiceWay:
    """The way of one request to a service (`forwarding.Way`)."""

    late = "it may be busy: try again"

    def __init__(self, broker: Broker, grant: Grant, exchange: Exchange, path: str) -> None:
        self._broker = broker
        self._address: str | None = None
        self._is_noted = False
        self.grant = grant
        self.method: str = exchange.scope["method"]
        self.name = grant.service.host
        self.path = path.encode("ascii")
        self.query = outgoing_query(exchange.scope["query_string"], grant.service)

    def link(self, *, fresh: bool) -> AbstractAsyncContextManager[ServiceLink]:
        """A connection to the service."""
        return self._broker.links.link(self.grant.sandbox, self.grant.service, self._check, fresh=fresh)

    def request_headers(self, headers: Headers, upgrade: bytes | None) -> Headers:
        """With the key, and with no other."""
        return outgoing(headers, self.grant.service, self.grant.header, upgrade)

    def response_headers(self, headers: Headers, *, has_length: bool) -> Headers:
        """Without the key."""
        return incoming(headers, self.grant.service, self.grant.key, has_length=has_length)

    def answered(self, status: int) -> None:
        """Write it down."""
        self.note(status)

    def note(self, status: int) -> None:
        """Write down what became of the request; the first time counts."""
        if not self._is_noted:
            self._is_noted = True
            path = self.path.decode("ascii")
            self._broker.credentials.note_use(self.grant, method=self.method, path=path, status=status)

    def recheck(self) -> None:
        """Raises: Forbidden, where the address in use may not be dialled any more."""
        if self._address is not None:
            self._broker.check(self.grant, self._address)

    def _check(self, address: str) -> None:
        self._broker.check(self.grant, address)
        self._address = address


class _Brokered:
    """The answer of a service."""

    def __init__(self, broker: Broker, way: ServiceWay) -> None:
        self._broker = broker
        self._way = way

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Forward the request, stream the answer."""
        del table
        await self._broker.serve(exchange, self._way)


class _Running:
    """A request under way, and why it was cut."""

    def __init__(self, way: ServiceWay, task: asyncio.Task[object]) -> None:
        self.way = way
        self.cause: Forbidden | None = None
        self._task = task

    def cut(self, cause: Forbidden) -> None:
        """End it, once."""
        if self.cause is None:
            self.cause = cause
            self._task.cancel()

    def recheck(self) -> None:
        """End it where the policy refuses it now."""
        try:
            self.way.recheck()
        except Forbidden as error:
            self.cut(error)


class _Room:
    """What one sandbox may ask for: so many requests at a time, so many in a second."""

    def __init__(self) -> None:
        self._running = 0
        self._left = BURST
        self._at = monotonic()

    async def count(self) -> None:
        """Count a request. Raises: CapacityExceeded, after a while."""
        now = monotonic()
        self._left = min(BURST, self._left + (now - self._at) * RATE)
        self._at = now
        if self._left < 1:
            await asyncio.sleep(REFUSE_S)
            raise CapacityExceeded(f"more than {RATE:.0f} requests in a second", retry_after_s=1)
        self._left -= 1

    @asynccontextmanager
    async def request(self) -> AsyncGenerator[None]:
        """For one request. Raises: CapacityExceeded, after a while."""
        if self._running >= REQUESTS:
            await asyncio.sleep(REFUSE_S)
            raise CapacityExceeded(f"{REQUESTS} requests of this sandbox are under way", retry_after_s=1)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


def _split(raw: bytes) -> tuple[str, str]:
    """The service and the canonical path behind it. Raises: Malformed, NotFound."""
    try:
        path = canonical_path(raw)
    except ValueError as error:
        raise Malformed(str(error), where=Where.PATH) from None
    if not path.startswith(_PREFIX):
        raise NotFound(f"the broker serves {_PREFIX}SERVICE/…")
    name, _, rest = path.removeprefix(_PREFIX).partition("/")
    return name, f"/{rest}"
