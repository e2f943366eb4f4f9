"""The one seam where bytes leave: what a transport is, and when a request may be sent again. Pure.

Three transports implement it: `local.py` (h11 over a unix socket, no HTTP library to import), `tcp.py` (httpx2) and
`aio/transport.py` (httpx2 on asyncio, both kinds of address).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

from cove.sdk.errors import CapacityExceeded, Error, Unreachable

T = TypeVar("T")
Body = bytes | Iterable[bytes] | None

API_VERSION: Final = "1"
"""Sent as `Cove-Version` with each request, so that a later server knows what this client understands."""

STREAM_SILENCE_S: Final = 60.0
"""An event stream over TCP without a byte for this long is taken for dead: the server pings every 15 s."""


class Retry(Enum):
    """What may be done when a request fails before its answer."""

    NEVER = "never"
    """The server may have acted: a command is never sent twice."""
    LOST = "lost"
    """Reading again, or repeating what has the same effect twice, is harmless."""
    CREATE = "create"
    """Protected by an idempotency key; also repeated when the machine has no room for the moment."""


@dataclass(slots=True)
class Call(Generic[T]):
    """One request as data, and how to read its answer. Made by `calls.py`, sent by a client.

    `parse` gets the decoded JSON (None for an empty answer).
    """

    method: str
    path: str
    parse: Callable[[Any], T]
    query: Mapping[str, str | list[str] | None] = field(default_factory=dict[str, "str | list[str] | None"])
    json: Mapping[str, Any] | None = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    retry: Retry = Retry.NEVER
    accept: str = "*/*"

    def target(self) -> str:
        """Return path and query as they stand in the request line."""
        pairs: list[tuple[str, str]] = []
        for name, value in self.query.items():
            if isinstance(value, str):
                pairs.append((name, value))
            elif value is not None:
                pairs.extend((name, each) for each in value)
        if not pairs:
            return self.path
        from urllib.parse import urlencode

        return f"{self.path}?{urlencode(pairs)}"

    def head(self, key: str | None) -> list[tuple[str, str]]:
        """Return the headers that every transport sends, without host, length and encoding."""
        head = [
            ("accept", self.accept),
            ("accept-encoding", "identity"),  # bodies are read as they come
            ("user-agent", f"cove-python/{API_VERSION}"),
            ("cove-version", API_VERSION),
        ]
        if key:
            head.append(("authorization", f"Bearer {key}"))
        if self.json is not None:
            head.append(("content-type", "application/json"))
        elif self.body is not None:
            head.append(("content-type", "application/octet-stream"))
        head.extend(self.headers.items())
        return head

    def payload(self) -> Any:
        """Return the body to send: bytes, an iterable of bytes (an asynchronous one when awaited) or None."""
        if self.json is None:
            return self.body
        import json

        return json.dumps(self.json, ensure_ascii=False, separators=(",", ":")).encode()


class Response(Protocol):
    """An answer whose head has arrived. Close it, or read it to its end."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives."""
        ...

    def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end."""
        ...


class Transport(Protocol):
    """A synchronous way to the server.

    `send` returns once the head of the answer is there. `silence_s` None: wait for as long as it takes.
    Raises: Unreachable; its `sent` says whether the server may have seen the request.
    """

    def send(
        self, method: str, target: str, head: list[tuple[str, str]], body: Body, silence_s: float | None
    ) -> Response:
        """Send one request."""
        ...

    def close(self) -> None:
        """Close idle connections."""
        ...


class AsyncResponse(Protocol):
    """The awaited twin of `Response`."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        ...

    async def close(self) -> None:
        """Give the connection back, or drop it."""
        ...


class Lost(Unreachable):
    """The connection broke after the request, or a part of it, was sent. Not public: callers see `Unreachable`."""


class Retries:
    """Decides, for one call, whether and when it is sent again. Bounded: at most `limit` times.

    A refused first connection is final at once: nobody listens there, and waiting would only hide it.
    """

    LIMIT: Final = 3
    FOLLOW_LIMIT: Final = 10
    """For what is followed: nothing is lost while a server restarts, so there is no hurry to give up. About 17 s."""
    _DELAYS_S: Final = (0.1, 0.5, 2.0)
    _LONGEST_S: Final = 10.0

    def __init__(self, retry: Retry, limit: int = LIMIT) -> None:
        self._retry = retry
        self._limit = limit
        self._count = 0

    def delay_s(self, error: Error) -> float | None:
        """Return how long to wait before sending again, None to give up."""
        if self._count >= self._limit or not self._may(error):
            return None
        delay = self._DELAYS_S[min(self._count, len(self._DELAYS_S) - 1)]
        self._count += 1
        return min(max(delay, error.retry_after_s or 0.0), self._LONGEST_S)

    def _may(self, error: Error) -> bool:
        if self._retry is Retry.NEVER:
            return False
        if isinstance(error, Unreachable):
            return isinstance(error, Lost) or self._count > 0
        if error.code in {"server-stopping", "rate-limited"}:  # refused before anything was done
            return True
        return self._retry is Retry.CREATE and isinstance(error, CapacityExceeded)
