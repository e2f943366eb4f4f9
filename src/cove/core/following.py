"""Work that takes long, as a stream of what it says. Nothing about images in particular is decided here."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from cove.model.image import ImageEvent, ImageInfo, ImageStage

_MOST_WAITING: Final = 64
"""Events that wait for a slow reader; then the work waits."""


class Voice:
    """How work says what it does."""

    def __init__(self) -> None:
        self._events: deque[ImageEvent] = deque()
        self._changed = asyncio.Event()

    async def say(self, event: ImageEvent) -> None:
        """Say it; waits while the reader is far behind."""
        while len(self._events) >= _MOST_WAITING:
            self._changed.clear()
            await self._changed.wait()
        self._events.append(event)
        self._changed.set()

    def mark(self, stage: ImageStage, done: int, total: int) -> None:
        """Say how far it is, instead of what was said of that last and not read yet. Never waits."""
        event = ImageEvent(stage=stage, done_bytes=min(done, total) if total else done, total_bytes=total)
        if self._events and self._events[-1].stage is stage and not self._events[-1].text:
            self._events[-1] = event
        elif len(self._events) < _MOST_WAITING:
            self._events.append(event)
        self._changed.set()

    def take(self) -> ImageEvent | None:
        """What was said first and not read yet."""
        event = self._events.popleft() if self._events else None
        self._changed.set()
        return event

    async def wait_changed(self) -> None:
        """Return when something was said or read."""
        self._changed.clear()
        await self._changed.wait()

    def end(self) -> None:
        """Wake the reader: the work is over."""
        self._changed.set()


async def following(work: Callable[[Voice], Awaitable[ImageInfo]]) -> AsyncGenerator[ImageEvent]:
    """What `work` says, and last `done` with the image that it made.

    Closing cancels the work and waits for its end. Raises: what the work raises.
    """
    voice = Voice()
    task = asyncio.ensure_future(work(voice))
    task.add_done_callback(lambda _: voice.end())
    try:
        while True:
            event = voice.take()
            if event is not None:
                yield event
            elif task.done():
                break
            else:
                await voice.wait_changed()
        image = await task
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
    yield ImageEvent(stage=ImageStage.DONE, done_bytes=image.size_bytes, image=image)
