"""Ports of this machine that lead to ports of a sandbox, awaited. The twin of `cove.sdk.forwarding`."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from cove.sdk.aio.forwarder import Forwarder

if TYPE_CHECKING:
    from cove.sdk.config import Target
    from cove.sdk.errors import Error


class Forward:
    """A port of this machine that leads to a port of a sandbox. Made by `box.forward`; close it, or use `async with`.

    Each connection to it is one to the sandbox, half-closed and broken where that one is. While the server restarts,
    new connections wait for it.
    """

    def __init__(self, target: Target, ref: str, port: int, *, host: str, local_port: int) -> None:
        self._work = Forwarder(target, ref, port)
        self._where = host, local_port

    @property
    def host(self) -> str:
        """The local address, such as `127.0.0.1`."""
        return self._work.host

    @property
    def port(self) -> int:
        """The local port."""
        return self._work.port

    @property
    def address(self) -> str:
        """Host and port as one text, such as `127.0.0.1:5432`."""
        return self._work.address

    @property
    def failure(self) -> Error | None:
        """Why the last connection failed, if one did."""
        return self._work.failure

    async def close(self) -> None:
        """Stop listening and end every connection."""
        await self._work.close()

    async def __aenter__(self) -> Self:
        """Return the forward itself, listening. Raises: Conflict (the local port is taken), BadRequest."""
        if not self._work.host:
            await self._work.listen(*self._where)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()
