"""One call on a connection: its result, its flow control in both directions, its queue of output.

Made only by `Connection.open`. Not thread-safe: everything happens on the loop. Memory is bounded by the credit we give
(1 MiB) plus `_MAX_EVENTS` events of 256 KiB in all; see `_enqueue` for what keeps tiny frames from costing more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from cove.agentlink.frames import INITIAL_CREDIT_BYTES, MAX_PAYLOAD_BYTES, Kind
from cove.agentlink.wire import MAX_TEXT, FailReply, decode, violation
from cove.model.errors import AgentTimeout, AgentViolation, CoveError, SandboxGone

if TYPE_CHECKING:
    from cove.agentlink.connection import Connection

_CREDIT_PIECE: Final = INITIAL_CREDIT_BYTES // 4
_SEND_PIECE: Final = 256 * 1024
_MAX_EVENTS: Final = 4096
_MAX_EVENT_BYTES: Final = 256 * 1024
_MERGE_BEYOND: Final = 1024

Sink = Callable[[Kind, bytes], None]
Item = tuple[Kind, bytes | bytearray]
T = TypeVar("T")


class Refusal(Exception):
    """The agent answered FAIL. `text` is the sandbox's: shown to its owner as text, never interpreted or logged."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.text = text


class Channel:
    """An open call. `sink` takes output as it arrives (a buffered exec); without it, output queues for `next_item`."""

    def __init__(self, connection: Connection, number: int, *, takes_output: bool, sink: Sink | None) -> None:
        self._connection = connection
        self._number = number
        self._takes_output = takes_output
        self._sink = sink
        self._items: deque[Item] = deque()
        self._events = 0
        self._event_bytes = 0
        self._allowed = INITIAL_CREDIT_BYTES  # what the agent may still send
        self._unspent = 0  # consumed, not yet given back
        self._sendable = INITIAL_CREDIT_BYTES  # what we may still send
        self._has_ended = False
        self._feed: memoryview | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._result: bytes | None = None
        self._error: Exception | None = None
        self.is_over = False
        self.is_canceled = False

    # Called by the connection.

    def on_output(self, kind: Kind, payload: bytes) -> None:
        """DATA, DATA_ERR or EOF. Raises: AgentViolation."""
        if self.is_canceled:
            return
        if not self._takes_output:
            raise violation(f"{kind.name} on a call that has no output")
        # Frames that cost no credit must not be repeatable: each would be an object here and a turn of the loop.
        if self._has_ended:
            raise violation(f"{kind.name} after EOF")
        if kind is Kind.EOF:
            self._has_ended = True
        elif not payload:
            raise violation(f"an empty {kind.name}")
        self._allowed -= len(payload)
        if self._allowed < 0:
            raise violation("more output than it had credit for")
        if self._sink is not None:
            self._sink(kind, payload)
            self.consumed(len(payload))
        else:
            self._enqueue(kind, payload)

    def on_event(self, payload: bytes) -> None:
        """EVENT. Raises: AgentViolation when they pile up: events need no credit, so number and size are limited.

        An honest agent may send many before one is read: a gap before each piece of output that a slow reader missed.
        """
        if self.is_canceled:
            return
        self._events += 1
        self._event_bytes += len(payload)
        if self._events > _MAX_EVENTS or self._event_bytes > _MAX_EVENT_BYTES:
            raise violation("too many events")
        if self._sink is None:
            self._items.append((Kind.EVENT, payload))
            self._wake()

    def on_credit(self, count: int) -> None:
        """CREDIT: room for what it has taken in, and never more than there was. Raises: AgentViolation."""
        self._sendable += count
        if count == 0 or self._sendable > INITIAL_CREDIT_BYTES:
            raise violation("credit for nothing")
        self._push_feed()
        self._wake()

    def on_end(self, kind: Kind, payload: bytes) -> None:
        """RESULT or FAIL. Raises: AgentViolation for a FAIL that is none."""
        self.is_over = True
        self._feed = None
        if kind is Kind.RESULT:
            self._result = payload
        elif not self.is_canceled:
            reply = decode(payload, FailReply)
            self._error = Refusal(reply.kind, reply.text[:MAX_TEXT])
        self._wake()

    def on_lost(self, error: CoveError) -> None:
        """The connection ended before the call did."""
        self.is_over = True
        self._feed = None
        self._error = error
        self._wake()

    def on_writable(self) -> None:
        """The transport takes bytes again."""
        self._push_feed()

    # Called by the operations.

    async def result(self, timeout_s: float | None) -> bytes:
        """The payload of RESULT. A timeout or a cancellation of the caller cancels the call in the sandbox.

        Raises: Refusal, AgentTimeout, SandboxGone, AgentViolation.
        """
        try:
            async with self._connection.limits.of(timeout_s):
                while not self._is_done:
                    await self._wait_changed()
        except TimeoutError as error:
            self.cancel()
            raise AgentTimeout("the sandbox did not answer in time") from error
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._outcome()

    async def next_item(self, timeout_s: float | None, *, held: bool = False) -> Item | None:
        """The next output, EOF or EVENT; None after RESULT. Its bytes count as consumed, or `held`: see `passed_on`.

        Cancelling loses nothing. Raises: as `result`; output that arrived before a FAIL or a loss comes first.
        """
        if not self._items:
            try:
                async with self._connection.limits.of(timeout_s):
                    while not self._items and not self._is_done:
                        await self._wait_changed()
            except TimeoutError as error:
                self.cancel()
                raise AgentTimeout("the sandbox did not answer in time") from error
        if self._items:
            item = self._items.popleft()
            if item[0] is Kind.EVENT:
                self._events -= 1
                self._event_bytes -= len(item[1])
            elif not held:
                self.consumed(len(item[1]))
            return item
        self._outcome()
        return None

    async def reply(self, kind: type[T], timeout_s: float | None) -> T:
        """`result` as a `kind`. Raises: as `result`."""
        return self.decode(await self.result(timeout_s), kind)

    def final(self, kind: type[T]) -> T:
        """RESULT as a `kind`, after `next_item` gave None. Raises: AgentViolation."""
        return self.decode(self._outcome(), kind)

    def decode(self, payload: bytes | bytearray, kind: type[T]) -> T:
        """`payload` as a `kind`; anything else closes the connection. Raises: AgentViolation."""
        try:
            return decode(payload, kind)
        except AgentViolation as error:
            self._connection.abort(error)
            raise

    def breach(self, what: str) -> AgentViolation:
        """Close the connection over a breach that only an operation can see. To be raised by the caller."""
        error = violation(what)
        self._connection.abort(error)
        return error

    @property
    def is_quiet(self) -> bool:
        """Whether the call goes on and has sent nothing that nobody took."""
        return not self._items and not self.is_over and not self.is_canceled

    def cancel(self) -> None:
        """End the call if it has not ended: what it holds in the sandbox is freed, what it still sends is dropped.

        Who still waits for it is told now: the agent may never say that it has ended.
        """
        if not self.is_over and not self.is_canceled:
            self.is_canceled = True
            self._items.clear()
            self._feed = None
            self._connection.send(Kind.CANCEL, self._number)
            self._wake()

    def consumed(self, count: int) -> None:
        """Give the agent credit for consumed bytes, in large pieces."""
        self._unspent += count
        if self._unspent >= _CREDIT_PIECE:
            self._give_credit()

    def passed_on(self, count: int) -> None:
        """`consumed` for held bytes; all credit goes back as soon as nothing is queued.

        The agent of a terminal keeps what it has no credit for, in case this server dies with it.
        """
        self.consumed(count)
        if not self._items and self._unspent:
            self._give_credit()

    def feed(self, data: bytes) -> None:
        """Send `data` and EOF in the background, as fast as credit and transport allow; ends with the call."""
        self._feed = memoryview(data)
        self._push_feed()

    async def send(self, data: bytes, *, timeout_s: float | None) -> bool:
        """Send `data`, waiting for credit and for the transport. False: the call has ended, nobody wants more.

        Cancelling may leave a prefix sent. Raises: AgentTimeout when it made no progress for `timeout_s`.
        """
        rest = memoryview(data)
        while rest and not self._is_done:
            if self._sendable <= 0 or not self._connection.is_writable:
                try:
                    async with self._connection.limits.of(timeout_s):
                        await self._wait_sendable()
                except TimeoutError as error:
                    self.cancel()
                    raise AgentTimeout("the sandbox takes no more data") from error
                continue
            rest = self._send_piece(rest)
        return not self._is_done

    async def send_all(self, chunks: AsyncIterable[bytes], *, timeout_s: float | None) -> None:
        """`send` each chunk, then EOF; stops early when the call ends. A failing source cancels the call."""
        try:
            async for chunk in chunks:
                if not await self.send(chunk, timeout_s=timeout_s):
                    return
        except BaseException:
            self.cancel()
            raise
        self.send_eof()

    def send_eof(self) -> None:
        """No more data from us."""
        if not self.is_over and not self.is_canceled:
            self._connection.send(Kind.EOF, self._number)

    @property
    def _is_done(self) -> bool:
        return self.is_over or self.is_canceled

    def _give_credit(self) -> None:
        if not self.is_over and not self.is_canceled:
            self._allowed += self._unspent
            self._connection.send(Kind.CREDIT, self._number, self._unspent.to_bytes(4, "big"))
            self._unspent = 0

    def _outcome(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise SandboxGone("the call was canceled")
        return self._result

    def _enqueue(self, kind: Kind, payload: bytes) -> None:
        # A byte of output may come in a frame of its own, and an object per byte would be 60 times what the credit
        # allows. So beyond some entries, chunks of one stream are merged, if need be past one of the other stream:
        # their order is only the order in which the agent happened to read two pipes.
        if len(self._items) >= _MERGE_BEYOND and kind is not Kind.EOF:
            for back in (-1, -2):
                earlier, data = self._items[back]
                if earlier is kind:
                    if not isinstance(data, bytearray):
                        data = bytearray(data)
                        self._items[back] = (kind, data)
                    data += payload
                    return
        self._items.append((kind, payload))
        self._wake()

    def _push_feed(self) -> None:
        while self._feed is not None and self._connection.is_writable:
            if not self._feed:
                self._feed = None
                self.send_eof()
            elif self._sendable > 0:
                self._feed = self._send_piece(self._feed)
            else:
                return

    def _send_piece(self, rest: memoryview) -> memoryview:
        count = min(len(rest), self._sendable, _SEND_PIECE, MAX_PAYLOAD_BYTES)
        self._sendable -= count
        self._connection.send(Kind.DATA, self._number, rest[:count])
        return rest[count:]

    async def _wait_sendable(self) -> None:
        if self._sendable <= 0:
            await self._wait_changed()
        else:
            await self._connection.wait_writable()

    async def _wait_changed(self) -> None:
        # One future per waiter: a dial has two, and canceling one must not wake the other.
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
