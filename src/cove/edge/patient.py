"""A JSON answer that may take longer than its client waits for a first byte.

After `limits.patience_s` the head goes out, with status 200, and then a space now and then: a JSON parser skips them.
A failure after that is the dialect's error as the body of the 200, which is all that is left to say it with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from cove.edge.errors import ClientGone
from cove.edge.exchange import Exchange, Headers
from cove.edge.heartbeat import Heartbeat
from cove.edge.interrupt import interruptible
from cove.edge.ops import JSON, Answer, ErrorWriter
from cove.model.errors import CoveError


class _Begun:
    """An exchange whose head is out: what an answer starts goes on in its place."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def start(self, status: int, headers: Headers) -> None:
        """Nothing: it was."""

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece of the body."""
        await self._exchange.write(data, more=more)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the whole body."""
        del status, headers
        await self._exchange.write(body, more=False)


class Patient:
    """What `finish` makes, which is cancelled when the client goes or the server stops. Its answer is JSON."""

    __slots__ = ("_finish",)

    def __init__(self, finish: Callable[[], Awaitable[Answer]]) -> None:
        self._finish = finish

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Wait for the answer and send it."""
        try:
            async with interruptible(exchange):
                beat = Heartbeat(exchange, ((b"content-type", JSON),), b" ", first_s=exchange.limits.patience_s)
                try:
                    answer = await self._finish()
                finally:
                    beat.stop()
        except ClientGone:
            raise
        except CoveError as error:
            if not exchange.has_started:
                raise
            await exchange.write(table.render(error, exchange.request_id), more=False)
            return
        begun = cast("Exchange", _Begun(exchange)) if exchange.has_started else exchange
        await answer.deliver(begun, table)
