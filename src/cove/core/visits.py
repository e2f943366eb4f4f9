"""What sandboxes whose policy says `record` asked of the network by name: the last of it, in memory, bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from cove.model.network import Visit
from cove.model.sandbox import Sandbox

KEPT: Final = 500
"""Visits kept per sandbox, of 2 KiB at most: the oldest go first."""


class Visits:
    """The visits of live sandboxes since the server's start. `find`: a sandbox that is there."""

    def __init__(self, find: Callable[[str], Sandbox | None]) -> None:
        self._find = find
        self._by_sandbox: dict[str, deque[Visit]] = {}

    def hear(self, visit: Visit) -> None:
        """Take one. One of a sandbox that has ended is dropped."""
        if self._find(visit.sandbox) is not None:
            self._by_sandbox.setdefault(visit.sandbox, deque(maxlen=KEPT)).append(visit)

    def recent(self, sandbox_id: str) -> list[Visit]:
        """The last ones, oldest first."""
        return list(self._by_sandbox.get(sandbox_id, ()))

    def forget(self, sandbox_id: str) -> None:
        """It has ended."""
        self._by_sandbox.pop(sandbox_id, None)
