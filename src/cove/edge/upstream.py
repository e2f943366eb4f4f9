"""One HTTP/1.1 exchange with an application or a service, over a dialled connection. No ASGI, no rewriting.

What answers is hostile: its head is bounded, its framing is checked by a strict parser, and a connection is used
again only after an answer whose end both sides must see in the same place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Protocol

import httptools
from msgspec import Struct

from cove.edge.errors import BadUpstream, UpstreamTimeout
from cove.edge.proxyheaders import Headers
from cove.model.errors import AgentTimeout, AgentViolation, Conflict, CoveError, SandboxGone

HEAD_BYTES: Final = 64 * 1024
SWITCHING: Final = 101
_OK: Final = 200
_STATUSES: Final = range(_OK, 600)
_NO_BODY: Final = frozenset({204, 304})
_BAD_VALUE: Final = frozenset((*range(9), *range(10, 32), 127))


class Stream(Protocol):
    """A connection to the application."""

    async def __anext__(self) -> bytes:
        """The next bytes. Raises: StopAsyncIteration."""
        ...

    async def write(self, data: bytes) -> None:
        """Send, waiting while the other side does not read."""
        ...


class Head(Struct, frozen=True):
    """Status and headers of an answer, names in lowercase."""

    status: int
    headers: Headers


class _Parsed:
    """What httptools calls back. Names of methods are its own."""

    def __init__(self) -> None:
        self.headers: Headers = []
        self.heads: deque[tuple[int, Headers, bool]] = deque()
        self.body: deque[bytes] = deque()
        self.parser: httptools.HttpResponseParser | None = None
        self.in_head = True
        self.is_final = False
        self.is_complete = False
        self.has_extra = False
        self.has_switched = False

    def on_message_begin(self) -> None:
        self.has_extra = self.has_extra or self.is_final
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # else a trailer: dropped
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self.parser is not None  # noqa: S101 - set by whoever feeds it
        if self.is_final:
            return
        status = self.parser.get_status_code()
        self.heads.append((status, self.headers, self.parser.should_keep_alive()))
        if status >= _OK or status == SWITCHING:
            self.is_final = True
            self.in_head = False
            self.has_switched = self.parser.should_upgrade()

    def on_body(self, data: bytes) -> None:
        if self.is_complete:
            self.has_extra = True
        else:
            self.body.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = self.is_final


class Upstream:
    """One request's side of a connection. Made for each request; `head` first, then `body`.

    Args:
        stream: the connection.
        name: what answers, as the subject of a sentence.
        late: what may be done where it does not answer in time.
        is_head_request: the answer has no body, whatever it says.
    """

    def __init__(self, stream: Stream, name: str, *, late: str, is_head_request: bool) -> None:
        self._stream = stream
        self._name = name
        self._late_hint = late
        self._is_head_request = is_head_request
        self._parsed = _Parsed()
        self._parser = httptools.HttpResponseParser(self._parsed)
        self._parsed.parser = self._parser
        self._keep_alive = False
        self._is_framed = False
        self._was_reset = False
        self._count = 0
        self._clock: asyncio.Timeout | None = None
        self.rest = b""
        self.has_answered = False

    @property
    def is_reusable(self) -> bool:
        """Whether the answer has ended in a place that its own framing names, with nothing behind it."""
        parsed = self._parsed
        is_done = parsed.is_complete or (self._is_head_request and parsed.is_final)
        return is_done and self._keep_alive and not parsed.has_extra and not parsed.body

    async def send_head(self, data: bytes, timeout_s: float) -> None:
        """Send the request's head: nobody looks yet whether the client goes. Raises: UpstreamTimeout, SandboxGone."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._stream.write(data)
        except TimeoutError:
            raise self._late() from None

    async def interim(self, timeout_s: float) -> Head | None:
        """The next head of any kind, None if none comes in time. Raises: as `head`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._next_head()
        except TimeoutError:
            return None

    async def head(self, timeout_s: float) -> Head:
        """The final head, interim ones left out. Raises: BadUpstream, UpstreamTimeout, SandboxGone."""
        try:
            async with asyncio.timeout(timeout_s) as self._clock:
                while True:
                    found = await self._next_head()
                    if found.status == SWITCHING and not self._parsed.has_switched:
                        raise self._bad("switched to another protocol without naming one")
                    if found.status in _STATUSES or found.status == SWITCHING:
                        return found
                    if found.status >= _OK:
                        raise self._bad(f"answered with the status {found.status}, which no client understands")
        except TimeoutError:
            raise self._late() from None
        finally:
            self._clock = None

    def put_off(self, timeout_s: float) -> None:
        """The request is still on its way: from now on `head` waits that long again."""
        if self._clock is not None and not self._clock.expired():
            self._clock.reschedule(asyncio.get_running_loop().time() + timeout_s)

    async def body(self) -> AsyncIterator[bytes]:
        """The body, decoded, in the pieces it comes in. Raises: BadUpstream (cut short, or malformed), SandboxGone."""
        parsed = self._parsed
        if self._is_head_request:
            parsed.has_extra = parsed.has_extra or bool(parsed.body)
            return
        while True:
            while parsed.body:
                yield parsed.body.popleft()
            if parsed.is_complete:
                return
            data = await self._next()
            if not data:
                if self._is_framed or self._was_reset:
                    raise self._bad("closed the connection in the middle of its answer")
                return
            self._feed(data)

    async def _next_head(self) -> Head:
        parsed = self._parsed
        while not parsed.heads:
            data = await self._next()
            if not data:
                raise self._bad("closed the connection without an answer")
            self.has_answered = True
            self._count += len(data)
            self._feed(data)
            if not parsed.is_final and self._count > HEAD_BYTES:
                raise self._bad(f"answered with more than {HEAD_BYTES} bytes of headers")
        status, headers, self._keep_alive = parsed.heads.popleft()
        self._check(headers)
        names = {name for name, _ in headers}
        codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise self._bad("uses a transfer coding other than chunked")
        self._is_framed = status in _NO_BODY or b"content-length" in names or bool(codings)
        return Head(status, headers)

    async def _next(self) -> bytes:
        """The next bytes; none: the application has closed or reset the connection. Raises: SandboxGone and its kin."""
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            return b""
        except (SandboxGone, AgentTimeout, AgentViolation):
            raise
        except CoveError as error:
            if isinstance(error, Conflict) and error.field == "state":
                raise  # the sandbox was hibernated under it
            self._was_reset = True
            return b""

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            parsed = self._parsed
            if parsed.is_complete or (self._is_head_request and parsed.is_final):
                parsed.has_extra = True  # what follows a whole answer is nobody's
                return
            what = "broke the framing of its answer" if parsed.is_final else "does not answer in HTTP/1.1"
            raise self._bad(what, internal=str(error)) from None

    def _check(self, headers: Headers) -> None:
        size = 0
        for name, value in headers:
            size += len(name) + len(value) + 4
            if not _BAD_VALUE.isdisjoint(value):
                raise self._bad("answered with a header that has control characters")
        if size > HEAD_BYTES:
            raise self._bad(f"answered with more than {HEAD_BYTES} bytes of headers")

    def _late(self) -> UpstreamTimeout:
        return UpstreamTimeout(f"{self._name} took the request and did not answer in time: {self._late_hint}")

    def _bad(self, what: str, *, internal: str = "") -> BadUpstream:
        return BadUpstream(f"{self._name} {what}", internal=internal)
