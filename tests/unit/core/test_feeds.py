# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cove.core import feeds
from cove.core.feeds import Feeds
from cove.model.errors import CapacityExceeded, SandboxGone


class Agent:
    """Reads input when it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.error: Exception | None = None
        self.took: list[bytes] = []

    async def stdin(self, command_id: str, chunks: Any, *, close: bool) -> int:
        del command_id, close
        await self.reads.wait()
        if self.error:
            raise self.error
        self.took += [one async for one in chunks]
        return len(self.took)


async def test_input_that_nobody_reads_is_bounded_and_freed(monkeypatch) -> None:
    monkeypatch.setattr(feeds, "MAX_FEED_BYTES", 100)
    monkeypatch.setattr(feeds, "MAX_FEEDS", 2)
    agent = Agent()
    box: Any = SimpleNamespace(agent=agent)
    async with asyncio.TaskGroup() as tasks:
        waiting = Feeds(tasks)
        waiting.check_room(bytes(100))
        waiting.feed(box, "c1", bytes(80), close=True)
        waiting.check_room(None)  # who brings no input is not concerned
        waiting.check_room(bytes(20))
        with pytest.raises(CapacityExceeded) as refused:
            waiting.check_room(bytes(21))
        assert refused.value.retry_after_s
        waiting.feed(box, "c2", b"", close=True)
        with pytest.raises(CapacityExceeded):
            waiting.check_room(b"")
        agent.reads.set()
    assert (waiting.count, waiting.size_bytes) == (0, 0)
    assert agent.took == [bytes(80), b""]


@pytest.mark.parametrize("error", [SandboxGone("the sandbox is gone"), RuntimeError("a bug")])
async def test_a_feed_that_fails_is_freed_and_ends_nothing_else(error) -> None:
    agent = Agent()
    agent.error = error
    agent.reads.set()
    box: Any = SimpleNamespace(agent=agent)
    async with asyncio.TaskGroup() as tasks:
        waiting = Feeds(tasks)
        waiting.feed(box, "c1", b"x", close=True)
    assert (waiting.count, waiting.size_bytes) == (0, 0)
