"""uvicorn's HTTP/1.1 protocol with limits on what a connection may hold: time and size of a head, idle time, how many.

uvicorn has none of these for httptools (0.54: no limit of the head, no time for it). Not here: bodies (`exchange.py`).

Also here: a request that asks for another protocol (`Upgrade`) is a plain HTTP request to the application, with all its
answers; its scope has `TAKE_OVER`, by which an answer may take the connection for itself. What the client sent after
such a head waits until then; if nobody takes it, it is the next request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from typing import Any, Final, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from cove.edge.errors import ClientGone
from cove.edge.exchange import TAKE_OVER, TRANSPORT
from cove.edge.limits import EdgeLimits

LINGER_S: Final = 30.0
"""How long the rest of a body that nobody reads any more is taken, so that its sender gets to see our answer."""

_HELD_BYTES: Final = 64 * 1024
"""What a client may send after such a head before it has its answer; whoever sends more waits for none."""

_UCRED: Final = struct.Struct("iII")


def _canned(status: bytes, code: bytes, detail: bytes) -> bytes:
    body = b'{"type":"/docs/errors#%b","title":"%b","status":%b,"code":"%b","detail":"%b"}' % (
        code, code, status[:3], code, detail,
    )  # fmt: skip
    return b"".join(
        (
            b"HTTP/1.1 ", status, b"\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n" % len(body),
            b"retry-after: 1\r\n" if status.startswith(b"503") else b"", b"connection: close\r\n\r\n", body,
        )
    )  # fmt: skip


FULL: Final = _canned(b"503 Service Unavailable", b"capacity", b"too many connections")
HEAD_TOO_LARGE: Final = _canned(
    b"431 Request Header Fields Too Large", b"too-large", b"the request's head is too large"
)
HEAD_TOO_SLOW: Final = _canned(b"408 Request Timeout", b"request-timeout", b"the request's head did not come in time")
NOT_HTTP: Final = _canned(b"400 Bad Request", b"bad-request", b"this is no valid HTTP/1.1 request")


class _UntilClose(int):
    """The length of an answer that ends with its connection: uvicorn compares with it, and never gets there."""

    def __lt__(self, other: int) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    def __sub__(self, other: int) -> _UntilClose:
        return self

    __hash__ = int.__hash__


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Made by `protocol_class`, which gives it its limits."""

    limits: EdgeLimits = EdgeLimits()
    only_uids: frozenset[int] | None = None
    per_address: int | None = None
    by_address: Counter[str]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_bytes = 0
        self._in_head = True
        self._in_body = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_plain = False  # the request asks for another protocol and cannot have it
        self._held: bytearray | None = None
        self._taken: asyncio.Protocol | None = None
        self._counted = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take or refuse a connection, and start the clock for its first head."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections or not self._is_allowed(transport) or self._is_one_more():
            self._refuse(FULL)
            return
        self._arm(self.limits.head_s, HEAD_TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._disarm()
        if self._counted:
            self.by_address[self._counted] -= 1
            if not self.by_address[self._counted]:
                del self.by_address[self._counted]
        if self._taken is not None:
            self._taken.connection_lost(exc)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, then parse."""
        if self.transport.is_closing():
            return
        if self._taken is not None:
            self._taken.data_received(data)
            return
        if self._held is not None:
            self._hold(data)
            return
        if self._in_head:
            self._head_bytes += len(data)
        self._parse(data)
        if self._in_head and self._head_bytes > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse(HEAD_TOO_LARGE)
        elif self._in_head and self._timer is None and self._is_idle():
            self._arm(self.limits.head_s, HEAD_TOO_SLOW)  # line breaks before a head begin no message

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Close, unless who has the connection can still write to a client that sends no more."""
        return self._taken.eof_received() if self._taken is not None else None

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        if self._taken is not None:
            self._taken.pause_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._taken is not None:
            self._taken.resume_writing()

    def shutdown(self) -> None:
        """The server stops. A connection that was taken over is ended by who has it."""
        if self._taken is None:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        del msg
        self._refuse(NOT_HTTP)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[TRANSPORT] = self.transport
        if self._timer is None:
            self._arm(self.limits.head_s, HEAD_TOO_SLOW)

    def on_headers_complete(self) -> None:
        """The head is complete: its clock stops, the application takes over."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("no proxy")  # the parser reports it as an error of the request
            self._is_plain = self.parser.get_http_version() != "1.1" or self._announces_body()
            if self._is_plain:
                return
            self.scope[TAKE_OVER] = self._take_over  # type: ignore[typeddict-unknown-key]
        self._disarm()
        self._in_head = False
        self._in_body = True
        self._head_bytes = 0
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            # uvicorn would send it chunks, which it does not know.
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = _UntilClose()
        self.headers = []  # else uvicorn adds the trailers to the head that the application already has

    def on_message_complete(self) -> None:
        """The body is complete; what comes next is another head."""
        if self._is_plain:
            return
        self._in_body = False
        self._in_head = True
        super().on_message_complete()
        if self.cycle.response_complete:
            self._disarm()

    def on_response_complete(self) -> None:
        """The answer is out; an unread rest of the body may follow, for a while."""
        super().on_response_complete()
        if self._held is not None and self.cycle.response_complete:
            self.loop.call_soon(self._go_on)
        if self._in_body and not self.transport.is_closing():
            self._arm(LINGER_S, b"")

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._is_plain:
                self._is_plain = False
                head = self._plain_head()
                # As uvicorn makes it: data after a request with `Connection: close` is passed over, not an error.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self._parse(head + rest)
            else:
                self._held = bytearray()
                self._hold(rest)
        except httptools.HttpParserError:
            self._refuse(NOT_HTTP)

    def _announces_body(self) -> bool:
        # The parser takes what follows such a head for the other protocol, a body too: it would be the next request.
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
            for name, value in self.headers
        )

    def _plain_head(self) -> bytes:
        """The head of this request without its wish for another protocol, which a server may ignore (RFC 9110, 7.8)."""
        method = self.parser.get_method()
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (method, self.url, version)]
        lines += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"".join((*lines, b"\r\n"))

    def _hold(self, data: bytes) -> None:
        assert self._held is not None  # noqa: S101 - both callers see to it
        self._held += data
        if len(self._held) > _HELD_BYTES:
            self._refuse(b"")

    def _go_on(self) -> None:
        """Nobody took the connection: what came after the request is the next one."""
        held, self._held = self._held, None
        if held and self._taken is None and not self.transport.is_closing():
            self.data_received(bytes(held))

    def _take_over(self, head: bytes, taker: asyncio.Protocol) -> None:
        # An upgrade is the last request of a connection: nothing behind it was parsed, so `cycle` is its own.
        if self.transport.is_closing():
            raise ClientGone("the client closed the connection")
        self.cycle.response_started = self.cycle.response_complete = True
        self.transport.write(head)
        self._taken = taker
        taker.connection_made(self.transport)
        if self.flow.write_paused:
            taker.pause_writing()
        self.flow.resume_reading()
        held, self._held = self._held, None
        if held:
            taker.data_received(bytes(held))

    def _is_idle(self) -> bool:
        # Until the first request there is no cycle, whatever its annotation says.
        return not self.cycle or self.cycle.response_complete

    def _is_allowed(self, transport: asyncio.Transport) -> bool:
        if self.only_uids is None:
            return True
        sock = transport.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        uid: int = _UCRED.unpack(raw)[1]
        return uid in self.only_uids

    def _is_one_more(self) -> bool:
        """Whether the client's address has all the connections that one may have."""
        if self.per_address is None or self.client is None:
            return False
        self._counted = self.client[0]
        self.by_address[self._counted] += 1
        return self.by_address[self._counted] > self.per_address

    def _arm(self, seconds: float, answer: bytes) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._refuse, answer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, answer: bytes) -> None:
        self._disarm()
        if not self.transport.is_closing():
            if answer:
                self.transport.write(answer)
            self.transport.close()


def protocol_class(
    limits: EdgeLimits, *, local_only: bool = False, per_address: int | None = None
) -> type[LimitedProtocol]:
    """The protocol with these limits. `local_only`: a unix socket for root and for the server's own user alone.

    `per_address`: connections that one client address may have.
    """
    uids = frozenset({0, os.geteuid()}) if local_only else None
    bound = {"limits": limits, "only_uids": uids, "per_address": per_address, "by_address": Counter[str]()}
    return type("BoundProtocol", (LimitedProtocol,), bound)
