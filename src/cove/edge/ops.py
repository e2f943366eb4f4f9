"""Operations as a table, and what a handler gets and gives. No routing, no wire format.

A dialect is a tuple of `Op`s. A handler takes a `Call` and returns an `Answer`; it translates, calls the core once and
translates back. To add a kind of answer (NDJSON): a class with `deliver`, here or in a module of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from msgspec import Struct

from cove.core.facade import Core
from cove.edge.errors import Failure
from cove.edge.exchange import Exchange, Headers
from cove.edge.metrics import Metrics
from cove.model.access import Principal, Scope
from cove.model.errors import CoveError
from cove.model.keyform import REGION
from cove.model.request import Idempotency
from cove.model.spans import Tracer

B = TypeVar("B")
Q = TypeVar("Q")

JSON: Final = b"application/json"


class Control(Protocol):
    """What an operation may ask of the server process itself. Implemented in `server/`."""

    async def shutdown(self, who: Principal, *, destroy_all: bool) -> int:
        """Stop serving soon after this answer; returns how many sandboxes go on. Raises: Forbidden."""
        ...


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """The body or query of an operation that has none."""


class SshFacts(Struct, frozen=True, kw_only=True):
    """Where SSH is taken, by the server process; `missing` says why not."""

    listening: bool = False
    host: str = ""
    port: int = 0
    host_key: str = ""
    missing: str = "COVE_SSH_PORT is 0"


class ServerFacts(Struct, frozen=True, kw_only=True):
    """What the server says about itself beside the core.

    `public_*`: how it is reached from outside, `public_port` None: the usual one. `behind_proxy`: what a proxy before
    us says of the client is believed. `region`: where it is, for protocols that tell it.
    """

    version: str
    public_domain: str = "localhost"
    public_port: int | None = None
    public_scheme: str = "http"
    behind_proxy: bool = False
    region: str = REGION
    ssh: SshFacts = SshFacts()

    def port_url(self, label: str) -> str:
        """The address of a port of a sandbox under its own host name."""
        suffix = "" if self.public_port is None else f":{self.public_port}"
        return f"{self.public_scheme}://{label}.{self.public_domain}{suffix}/"


@dataclass(frozen=True, slots=True)
class Services:
    """What every call may reach."""

    core: Core
    control: Control
    metrics: Metrics
    facts: ServerFacts
    tracer: Tracer | None = None


@dataclass(slots=True)
class Call(Generic[B, Q]):
    """One request, decoded and authenticated."""

    services: Services
    who: Principal
    path: Mapping[str, str]
    query: Q
    body: B
    raw_body: bytes
    exchange: Exchange

    @property
    def core(self) -> Core:
        """What decides."""
        return self.services.core

    def chunks(self) -> AsyncIterator[bytes]:
        """The raw body as it arrives. Only for an operation whose `upload` is true."""
        return self.exchange.body_chunks()

    def typed(self) -> AsyncIterator[bytes]:
        """The raw body as somebody types it: as `chunks`, for as long as it takes. Only where `watched` is true too."""
        return self.exchange.body_chunks(patient=True)

    def idempotency(self) -> Idempotency | None:
        """The caller's Idempotency-Key with the hash of this body. Raises: Malformed."""
        key = self.exchange.text_header("Idempotency-Key")
        if key is None:
            return None
        return Idempotency(key=key, body_sha256=hashlib.sha256(self.raw_body).hexdigest())


class Answer(Protocol):
    """What a handler returns: something that can put itself on the wire."""

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Send status, headers and body."""
        ...


class ErrorWriter(Protocol):
    """Renders a failure as a dialect does; for answers that may fail after they began."""

    def render(self, error: CoveError, request_id: str) -> bytes:
        """The body that reports `error`."""
        ...

    def failure(self, error: CoveError, request_id: str) -> Failure:
        """`error` in the dialect's words, for an answer that has a form of its own."""
        ...

    def frame(self, failure: Failure) -> bytes:
        """`failure` as a text message of a WebSocket."""
        ...


_ENCODE: Final = msgspec.json.Encoder().encode


class Json:
    """A value as JSON."""

    __slots__ = ("headers", "status", "value")

    def __init__(self, value: object, *, status: int = 200, headers: Headers | None = None) -> None:
        self.value = value
        self.status = status
        self.headers = headers

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Send it."""
        del table
        headers = [(b"content-type", JSON)]
        if self.headers:
            headers += self.headers
        await exchange.respond(self.status, headers, _ENCODE(self.value))


class Raw:
    """Bytes with a media type; without one, no body at all."""

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, body: bytes = b"", media_type: bytes = b"", *, status: int = 200, headers: Headers | None = None
    ) -> None:
        self.body = body
        self.status = status
        self.headers: Headers = [*(headers or [])]
        if media_type:
            self.headers.append((b"content-type", media_type))

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Send it."""
        del table
        await exchange.respond(self.status, self.headers, self.body)


def empty() -> Raw:
    """204, nothing to say."""
    return Raw(status=204)


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation of a dialect.

    `path` is below the dialect's prefix, with `{name}` for parameters; `at_root`: the server's root has it, not
    the prefix. `headers` are request headers it reads, with what each means.
    `scopes` documents what the core will ask for; `public` needs no key at all. `upload`: the handler takes the raw
    body as a stream. `watched`: it may take long, so a client that goes away cancels it, and so does a server
    that stops. `body_bytes`: how large its body may be; None: as the server's settings say. `websocket`: the answer is
    a `WebSocket`, and the request must begin one.
    `answer` and `media_type` are what OpenAPI tells of a success.
    """

    method: str
    path: str
    handler: Callable[[Call[Any, Any]], Awaitable[Answer]]
    summary: str
    tag: str
    name: str = ""
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    answer: type[Struct] | None = None
    status: int = 200
    media_type: str = "application/json"
    scopes: tuple[Scope, ...] = ()
    errors: tuple[type[CoveError], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    public: bool = False
    upload: bool = False
    watched: bool = False
    websocket: bool = False
    at_root: bool = False
    body_bytes: int | None = None
    description: str = ""

    @property
    def id(self) -> str:
        """The operation's id in OpenAPI, metrics and logs."""
        return self.name or self.handler.__name__
