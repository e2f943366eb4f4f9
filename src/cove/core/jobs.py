"""Work that a request asks for and does not own: it goes on when its caller goes away, until nothing is half done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TypeVar

from cove.model.errors import Conflict, CoveError, EngineFailure

log = logging.getLogger(__name__)

T = TypeVar("T")


class Jobs:
    """Starts it, in the tasks of the core."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def start(self, work: Coroutine[None, None, T]) -> asyncio.Future[T]:
        """Begin it; await the outcome under `asyncio.shield`. It may have failed unseen."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(_was_seen)
        self._tasks.create_task(_run(work, outcome))
        return outcome


async def _run(work: Coroutine[None, None, T], outcome: asyncio.Future[T]) -> None:
    """The task's outermost frame: a failure is the asker's, and ends nothing else."""
    try:
        outcome.set_result(await work)
    except CoveError as error:
        outcome.set_exception(error)
    except Exception as error:
        log.exception("a job failed")
        outcome.set_exception(EngineFailure("Cove failed", internal=repr(error)))
    finally:
        if not outcome.done():
            outcome.set_exception(Conflict("the server is stopping"))


def _was_seen(outcome: asyncio.Future[T]) -> None:
    """Whoever asked may be gone; a failure nobody looks at is then no news."""
    if not outcome.cancelled():
        outcome.exception()
