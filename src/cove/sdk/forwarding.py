"""Ports of this machine that lead to ports of a sandbox. Their awaited twin is `aio/forwarding.py`.

The work runs on an event loop in a thread of its own, so that connections go on while the program does something else.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cove.sdk.aio.forwarder import Forwarder

if TYPE_CHECKING:
    from cove.sdk.config import Target
    from cove.sdk.errors import Error


class Forward:
    """A port of this machine that leads to a port of a sandbox. Made by `box.forward`; close it, or use a `with`.

    Each connection to it is one to the sandbox, half-closed and broken where that one is. While the server restarts,
    new connections wait for it.
    """

    def __init__(self, target: Target, ref: str, port: int, *, host: str, local_port: int) -> None:
        self._work = Forwarder(target, ref, port)
        self._listening: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(host, local_port)), name=f"cove-forward-{port}", daemon=True
        )
        self._thread.start()
        self._listening.result()

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

    def close(self) -> None:
        """Stop listening and end every connection. Returns when that is done."""
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # closed already
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> Self:
        """Return the forward itself."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    async def _run(self, host: str, local_port: int) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._work.listen(host, local_port)
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            self._listening.set_exception(error)
            return
        self._listening.set_result(None)
        await self._stop.wait()
        await self._work.close()
