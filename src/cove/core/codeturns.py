"""Whose turn it is in a context: one run at a time, the others in the order in which they came. No I/O."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from cove.model.errors import CapacityExceeded

WAITING: Final = 64
"""Runs that wait in one context. As many as commands in a shell."""


class Turns:
    """The queue of one context."""

    def __init__(self) -> None:
        self._queue: deque[Turn] = deque()

    @property
    def is_free(self) -> bool:
        """Whether nobody has the turn."""
        return not self._queue

    def join(self) -> Turn:
        """A place in the queue, which may be its head. Whoever takes it leaves. Raises: CapacityExceeded."""
        if len(self._queue) > WAITING:
            raise CapacityExceeded(f"{WAITING} runs wait in this context", retry_after_s=1)
        turn = Turn(self)
        self._queue.append(turn)
        self.advance()
        return turn

    def remove(self, turn: Turn) -> None:
        """It has left."""
        if turn in self._queue:
            self._queue.remove(turn)
            self.advance()

    def advance(self) -> None:
        """Tell the head that its turn has come."""
        if self._queue:
            self._queue[0].come()


class Turn:
    """A place in the queue. Made by `Turns.join`."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._has_come: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_come(self) -> bool:
        """Whether it is at the head."""
        return self._has_come.done()

    async def wait(self) -> None:
        """Until it is at the head. Cancelling keeps the place."""
        await asyncio.shield(self._has_come)

    def come(self) -> None:
        """It is at the head."""
        if not self._has_come.done():
            self._has_come.set_result(None)

    def leave(self) -> None:
        """Let the next one have it. Idempotent."""
        self._turns.remove(self)
