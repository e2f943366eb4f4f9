"""TCP connections to ports inside the sandbox, over the agent, and what listens there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final

from msgspec import Meta, Struct

from cove.agentlink.channel import Channel, Refusal
from cove.agentlink.connection import Connection
from cove.agentlink.frames import Kind
from cove.agentlink.refusals import dial_error
from cove.agentlink.wire import EventReply

_CONNECT_TIMEOUT_S: Final = 7.0
"""The agent itself gives up after 5 s."""


class ListeningPort(Struct, frozen=True):
    """A port inside on which something listens, and the address it listens on. The sandbox's own word."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    address: Annotated[str, Meta(max_length=64)] = ""


class PortsReply(Struct, frozen=True):
    """Answer of `ports`."""

    ports: Annotated[tuple[ListeningPort, ...], Meta(max_length=1024)] = ()
    more: bool = False


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

    @property
    def is_quiet(self) -> bool:
        """Whether it is open and nothing has come that nobody read: as one that rests between two requests must be."""
        return not self._ended and self._channel.is_quiet

    def close(self) -> None:
        """Close both directions. Idempotent."""
        self._channel.cancel()


@asynccontextmanager
async def open_dial(connection: Connection, port: int) -> AsyncGenerator[DialStream, None]:
    """Connect to `port` on 127.0.0.1, or ::1 where nothing listens there. Leaving the context closes both directions.

    Raises: Conflict (nothing listens), BadRequest, AgentTimeout, SandboxGone, AgentViolation.
    """
    stream = await dial(connection, port)
    try:
        yield stream
    finally:
        stream.close()


async def dial(connection: Connection, port: int) -> DialStream:
    """As `open_dial`, for a caller that closes the stream itself."""
    return DialStream(await _connected(connection, port), port)


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
