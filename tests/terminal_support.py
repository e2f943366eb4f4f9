"""A client at a terminal, for tests of the native API's WebSocket."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any, Self

import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import ClientConnection, connect


class Viewer:
    """Attached while the context is open: what it has seen, how far it is, and the last frame."""

    def __init__(self, server: Any, at: str, cursor: int | None = None, **options: Any) -> None:
        url = f"{server.url}/api/v1{at}/attach".replace("http", "ws", 1)
        self._url = url if cursor is None else f"{url}?cursor={cursor}"
        self._options = {
            "additional_headers": {"Authorization": f"Bearer {server.key}"},
            "compression": None,
            "max_size": None,
            # A queue that is full when we close holds the library's own closing handshake up, until its 10 s are over.
            "max_queue": None,
            **options,
        }
        self._stack = ExitStack()
        self.seen, self.lost = bytearray(), 0
        self.last: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        self.peer: ClientConnection = self._stack.enter_context(connect(self._url, **self._options))
        self.first = json.loads(self.peer.recv(timeout=60))
        self.cursor: int = self.first.get("cursor", 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, timeout: float = 60) -> None:
        """One message."""
        message = self.peer.recv(timeout=timeout)
        if isinstance(message, bytes):
            self.seen += message
            self.cursor += len(message)
        elif (frame := json.loads(message))["type"] == "gap":
            self.lost += frame["lost"]
            self.cursor += frame["lost"]
        else:
            self.last = frame

    def until(self, want: bytes) -> Self:
        """Until it has seen that."""
        looked = 0
        while self.seen.find(want, max(looked - len(want), 0)) < 0:
            looked = len(self.seen)
            self.take()
        return self

    def ended(self) -> dict[str, Any]:
        """Until the terminal's end, which is told before the socket is closed."""
        while self.last is None:
            self.take()
        with pytest.raises(ConnectionClosedOK):
            self.peer.recv(timeout=60)
        return self.last

    def say(self, **frame: object) -> None:
        """Send a text message."""
        self.peer.send(json.dumps(frame))
