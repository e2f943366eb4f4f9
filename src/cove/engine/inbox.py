"""A supervisor's inbox: actions posted by requests, timers and deaths, done one after the other by one task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from cove.model.errors import CapacityExceeded, CoveError, EngineFailure
from cove.model.origin import Origin, current_origin, working_for

log = logging.getLogger(__name__)

REQUEST_LIMIT: Final = 64
"""Requests that may wait for one sandbox; one more is refused. Commands and files do not pass here, only changes."""

Action = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Letter:
    action: Action
    answer: asyncio.Future[None] | None
    origin: Origin


class Inbox:
    """Bounded by REQUEST_LIMIT and the few that the sandbox's own timers, watch and owner post."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._letters: asyncio.Queue[_Letter] = asyncio.Queue()

    async def ask(self, action: Action) -> None:
        """Post an action and wait until it is done. Cancelling stops the waiting, never the action.

        Raises: CapacityExceeded when too many wait; what the action raises.
        """
        if self._letters.qsize() >= REQUEST_LIMIT:
            raise CapacityExceeded("too many requests wait for this sandbox", retry_after_s=1)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(was_seen)
        self._letters.put_nowait(_Letter(action, answer, current_origin()))
        await asyncio.shield(answer)

    def post(self, action: Action) -> None:
        """Post an action whose outcome only the log hears of."""
        self._letters.put_nowait(_Letter(action, None, Origin()))

    async def do_next(self) -> None:
        """Wait for one action and do it. Only the supervisor's task calls this."""
        letter = await self._letters.get()
        error: CoveError | None = EngineFailure("the server is stopping")  # what a cancelled action leaves behind
        try:
            with working_for(letter.origin):
                await letter.action()
            error = None
        except CoveError as failure:
            error = failure
        except Exception as failure:  # the outermost frame of one action: a bug in it must not end the sandbox
            log.exception("sandbox %s: an action failed", self._owner)
            error = EngineFailure("Cove failed", internal=repr(failure))
        finally:
            self._answer(letter, error)

    def _answer(self, letter: _Letter, error: CoveError | None) -> None:
        if letter.answer is None or letter.answer.done():
            if error is not None:
                log.warning("sandbox %s: %s %s", self._owner, error, error.internal)
        elif error is not None:
            letter.answer.set_exception(error)
        else:
            letter.answer.set_result(None)

    def refuse_all(self, error: CoveError) -> None:
        """Answer everybody who still waits."""
        while not self._letters.empty():
            answer = self._letters.get_nowait().answer
            if answer is not None and not answer.done():
                answer.set_exception(error)


def was_seen(future: asyncio.Future[None]) -> None:
    """Mark a failure as seen: its caller may have gone away."""
    if not future.cancelled():
        future.exception()
