"""A terminal's WebSocket as the documented wire has it, in this process, over TCP and over a unix socket.

It keeps one output from which every connection reads at its cursor, records what is typed, and breaks on demand.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve, unix_serve

from cove.sdk import config

KEY = "k-test"
Handler = Callable[["FakeTerminal", ServerConnection, int], None]


class FakeTerminal:
    """One terminal. `acts` say what each further connection does; the last one goes for all that follow."""

    def __init__(self) -> None:
        self.output = b""
        self.oldest = 0
        self.exit: Mapping[str, object] | None = {"exit": 0, "why": "exited", "signal": None}
        self.typed = bytearray()
        self.heard = threading.Condition()
        self.acts: list[Handler] = [whole]
        self.refusals: list[Response] = []
        self.is_over = False
        self.cursors: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.unix = ""

    def target(self, kind: str = "tcp") -> tuple[str, str | None]:
        """Where it is, as arguments of a client."""
        return (f"unix:{self.unix}", None) if kind == "unix" else (self.url, KEY)

    def config(self, kind: str = "tcp") -> config.Target:
        return config.resolve(*self.target(kind), environ={})

    def handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        cursor = int(parse_qs(urlsplit(connection.request.path).query)["cursor"][0])
        self.cursors.append(cursor)
        self.headers.append({name.lower(): value for name, value in connection.request.headers.raw_items()})
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        listener = threading.Thread(target=self._listen, args=[connection], daemon=True)
        with suppress(ConnectionClosed, OSError):
            if act is not deaf:
                listener.start()
            act(self, connection, cursor)

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        del connection, request
        return self.refusals.pop(0) if self.refusals else None

    def _listen(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed, OSError):
            for message in connection:
                with self.heard:
                    self.typed += message if isinstance(message, bytes) else message.encode()
                    self.heard.notify_all()

    def wait_typed(self, count: int) -> bytes:
        """Wait until so many bytes were typed."""
        with self.heard:
            assert self.heard.wait_for(lambda: self.is_over or len(self.typed) >= count, 60), bytes(self.typed[-100:])
            if self.is_over:
                raise OSError("the test is over")
            return bytes(self.typed)

    def leave(self) -> None:
        """Let those go who wait for more to be typed."""
        with self.heard:
            self.is_over = True
            self.heard.notify_all()


def say(connection: ServerConnection, **fields: object) -> None:
    connection.send(json.dumps(fields))


def begin(terminal: FakeTerminal, connection: ServerConnection, cursor: int) -> int:
    """Say where it begins; returns that."""
    say(connection, type="attached", cursor=cursor, cols=80, rows=24)
    if cursor < terminal.oldest:
        say(connection, type="gap", lost=terminal.oldest - cursor)
    return max(cursor, terminal.oldest)


def whole(terminal: FakeTerminal, connection: ServerConnection, cursor: int) -> None:
    """All there is, then the end."""
    start = begin(terminal, connection, cursor)
    for place in range(start, len(terminal.output), 10_000):
        connection.send(terminal.output[place : place + 10_000])
    say(connection, type="exit", cursor=len(terminal.output), **(terminal.exit or {}))
    connection.close(1000)


def up_to(end: int, code: int) -> Handler:
    """Output up to `end`, then a close with `code`; 0: the connection breaks."""

    def act(terminal: FakeTerminal, connection: ServerConnection, cursor: int) -> None:
        begin(terminal, connection, cursor)
        if cursor < end:
            connection.send(terminal.output[cursor:end])
        if code:
            connection.close(code, "because")
        else:
            connection.socket.shutdown(socket.SHUT_RDWR)

    return act


def echo(terminal: FakeTerminal, connection: ServerConnection, cursor: int) -> None:
    """What is typed comes back, until `exit` is."""
    done = begin(terminal, connection, cursor)
    while not bytes(terminal.typed).endswith(b"exit"):
        terminal.output = terminal.wait_typed(done + 1)
        connection.send(terminal.output[done:])
        done = len(terminal.output)
    whole_end(terminal, connection)


def whole_end(terminal: FakeTerminal, connection: ServerConnection) -> None:
    say(connection, type="exit", cursor=len(terminal.output), **(terminal.exit or {}))
    connection.close(1000)


def deaf(terminal: FakeTerminal, connection: ServerConnection, cursor: int) -> None:
    """It reads nothing and writes all it has, then listens: two directions that must not wait for one another."""
    start = begin(terminal, connection, cursor)
    connection.send(terminal.output[start:] if len(terminal.output) - start <= 10_000 else b"")
    for place in range(start, len(terminal.output), 10_000):
        connection.send(terminal.output[place : place + 10_000])
    terminal._listen(connection)


def refusal(status: int, code: str, detail: str = "no") -> Response:
    body = json.dumps({"code": code, "detail": detail, "status": status, "request_id": "req_1"}).encode()
    from websockets.datastructures import Headers

    headers = Headers({"Content-Type": "application/problem+json", "Content-Length": str(len(body))})
    return Response(status, HTTPStatus(status).phrase, headers, body)


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert),
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return cert, key


@contextmanager
def running(directory: Path, *, with_tls: bool = False) -> Iterator[FakeTerminal]:
    """A terminal that is served; `with_tls`: by a certificate in `directory`."""
    fake = FakeTerminal()
    context: ssl.SSLContext | None = None
    if with_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(directory))
    fake.unix = str(directory / "t.sock")
    with (
        serve(fake.handle, "127.0.0.1", 0, process_request=fake.admit, compression=None, ssl=context) as tcp,
        unix_serve(fake.handle, fake.unix, process_request=fake.admit, compression=None) as unix,
    ):
        fake.url = f"http{'s' if with_tls else ''}://127.0.0.1:{tcp.socket.getsockname()[1]}"
        servers: list[Server] = [tcp, unix]
        threads = [threading.Thread(target=each.serve_forever) for each in servers]
        for thread in threads:
            thread.start()
        try:
            yield fake
        finally:
            fake.leave()
            for each in servers:
                each.shutdown()
            for thread in threads:
                thread.join(60)
