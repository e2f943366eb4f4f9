"""A small server that speaks the documented wire, in this process, over TCP and over a unix socket.

It keeps what a test needs (sandboxes, files, commands whose output a test scripts), records each request, and breaks on
demand: `fail` queues answers, or cut connections, for the next requests of a path.
"""

from __future__ import annotations

import json
import socketserver
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cove.sdk.transport import Retries

KEY = "k-test"
CUT = "cut"
"""In `fail`: read the request, then close the connection without an answer."""


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    json: Any = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: Callable[[], Iterator[bytes]] | None = None


def problem(code: str, status: int, detail: str = "no", **more: Any) -> Answer:
    headers = {"Content-Type": "application/problem+json", "X-Request-Id": "req_1"}
    if "retry_after" in more:
        headers["Retry-After"] = str(more.pop("retry_after"))
    wire = {"type": f"/docs/errors#{code}", "title": code, "status": status, "code": code, "detail": detail}
    return Answer(status, wire | {"request_id": "req_1", "retryable": False} | more, headers=headers)


def event(kind: str, /, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def piece(stream: str, data: bytes) -> bytes:
    return event(stream, data=b64encode(data).decode())


END = {"exit_code": 0, "signal": None, "why": "exited", "duration_ms": 1.5, "cpu_ms": 1.0, "memory_peak_bytes": 4096}


class Stub:
    """What the server knows and what was asked of it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.failures: dict[tuple[str, str], list[Any]] = {}
        self.boxes: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.exec: dict[str, Any] = END | {"stdout": "aGkK", "stderr": "", "encoding": "base64"}
        self.events: list[list[bytes]] = []
        self.stdin = b""
        self.left = threading.Event()
        """Set when a client closed a stream before its end."""
        self.unix = ""
        self.tcp = ""

    def fail(self, method: str, path: str, *answers: Any) -> None:
        self.failures.setdefault((method, path), []).extend(answers)

    def asked(self, method: str, path: str) -> list[Request]:
        return [r for r in self.requests if (r.method, r.path) == (method, path)]

    def answer(self, request: Request) -> Any:  # noqa: PLR0911 - one for each path
        self.requests.append(request)
        queued = self.failures.get((request.method, request.path))
        if queued:
            return queued.pop(0)
        parts = request.path.removeprefix("/api/v1/").split("/")
        match parts:
            case ["sandboxes"]:
                return self._sandboxes(request)
            case ["sandboxes", ref, *rest]:
                box = next((b for b in self.boxes.values() if ref in (b["id"], b["name"])), None)
                return problem("not-found", 404, "no such sandbox") if box is None else self._box(request, box, rest)
            case ["server"]:
                return Answer(json={"version": "1", "drivers": []})
            case ["server", "shutdown"]:
                return Answer(202, {"sandboxes": 0 if request.json["all"] else len(self.boxes)})
            case ["keys"] if request.method == "POST":
                return Answer(201, {"id": "key_1", "key": "cove_secret", **request.json})
            case ["images"]:
                return Answer(json={"images": [{"name": "base", "digest": "d", "size_bytes": 1, "status": "ready"}]})
            case _:
                return problem("not-found", 404, "no such path")

    def _sandboxes(self, request: Request) -> Answer:
        if request.method == "POST":
            number = len(self.boxes)
            box = {"id": f"sb_{number:016x}", "name": f"box-{number}", "state": "running", **request.json}
            self.boxes[box["id"]] = box
            return Answer(201, box)
        start, limit = int(request.query.get("cursor", ["0"])[0]), int(request.query["limit"][0])
        page = list(self.boxes.values())[start : start + limit]
        cursor = str(start + limit) if start + limit < len(self.boxes) else None
        return Answer(json={"sandboxes": page, "cursor": cursor})

    def _box(self, request: Request, box: dict[str, Any], rest: list[str]) -> Answer:  # noqa: PLR0911 - likewise
        match request.method, rest:
            case "GET", []:
                return Answer(json=box)
            case "DELETE", []:
                box["state"] = "terminated"
                return Answer(json=box)
            case "PATCH", []:
                box |= request.json
                return Answer(json=box)
            case "POST", ["pause"] | ["resume"]:
                box["state"] = "paused" if rest == ["pause"] else "running"
                return Answer(json=box)
            case "POST", ["exec"]:
                return Answer(json=self.exec)
            case "POST", ["exec", "stream"]:
                return self._events()
            case _, ["commands", *more]:
                return self._command(request, more)
            case _, ["files", *more]:
                return self._file(request, more)
            case _, ["shells" | "watches" as noun, *more]:
                return self._shell(request, more) if noun == "shells" else self._watch(request, more)
            case _:
                return problem("not-found", 404)

    def _events(self) -> Answer:
        pieces = self.events.pop(0)
        return Answer(stream=lambda: iter(pieces), headers={"Content-Type": "text/event-stream"})

    def _command(self, request: Request, rest: list[str]) -> Answer:  # noqa: PLR0911 - likewise
        command = {"id": "c1", "pid": 7, "command": ["true"], "running": True, "exit": None, "cursor": 0}
        match request.method, rest:
            case "GET", []:
                return Answer(json={"commands": [command]})
            case "POST", []:
                return Answer(201, command)
            case "GET", ["c1", "output"] if "follow" in request.query:
                return self._events()
            case "GET", ["c1", "output"]:
                chunks = [{"stream": "stdout", "data": b64encode(b"kept").decode()}]
                wire = {"chunks": chunks, "lost_bytes": 3, "cursor": 7, "ended": True, "exit": END}
                return Answer(json=wire | {"encoding": "base64"})
            case "POST", ["c1", "stdin"]:
                self.stdin += request.body
                return Answer(json={"written": len(request.body)})
            case "POST", ["c1", "wait"]:
                return Answer(json=command | {"running": False, "exit": END})
            case "GET", ["c1"]:
                return Answer(json=command)
            case _, ["c1", *_]:
                return Answer(204)
            case _:
                return problem("not-found", 404, "no such command")

    def _shell(self, request: Request, rest: list[str]) -> Answer:  # noqa: PLR0911 - likewise
        shell = {"id": "s1", "pid": 9, "program": "bash", "cwd": "/w", "running": None, "queued": 0, "exit": None}
        match request.method, rest:
            case "POST", []:
                return Answer(201, shell | {"job_control": True})
            case "GET", []:
                return Answer(json={"shells": [shell]})
            case "GET", ["s1"]:
                return Answer(json=shell | {"exit": END})
            case "POST", ["s1", "run"]:
                return Answer(json=self.exec)
            case "POST", ["s1", "run", "stream"]:
                return self._events()
            case "POST", ["s1", "commands"]:
                return Answer(201, {"id": "c1", "shell": "s1", "queued": True})
            case _, ["s1", *_]:
                return Answer(204)
            case _:
                return problem("not-found", 404, "no such shell")

    def _watch(self, request: Request, rest: list[str]) -> Answer:  # noqa: PLR0911 - likewise
        watch = {"id": "w1", "path": "/w", "recursive": True, "kinds": ["create"], "glob": None, "ended": None}
        match request.method, rest:
            case "POST", []:
                return Answer(201, watch | request.json)
            case "GET", []:
                return Answer(json={"watches": [watch]})
            case "GET", ["w1", "events"] if "follow" in request.query:
                return self._events()
            case "GET", ["w1", "events"]:
                made = {"kind": "create", "path": "/w/f", "directory": False, "at": "2026-01-01T00:00:00.000Z"}
                return Answer(json={"events": [made], "lost_events": 3, "cursor": 4, "ended": "removed"})
            case "GET", ["w1"]:
                return Answer(json=watch | {"cursor": 9})
            case "DELETE", ["w1"]:
                return Answer(204)
            case _:
                return problem("not-found", 404, "no such watch")

    def _file(self, request: Request, rest: list[str]) -> Answer:  # noqa: PLR0911 - likewise
        path = request.query.get("path", [""])[0]
        if request.method == "PUT":
            self.files[path] = request.body
            return Answer(json=self._info(path))
        if rest == ["list"]:
            names = sorted(self.files)
            start = int(request.query.get("cursor", ["0"])[0])
            cursor = str(start + 2) if start + 2 < len(names) else None
            return Answer(json={"entries": [self._info(p) for p in names[start : start + 2]], "cursor": cursor})
        if rest in (["mkdir"], ["move"]) or request.method == "PATCH":
            return Answer(json={"path": request.json.get("to") or request.json["path"], "kind": "directory"})
        if path not in self.files:
            return problem("file-error", 404, "no such file", reason="not_found")
        if request.method == "DELETE":
            del self.files[path]
            return Answer(json={"removed": 1})
        if rest == ["content"]:
            data = self.files[path]
            if "range" in request.headers:
                first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
                return Answer(206, body=data[int(first) : int(last) + 1 if last else None])
            return Answer(body=data)
        return Answer(json=self._info(path))

    def _info(self, path: str) -> dict[str, Any]:
        name = path.rpartition("/")[2]
        return {"path": path, "name": name, "kind": "file", "size": len(self.files[path]), "mode": "0644"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def address_string(self) -> str:
        return "test"

    def log_message(self, *_: object) -> None:
        pass

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _serve(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.stub.answer(Request(self.command, url.path, parse_qs(url.query), headers, self._read()))
        if answer == CUT:
            self.close_connection = True
            return
        body = answer.body if answer.json is None else json.dumps(answer.json).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.stream is None:
            if answer.status != 204:
                self.send_header("Content-Length", str(answer.headers.get("X-Says", len(body))))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = self.close_connection or "X-Says" in answer.headers
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._send_stream(answer.stream())

    def _send_stream(self, pieces: Iterator[bytes]) -> None:
        for each in pieces:
            if each == CUT.encode():
                self.close_connection = True
                return
            if each == b"wait":  # until the client has gone
                self.close_connection = True
                if not self.rfile.read(1):
                    self.stub.left.set()
                return
            self.wfile.write(f"{len(each):x}\r\n".encode() + each + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names


class Quiet:
    def handle_error(self, *_: object) -> None:
        """A client that leaves in the middle is what some tests are about."""


class TcpServer(Quiet, socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


class UnixServer(Quiet, socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The server, listening at `.tcp` and `.unix`; waits between retries are none."""
    monkeypatch.setattr(Retries, "_DELAYS_S", (0.0, 0.0, 0.0))
    stub = Stub()
    handler = type("BoundHandler", (Handler,), {"stub": stub})
    quick = type("TcpHandler", (handler,), {"disable_nagle_algorithm": True})
    path = str(tmp_path / "api.sock")
    servers: list[socketserver.BaseServer] = [TcpServer(("127.0.0.1", 0), quick), UnixServer(path, handler)]
    stub.tcp = f"http://127.0.0.1:{servers[0].server_address[1]}"  # type: ignore[attr-defined]
    stub.unix = f"unix:{path}"
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    yield stub
    for server in servers:
        server.shutdown()
        server.server_close()
    for thread in threads:
        thread.join()


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, stub: Stub) -> str:
    """The stub's address, once for each transport."""
    return str(getattr(stub, request.param))


@pytest.fixture
def wire() -> Any:
    """What tests build answers from."""
    return Wire


class Wire:
    cut = CUT
    end = END
    answer = Answer
    event = staticmethod(event)
    piece = staticmethod(piece)
    problem = staticmethod(problem)
    decode = staticmethod(b64decode)
