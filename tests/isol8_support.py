"""A client of isol8, written after what its own client puts on the wire (docs/protocols/isol8.md, section 11)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
from websockets.exceptions import InvalidHandshake
from websockets.sync.client import connect

Event = dict[str, Any]


class ExecutionFailed(Exception):
    """What the original's client throws."""


class RemoteIsol8:
    """`execute` posts; `execute_stream` tries `/execute/ws` first, and posts for SSE after a failed first one."""

    def __init__(
        self, host: str, key: str, session: str | None = None, options: dict[str, Any] | None = None, *, ws: bool = True
    ) -> None:
        self.host = host.removesuffix("/")
        self.session = session
        self.options = options
        self.events: list[str] = []
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(headers=self._headers, timeout=120)
        self._ws: bool | None = None if ws else False

    def close(self) -> None:
        self._http.close()

    def start(self) -> None:
        answer = self._http.get(f"{self.host}/health")
        if not answer.is_success:
            raise ExecutionFailed(f"Remote server health check failed: {answer.status_code}")

    def stop(self) -> None:
        if self.session is not None:
            self._http.delete(f"{self.host}/session/{self.session}")

    def execute(self, **request: Any) -> Event:
        answer = self._http.post(f"{self.host}/execute", content=self._body(request))
        if not answer.is_success:
            raise ExecutionFailed(f"Execution failed: {answer.json().get('error') or answer.reason_phrase}")
        found: Event = answer.json()
        return found

    def execute_stream(self, **request: Any) -> Iterator[Event]:
        if self._ws is not False:
            try:
                yield from self._over_ws(request)
            except (InvalidHandshake, OSError):
                if self._ws:
                    raise
                self._ws = False
            else:
                return
        yield from self._over_sse(request)

    def put_file(self, path: str, content: str) -> None:
        body = {"sessionId": self.session, "path": path, "content": content}
        answer = self._http.post(f"{self.host}/file", json=body)
        if not answer.is_success:
            raise ExecutionFailed(f"File upload failed: {answer.reason_phrase}")

    def get_file(self, path: str) -> str:
        answer = self._http.get(f"{self.host}/file", params={"sessionId": self.session, "path": path})
        if not answer.is_success:
            raise ExecutionFailed(f"File download failed: {answer.reason_phrase}")
        found: str = answer.json()["content"]
        return found

    def _body(self, request: dict[str, Any]) -> str:
        body = {"request": request, "options": self.options, "sessionId": self.session}
        return json.dumps({name: value for name, value in body.items() if value is not None})

    def _over_ws(self, request: dict[str, Any]) -> Iterator[Event]:
        """It never sends its session."""
        url = "ws" + self.host.removeprefix("http") + "/execute/ws"
        with connect(url, additional_headers={"Authorization": self._headers["Authorization"]}, max_size=None) as ws:
            self._ws = True
            self.events.append("ws")
            message = {"type": "execute", "request": request, "options": self.options}
            ws.send(json.dumps({name: value for name, value in message.items() if value is not None}))
            for text in ws:
                event: Event = json.loads(text)
                yield event
                if event["type"] in {"exit", "error"} and event.get("phase") != "setup":
                    break

    def _over_sse(self, request: dict[str, Any]) -> Iterator[Event]:
        self.events.append("sse")
        with self._http.stream("POST", f"{self.host}/execute/stream", content=self._body(request)) as answer:
            if not answer.is_success:
                raise ExecutionFailed(f"Stream failed: {answer.reason_phrase}")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


def told(events: list[Event], kind: str = "stdout") -> str:
    """What a stream said."""
    return "".join(event["data"] for event in events if event["type"] == kind)
