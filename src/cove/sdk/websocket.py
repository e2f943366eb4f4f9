"""One WebSocket to the server, synchronous: frames by `websockets`' protocol without I/O, bytes by a plain socket.

Why not that library's own synchronous client: it holds one lock while it writes and while it reads, so a program that
reads no input would stop its own output too. Here writing waits without the lock, and while it waits what comes is
read: by the thread that receives, or into a bounded buffer when none does. Its awaited client has no such lock.

Any thread may send; one thread at a time receives. A lone writer answers pings; a socket that nobody touches does not,
and the server closes it after a while. Imported when a terminal is attached.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from cove.sdk.errors import BadAnswer, Error, Unreachable, from_answer
from cove.sdk.local import why_unreachable
from cove.sdk.transport import STREAM_SILENCE_S, Lost

if TYPE_CHECKING:
    import ssl

    from cove.sdk.config import Target
    from cove.sdk.transport import Call

CONNECT_TIMEOUT_S: Final = 5.0
HANDSHAKE_TIMEOUT_S: Final = 60.0
"""The answer may wait for a paused sandbox to wake."""
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
AHEAD_BYTES: Final = 4 * 1024 * 1024
"""What is read into memory while a writer waits and nobody receives."""
NORMAL: Final = 1000
_RECEIVE_BYTES: Final = 256 * 1024
_PROXY_HEAD_BYTES: Final = 16 * 1024
_PATIENCE: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})


class Closed(Lost):
    """The server closed the WebSocket. Not public: callers see `Unreachable`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server closed the connection: {reason or code}")
        self.close_code = code


class NotSent(Lost):
    """The connection was found broken before anything of a message was sent."""

    def __init__(self, cause: Lost) -> None:
        super().__init__(cause.message)
        self.close_code = cause.close_code if isinstance(cause, Closed) else 0


class WebSocket:
    """An open WebSocket. Made by `connect`."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol, *, silence_s: float | None) -> None:
        self._socket = sock
        self._protocol = protocol
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._receiving = threading.Lock()
        self._out = bytearray()
        self._messages: deque[bytes | str] = deque()
        self._ahead = 0
        self._parts: list[bytes] = []
        self._kind = Opcode.BINARY
        self._failure: Lost | None = None
        self._is_left = False
        self._collect_all()  # what came in one piece with the handshake, which may be the end already
        self._note_end()

    def receive(self) -> bytes | str:
        """Return the next message; waits for it.

        Raises: Closed (the server closed it), Lost (the connection broke, or `close` was called meanwhile).
        """
        with self._receiving:
            try:
                while True:
                    with self._lock:
                        if self._messages:
                            message = self._messages.popleft()
                            self._ahead -= len(message)
                            return message
                        if self._failure is not None:
                            raise self._failure
                        is_new = self._read()
                        self._flush()
                        wants_out = bool(self._out)
                    if not is_new and not self._wait(reads=True, writes=wants_out):
                        raise Lost("the server fell silent")
            finally:
                if self._is_left:
                    self._socket.close()

    def send(self, data: bytes | str) -> None:
        """Send a message; waits while the other side takes nothing.

        Raises: NotSent (it was broken already), Lost (it broke: the message may have arrived).
        """
        with self._lock:
            while not self._receiving.locked() and self._ahead < AHEAD_BYTES and self._read():
                pass
            if self._failure is not None:
                raise NotSent(self._failure)
            if isinstance(data, str):
                self._protocol.send_text(data.encode())
            else:
                self._protocol.send_binary(data)
            self._take_out()
        while True:
            with self._lock:
                self._flush()
                if not self._out and self._failure is None:
                    return
                if self._failure is not None:
                    raise Lost(self._failure.message)
                reads = not self._receiving.locked() and self._ahead < AHEAD_BYTES
                if reads:
                    self._read()
            self._wait(reads=reads, writes=True)

    def close(self) -> None:
        """Say goodbye, as far as that can be said without waiting, and end the connection. From any thread."""
        with self._lock:
            if self._is_left:
                return
            self._is_left = True
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(NORMAL)
            self._take_out()
            self._flush()
            self._failure = self._failure or Lost("the connection was closed here")
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits in receive; it closes the socket then
            if self._receiving.acquire(blocking=False):
                self._receiving.release()
                self._socket.close()

    # ---- all below is called with the lock held, but _wait

    def _read(self) -> bool:
        """Take what has arrived; returns whether there was something."""
        if self._failure is not None:
            return False
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            if _is_wait(error):
                return False
            self._failure = Lost(f"the connection to the server broke: {error}")
            return True
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._collect_all()
        self._note_end(is_last=not data)
        return True

    def _note_end(self, *, is_last: bool = False) -> None:
        if self._failure is None and (is_last or self._protocol.state is not State.OPEN):
            self._failure = self._end()

    def _collect_all(self) -> None:
        self._take_out()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._collect(event)

    def _end(self) -> Lost:
        received = self._protocol.close_rcvd
        if received is not None:
            return Closed(int(received.code), received.reason)
        sent = self._protocol.close_sent
        if sent is not None:  # the peer broke the protocol, and was told so
            return Lost(f"the server's WebSocket cannot be read: {sent.reason or int(sent.code)}")
        return Lost("the server closed the connection")

    def _collect(self, frame: Frame) -> None:
        if frame.opcode not in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            return
        if frame.opcode is not Opcode.CONT:
            self._kind = frame.opcode
        self._parts.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._parts)
            self._parts = []
            self._messages.append(whole if self._kind is Opcode.BINARY else whole.decode("utf-8", "replace"))
            self._ahead += len(self._messages[-1])

    def _take_out(self) -> None:
        for piece in self._protocol.data_to_send():
            self._out += piece

    def _flush(self) -> None:
        """Send what can be sent without waiting."""
        try:
            while self._out:
                del self._out[: self._socket.send(memoryview(self._out)[: 1 << 20])]
        except OSError as error:
            if not _is_wait(error) and self._failure is None:
                self._failure = Lost(f"the connection to the server broke: {error}")

    def _wait(self, *, reads: bool, writes: bool) -> bool:
        """Wait until the socket may go on; False: the server was silent for too long."""
        poll = select.poll()
        poll.register(self._socket, (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0))
        limit = None if self._silence_s is None or not reads else self._silence_s * 1000
        return bool(poll.poll(limit))


def connect(target: Target, call: Call[Any]) -> WebSocket:
    """Open the WebSocket that `call` names.

    Raises: Unreachable, Lost, BadAnswer; an answer that is no WebSocket becomes the error that it describes.
    """
    uri = parse_uri(address_of(target, call))
    protocol = ClientProtocol(uri, max_size=MAX_MESSAGE_BYTES)
    sock = open_socket(target)
    try:
        if uri.secure:
            sock = tls().wrap_socket(sock, server_hostname=uri.host)
        request = protocol.connect()
        for name, value in call.head(target.key):
            request.headers[name] = value
        protocol.send_request(request)
        sock.settimeout(HANDSHAKE_TIMEOUT_S)
        _shake_hands(sock, protocol)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise broken(error, target.url) from error
    except BaseException:
        sock.close()
        raise
    if protocol.handshake_exc is not None:
        sock.close()
        raise refused(protocol.handshake_exc, target.url)
    return WebSocket(sock, protocol, silence_s=None if target.socket else STREAM_SILENCE_S)


def address_of(target: Target, call: Call[Any]) -> str:
    """Return the address of a WebSocket."""
    base = "ws://localhost" if target.socket else "ws" + target.url.removeprefix("http")
    return base + call.target()


def open_socket(target: Target) -> socket.socket:
    """Return a connected socket, through the environment's proxy where it names one. Raises: Unreachable."""
    return _unix(target.socket) if target.socket else _tcp(target.url)


def tls() -> ssl.SSLContext:
    """Return what certificates are checked against: the HTTP library's, so that both ways trust the same."""
    import httpx2

    return httpx2.create_ssl_context()


def broken(error: Exception, url: str) -> Unreachable:
    """Return our error for a connection that broke before it was open. A certificate does not become better by trying.

    TLS' errors are known by their module: importing ssl costs 10 ms.
    """
    if type(error).__module__ == "ssl":
        return Unreachable(f"no secure connection to {url}: {error}")
    return Lost(f"the connection broke before it was open: {error}")


def refused(error: Exception, url: str) -> Error:
    """Return our error for an answer that opened no WebSocket."""
    if isinstance(error, InvalidStatus):
        response = error.response
        headers = {name.lower(): value for name, value in response.headers.raw_items()}
        return from_answer(response.status_code, headers, bytes(response.body or b""), url)
    if isinstance(error.__cause__, EOFError):
        return Lost("the server closed the connection before it was open")
    return BadAnswer(f"what answered does not speak WebSocket: {error}")


def _shake_hands(sock: socket.socket, protocol: ClientProtocol) -> None:
    while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
        for piece in protocol.data_to_send():
            sock.sendall(piece)
        data = sock.recv(_RECEIVE_BYTES)
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Unreachable(why_unreachable(error, path)) from error
    return sock


def _tcp(url: str) -> socket.socket:
    from cove.sdk.tcp import KEEPALIVE

    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    proxy = _proxy(url, host)
    try:
        sock = socket.create_connection(proxy or (host, port), CONNECT_TIMEOUT_S)
    except OSError as error:
        raise Unreachable(f"no server answers at {url}: {error}") from error
    try:
        for option in (*KEEPALIVE, (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)):
            sock.setsockopt(*option)
        if proxy:
            _tunnel(sock, host, port, url)
    except OSError as error:
        sock.close()
        raise Unreachable(f"no server answers at {url}: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _proxy_url(url: str, host: str) -> str:
    from urllib.request import getproxies, proxy_bypass

    from cove.sdk.tcp import is_loopback

    if is_loopback(url) or proxy_bypass(host):
        return ""
    proxies = getproxies()
    return proxies.get(urlsplit(url).scheme) or proxies.get("all") or ""


def _proxy(url: str, host: str) -> tuple[str, int] | None:
    proxy = _proxy_url(url, host)
    if not proxy:
        return None
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise Unreachable(f"a terminal cannot use the proxy {parts.scheme}://{parts.hostname}", hint="set NO_PROXY")
    return parts.hostname, parts.port or 80


def _tunnel(sock: socket.socket, host: str, port: int, url: str) -> None:
    """Ask an HTTP proxy for a way through (RFC 9110, section 9.3.6)."""
    from base64 import b64encode

    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}"]
    parts = urlsplit(_proxy_url(url, host))
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {b64encode(login.encode()).decode()}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows is no longer the proxy's
        byte = sock.recv(1)
        if not byte or len(head) > _PROXY_HEAD_BYTES:
            raise Unreachable(f"the proxy did not let us through to {name}")
        head += byte
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise Unreachable(f"the proxy refused the way to {name}: {head.splitlines()[0].decode('latin-1')}")


def _is_wait(error: OSError) -> bool:
    """Whether a socket only asks for patience. TLS has errors of its own for it, known by name: ssl costs 10 ms."""
    return error.errno in _PATIENCE or type(error).__name__ in {"SSLWantReadError", "SSLWantWriteError"}
