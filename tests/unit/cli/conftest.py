"""A server of the mind: the real SDK over a transport that answers from a list of sandboxes."""

# ruff: noqa: ARG002 - the stub has the signatures of the real ones
from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from cove.cli.main import main
from cove.sdk.errors import Unreachable

API = "/api/v1"


def box(name: str, number: int = 1, **facts: Any) -> dict[str, Any]:
    """A sandbox as the API shows it."""
    return {
        "id": f"sb_{number:016x}",
        "name": name,
        "project": "default",
        "state": "running",
        "image": "base",
        "driver": "runc",
        "isolation": {"driver": "runc", "user_namespace": True},
        "cpus": 1.0,
        "memory_mib": 512,
        "created_by": "local",
        "created_at": "2026-01-01T00:00:00.000Z",
        "last_active_at": "2026-01-01T00:00:00.000Z",
        "create_ms": 2.0,
        "usage": {"cpu_ms": 1500, "memory_bytes": 41 << 20},
        **facts,
    }


def events(*pairs: tuple[str, dict[str, Any]]) -> bytes:
    """An event stream as the server sends it."""
    return b"".join(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in pairs)


def output(stream: str, data: bytes) -> tuple[str, dict[str, Any]]:
    return stream, {"data": b64encode(data).decode()}


def ended(code: int = 0, why: str = "exited", **facts: Any) -> tuple[str, dict[str, Any]]:
    return "exit", {"exit_code": code, "signal": None, "why": why, "duration_ms": 1.0, "cpu_ms": 1.0, **facts}


class Answer:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.headers: dict[str, str] = {}
        self._body = body

    def chunks(self) -> Iterator[bytes]:
        yield self._body

    def close(self) -> None: ...


@dataclass
class StubServer:
    """`seen` are the requests; `stream` is the next commands' event stream; `problem` answers everything."""

    boxes: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, str, Any]] = field(default_factory=list)
    stream: bytes = events(ended())
    problem: dict[str, Any] | None = None
    is_down: bool = False
    extra: dict[tuple[str, str], Any] = field(default_factory=dict)

    box = staticmethod(box)
    events = staticmethod(events)
    output = staticmethod(output)
    ended = staticmethod(ended)

    def send(self, method: str, target: str, head: Any, body: Any, silence_s: float | None) -> Answer:
        if self.is_down:
            raise Unreachable("no server on this machine")
        url = urlsplit(target)
        sent = json.loads(body) if isinstance(body, bytes) and body.startswith(b"{") else body
        self.seen.append((method, unquote(url.path), sent))
        if self.problem is not None:
            return Answer(self.problem["status"], json.dumps(self.problem).encode())
        done = self.answer(method, unquote(url.path).removeprefix(API), parse_qs(url.query), sent)
        if isinstance(done, bytes):
            return Answer(200, done)
        if "code" in done and "status" in done:
            return Answer(done["status"], json.dumps(done).encode())
        return Answer(200, json.dumps(done).encode())

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        if (method, path) in self.extra:
            return self.extra[method, path]
        match [method, *path.strip("/").split("/")]:
            case ["GET", "sandboxes"]:
                return {"sandboxes": self.boxes, "cursor": None}
            case ["POST", "sandboxes"]:
                self.boxes.insert(0, box(body.get("name") or "new-box", 99))
                return self.boxes[0]
            case [_, "sandboxes", ref, *rest]:
                found = [one for one in self.boxes if ref in {one["id"], one["name"]}]
                if not found:
                    return {"status": 404, "code": "not-found", "detail": f"no sandbox {ref}"}
                return self._on_box(method, found[0], rest)
            case _:
                raise AssertionError((method, path))

    def _on_box(self, method: str, one: dict[str, Any], rest: list[str]) -> Any:
        match [method, *rest]:
            case ["GET"]:
                return one
            case ["DELETE"]:
                self.boxes.remove(one)
                return one | {"state": "terminated"}
            case ["POST", "pause"]:
                return one | {"state": "paused"}
            case ["POST", "resume"]:
                return one
            case ["POST", "exec", "stream"]:
                return self.stream
            case _:
                raise AssertionError((method, rest))

    def close(self) -> None: ...


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The lines of stdout as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The only line of stderr as JSON."""
        (line,) = self.err.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found


Cove = Callable[..., Ran]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubServer:
    for name in ("COVE_URL", "COVE_API_KEY", "COVE_DATA_DIR", "NO_COLOR", "COVE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    server = StubServer([box("brave-otter", 1), box("calm-heron", 2)])
    monkeypatch.setattr("cove.sdk.client._transport", lambda _target: server)
    return server


@pytest.fixture
def cove(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> Cove:
    def run(*argv: str) -> Ran:
        capsys.readouterr()
        code = main(argv)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run
