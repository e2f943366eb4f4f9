"""A TCP connection to a port inside the sandbox, over the agent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from cove.agentlink.channel import Channel, Refusal
from cove.agentlink.connection import Connection
from cove.agentlink.frames import Kind
from cove.agentlink.refusals import dial_error
from cove.agentlink.wire import EventReply

_CONNECT_TIMEOUT_S: Final = 7.0
"""The agent itself gives up after 5 s."""


class DialStream:
    """Both directions of a connection into the sandbox. Made by `dial`; one reader and one writer at a time."""

    def __init__(self, channel: Channel, port: int) -> None:
        self._channel = channel
        self._port = port
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes from the sandbox; the iteration ends at its half-close. No time limit. Raises: SandboxGone."""
        if self._ended:
            raise StopAsyncIteration
        try:
            item = await self._channel.next_item(None)
        except Refusal as refusal:
            raise dial_error(refusal, self._port) from refusal
        if item is None or item[0] is Kind.EOF:
            self._ended = True
            raise StopAsyncIteration
        if item[0] is not Kind.DATA:
            raise self._channel.breach(f"{item[0].name} from a dialled port")
        return bytes(item[1])

    async def wait_closed(self) -> None:
        """After the iteration's end: return when the other direction is closed too. No time limit.

        Raises: Conflict (the connection broke), SandboxGone, AgentViolation.
        """
        try:
            if await self._channel.next_item(None) is not None:
                raise self._channel.breach("output after the end of a dialled port's")
        except Refusal as refusal:
            raise dial_error(refusal, self._port) from refusal

    async def write(self, data: bytes) -> None:
        """Send; waits while the peer does not read. Bytes for a closed peer are dropped. Raises: SandboxGone."""
        await self._channel.send(data, timeout_s=None)

    async def write_eof(self) -> None:
        """Half-close towards the sandbox."""
        self._channel.send_eof()


@asynccontextmanager
async def open_dial(connection: Connection, port: int) -> AsyncGenerator[DialStream, None]:
    """Connect to `port` on 127.0.0.1, or ::1 where nothing listens there. Leaving the context closes both directions.

    Raises: Conflict (nothing listens), BadRequest, AgentTimeout, SandboxGone, AgentViolation.
    """
    channel = await _connected(connection, port)
    try:
        yield DialStream(channel, port)
    finally:
        channel.cancel()


async def _connected(connection: Connection, port: int) -> Channel:
    try:
        return await _connect(connection, port, "127.0.0.1")
    except Refusal as refusal:
        if refusal.kind != "refused":
            raise dial_error(refusal, port) from refusal
    try:
        return await _connect(connection, port, "::1")
    except Refusal as refusal:
        # Also a sandbox without IPv6: what counts is that nothing listens on the first address either.
        raise dial_error(Refusal("refused", refusal.text), port) from refusal


async def _connect(connection: Connection, port: int, host: str) -> Channel:
    channel = connection.open({"op": "dial", "port": port, "host": host}, takes_output=True)
    try:
        first = await channel.next_item(_CONNECT_TIMEOUT_S)
        if first is None or first[0] is not Kind.EVENT or channel.decode(first[1], EventReply).event != "connected":
            raise channel.breach("a dial that does not begin with `connected`")
    except BaseException:
        channel.cancel()
        raise
    return channel
