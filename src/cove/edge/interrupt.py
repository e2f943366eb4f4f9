"""Ending a request that takes long: its client went away, or the server stops. Nothing else cancels a request.

The two are told apart here once, so that a handler sees a plain cancellation and its caller a typed failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from cove.edge.errors import ClientGone, ServerStopping
from cove.edge.exchange import Exchange


@asynccontextmanager
async def interruptible(exchange: Exchange, gone: Coroutine[Any, Any, None] | None = None) -> AsyncGenerator[None]:
    """Run the body; cancel it when the client goes or the server stops.

    `gone` returns when the client has gone, where its connection was taken over or its body is still to be read. What
    it raises ends the body of this context too.

    Raises: ClientGone, ServerStopping, and what `gone` raises.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in one
    cause: list[Exception] = []

    def interrupt(error: Exception) -> None:
        if not cause:
            cause.append(error)
            task.cancel()

    def watched(done: asyncio.Future[None]) -> None:
        if not done.cancelled():
            error = done.exception()
            interrupt(error if isinstance(error, Exception) else ClientGone("the client went away"))

    watcher = asyncio.ensure_future(gone if gone is not None else exchange.wait_gone())
    watcher.add_done_callback(watched)
    async with exchange.stopping.signal() as stop:
        stop.add_done_callback(
            lambda done: (
                None
                if done.cancelled()
                else interrupt(ServerStopping("the server is stopping; the sandbox goes on", retry_after_s=2))
            )
        )
        try:
            yield
        except asyncio.CancelledError:
            if not cause:
                raise
            task.uncancel()
            raise cause[0] from None
        finally:
            watcher.cancel()
            stop.cancel()
