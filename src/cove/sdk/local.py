"""HTTP/1.1 over the local unix socket: h11 for the protocol, a plain socket for the bytes.

Why not the HTTP library: importing it costs 80 ms, http.client 27 ms, h11 11 ms, and `cove exec` has 80 ms for
everything (docs/decisions/0002-sdk-transport.md). h11 is what the HTTP library parses with, so it is always there.

Safe to use from several threads: a connection belongs to one request at a time.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import h11

from cove.sdk.errors import BadAnswer, BadRequest, Unreachable
from cove.sdk.transport import Body, Lost

RECEIVE_BYTES: Final = 256 * 1024
CONNECT_TIMEOUT_S: Final = 5.0
MAX_IDLE: Final = 8
"""Idle connections kept open."""
MAX_IDLE_S: Final = 30.0
"""An older one is not used again: the server closes after 75 s, and a request must not meet that moment."""


class LocalTransport:
    """Requests over the unix socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[_Connection] = []

    def send(
        self, method: str, target: str, head: list[tuple[str, str]], body: Body, silence_s: float | None
    ) -> LocalResponse:
        """Send one request and wait for the head of its answer.

        Raises: Unreachable (nobody listens), Lost (the connection broke), BadAnswer (what came is not HTTP).
        """
        connection = self._take()
        try:
            connection.socket.settimeout(silence_s)
            response = connection.exchange(method, target, [("host", "localhost"), *head], body)
        except BaseException as error:
            connection.socket.close()
            if isinstance(error, OSError):
                raise Lost(f"the server closed the connection: {error}") from error
            if isinstance(error, h11.RemoteProtocolError):
                raise _broken(error) from error
            if isinstance(error, h11.LocalProtocolError):
                raise BadRequest(f"the request cannot be sent: {error}") from error
            if isinstance(error, _SourceFailed):
                raise error.failure from None
            raise
        return LocalResponse(self, connection, response)

    def close(self) -> None:
        """Close idle connections."""
        while self._idle:
            self._idle.pop().socket.close()

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection whose exchange is complete for the next request, else close it."""
        connection.idle_since = time.monotonic()
        if connection.is_reusable() and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.socket.close()

    def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.idle_since < MAX_IDLE_S and connection.is_quiet():
                return connection
            connection.socket.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise Unreachable(why_unreachable(error, self._path)) from error
        return _Connection(sock)


class LocalResponse:
    """An answer from the local server."""

    def __init__(self, transport: LocalTransport, connection: _Connection, response: h11.Response) -> None:
        self.status = response.status_code
        self.headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
        self._transport = transport
        self._connection = connection
        self._open = True

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives; ends with the body.

        Raises: Lost (the connection broke before the body's end).
        """
        try:
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Data):
                    yield bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    raise Lost("the server closed the connection in the middle of an answer")
        except OSError as error:
            raise Lost(f"the connection to the server broke: {error}") from error
        except h11.RemoteProtocolError as error:
            raise _broken(error) from error
        self.close()

    def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end."""
        if self._open:
            self._open = False
            self._transport.give_back(self._connection)


class _Connection:
    """One socket and its protocol state."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.idle_since = 0.0
        self._is_ended = False
        self._h11 = h11.Connection(h11.CLIENT)

    def exchange(self, method: str, target: str, head: list[tuple[str, str]], body: Body) -> h11.Response:
        """Send a request and read as far as the head of the answer, skipping informational ones."""
        framing = ("content-length", str(len(body or b""))) if isinstance(body, bytes | None) else None
        if framing is None and not any(name == "content-length" for name, _ in head):
            framing = ("transfer-encoding", "chunked")
        if framing is not None and (body is not None or method in {"POST", "PUT", "PATCH"}):
            head = [*head, framing]
        # The server may have answered before it closed its ear, such as 413 to a large upload: read that first.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send(h11.Request(method=method, target=target, headers=head), body)
        while True:
            event = self.next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise ConnectionResetError("no answer came")

    def _send(self, request: h11.Request, body: Body) -> None:
        head = self._h11.send(request)
        if body is None or isinstance(body, bytes):  # one segment: the server reads head and body together
            data = self._h11.send(h11.Data(data=body)) if body else b""
            self.socket.sendall(head + data + self._h11.send(h11.EndOfMessage()))
            return
        self.socket.sendall(head)
        for piece in _guarded(body):
            if piece:
                for part in self._h11.send_with_data_passthrough(h11.Data(data=piece)) or ():
                    self.socket.sendall(part)
        self.socket.sendall(self._h11.send(h11.EndOfMessage()))

    def next_event(self) -> object:
        """Return the next protocol event, reading from the socket as needed."""
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                if self._is_ended:  # nothing wrong was said, only too little
                    raise ConnectionResetError("it was closed in the middle of an answer") from error
                raise
            if event is not h11.NEED_DATA:
                return event
            data = self.socket.recv(RECEIVE_BYTES)
            self._is_ended = not data
            self._h11.receive_data(data)

    def is_reusable(self) -> bool:
        """Whether both sides have said everything and agree to go on; then ready for the next request."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            return True
        return False

    def is_quiet(self) -> bool:
        """Whether the idle connection is still open: a readable one was closed by the server."""
        try:
            self.socket.setblocking(False)
            return bool(self.socket.recv(1, socket.MSG_PEEK)) and False
        except BlockingIOError:
            return True
        except OSError:
            return False


class _SourceFailed(Exception):
    """The caller's own iterable failed, which is not the connection's fault."""

    def __init__(self, failure: OSError) -> None:
        super().__init__(str(failure))
        self.failure = failure


def _guarded(body: Iterable[bytes]) -> Iterator[bytes]:
    pieces = iter(body)
    while True:
        try:
            piece = next(pieces)
        except StopIteration:
            return
        except OSError as error:
            raise _SourceFailed(error) from error
        yield piece


def why_unreachable(error: OSError, path: str) -> str:
    """Return in a sentence why nobody could be reached at the socket `path`."""
    if isinstance(error, PermissionError):
        return f"no permission to use {path}"
    if isinstance(error, FileNotFoundError):
        return "no server on this machine"
    if isinstance(error, ConnectionRefusedError):
        return "no server on this machine (it ended and left its socket)"
    return f"cannot connect to {path}: {error.strerror or error}"


def _broken(error: Exception) -> BadAnswer:
    return BadAnswer(f"what answered does not speak HTTP/1.1: {error}")
