"""Input that was given with a background command, on its way while nobody waits for it.

A command may read its input late or never, so each feed is a task of its own, which ends when the command has read all,
or when command or sandbox are gone. Number and size of all feeds are bounded, because there is no other limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from cove.engine.driver import Box
from cove.model.errors import CapacityExceeded, CoveError

MAX_FEEDS: Final = 1024
MAX_FEED_BYTES: Final = 64 * 1024 * 1024

log = logging.getLogger(__name__)


class Feeds:
    """All feeds of the server."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self.count = 0
        self.size_bytes = 0

    def check_room(self, data: bytes | None) -> None:
        """Raises: CapacityExceeded when so much more input may not wait."""
        if data is not None and (self.count >= MAX_FEEDS or self.size_bytes + len(data) > MAX_FEED_BYTES):
            raise CapacityExceeded("too much input of background commands waits to be read", retry_after_s=5)

    def feed(self, box: Box, command_id: str, data: bytes, *, close: bool) -> None:
        """Give `data` to the command, from now on in the background; `close`: and end its input."""
        self.count += 1
        self.size_bytes += len(data)
        self._tasks.create_task(self._feed(box, command_id, data, close=close), name=f"stdin of {command_id}")

    async def _feed(self, box: Box, command_id: str, data: bytes, *, close: bool) -> None:
        """A task of its own, so it reports to the log only."""
        try:
            await box.agent.stdin(command_id, _once(data), close=close)
        except CoveError as error:
            log.info("stdin of command %s was not all read: %s", command_id, error)
        except Exception:  # the task's outermost frame: a bug here must not end the server
            log.exception("stdin of command %s failed", command_id)
        finally:
            self.count -= 1
            self.size_bytes -= len(data)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
