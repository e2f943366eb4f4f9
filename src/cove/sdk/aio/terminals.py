"""Terminals of a sandbox, awaited: `Terminal`, attached over a WebSocket. The twin of `cove.sdk.terminals`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Self

import anyio

from cove.sdk import calls, terminal_calls
from cove.sdk.errors import Conflict, Error
from cove.sdk.jobs import ENDED
from cove.sdk.models import TerminalInfo
from cove.sdk.results import Chunk, Exit
from cove.sdk.terminal_calls import INPUT_BYTES, POLL_S, Patience, TerminalReader, is_first_refusal
from cove.sdk.transport import Lost
from cove.sdk.units import Duration, parse_seconds

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client
    from cove.sdk.aio.websocket import WebSocket


class Terminal:
    """A program on a terminal of its own. It outlives this client, and the server's restarts.

    Iterating yields its output from `cursor` on and ends with the program; after a broken connection, or a restart of
    the server, it goes on where it was. Others may be attached at the same time. Any task may write while another one
    iterates. Leaving an `async with` ends the terminal unless `keep`. Get one from `box.terminal`,
    `box.attach_terminal` or `box.terminals`.

    Attributes:
        keep: whether the terminal stays when an `async with` on it is left.
        on_connection: called with False when the connection broke and is being made again, with True when it is there.
    """

    def __init__(  # noqa: PLR0913 - one keyword for each property
        self,
        ref: str,
        terminal_id: str,
        *,
        client: Client,
        cursor: int = 0,
        info: TerminalInfo | None = None,
        keep: bool = True,
    ) -> None:
        self.keep = keep
        self.on_connection: Callable[[bool], None] | None = None
        self._id = terminal_id
        self._ref = ref
        self._client = client
        self._info = info
        self._reader = TerminalReader(cursor)
        self._patience = Patience()
        self._lock = anyio.Lock()
        self._socket: WebSocket | None = None
        self._was_attached = False
        self._left = anyio.Event()

    @property
    def id(self) -> str:
        """For `box.attach_terminal(id)`, from anywhere."""
        return self._id

    @property
    def cursor(self) -> int:
        """Bytes of output up to the last chunk yielded: `box.attach_terminal(t.id, after=t.cursor)` goes on there."""
        return self._reader.cursor

    @property
    def info(self) -> TerminalInfo:
        """The terminal as it was when the server last answered. Raises: RuntimeError (it has not yet)."""
        if self._info is None:
            raise RuntimeError("nothing is known of this terminal yet: await terminal.refresh()")
        return self._info

    @property
    def exit(self) -> Exit | None:
        """How its program ended, as far as we know; None while it runs."""
        return self._reader.exit or (calls.exit_of(self._info) if self._info else None)

    async def refresh(self) -> TerminalInfo:
        """Ask the server again.

        Raises: NotFound (forgotten), Gone (the sandbox has ended).
        """
        self._info = await self._client.call(terminal_calls.terminal(self._ref, self._id))
        return self._info

    async def write(self, data: str | bytes) -> None:
        r"""Type: text, or bytes such as `b"\x03"` for Ctrl-C. Waits while the program does not read.

        What was written just before a connection broke may be lost; it is never sent twice.

        Raises: Conflict (its program has ended), Unreachable (the connection broke: what was written may have arrived).
        """
        raw = data.encode() if isinstance(data, str) else bytes(data)
        for start in range(0, len(raw), INPUT_BYTES):
            await self._write(raw[start : start + INPUT_BYTES], is_first=start == 0)

    async def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size; its program is told (SIGWINCH). Raises: Conflict (it has ended)."""
        await self._client.call(terminal_calls.resize(self._ref, self._id, cols, rows))

    async def signal(self, signal: str | int = "TERM") -> None:
        """Send a signal, by name or number, to the program's process group. Raises: Conflict (it has ended)."""
        await self._client.call(terminal_calls.signal(self._ref, self._id, signal))

    async def wait(self, timeout: Duration | None = None) -> Exit | None:  # noqa: ASYNC109 - of one request each
        """Wait for the program's end and return it; None: `timeout` is over and it still runs. Reads no output.

        Args:
            timeout: seconds or text such as `"5m"`; None: for as long as it takes.
        """
        limit = parse_seconds(timeout, "timeout")
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            info = await self.refresh()
            left = POLL_S if deadline is None else deadline - time.monotonic()
            if self.exit is not None or left <= 0:
                return self.exit
            call = terminal_calls.output(self._ref, self._id, cursor=info.cursor, wait_s=min(left, POLL_S))
            if not (await self._client.call(call)).get("ended"):
                await anyio.sleep(min(left, 0.05))  # a program that never stops writing must not keep us busy

    async def detach(self) -> None:
        """Close the connection and stop iterating; the terminal goes on. From any task."""
        self._left.set()
        await self._close_socket()

    async def forget(self) -> None:
        """End the terminal: its program is hung up and killed, and its output dropped."""
        await self._client.call(terminal_calls.forget(self._ref, self._id))

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield the output from `cursor` on, to the program's end; iterating again goes on.

        Raises: Unreachable (the connection broke and could not be made again), Gone, SandboxGone, NotFound.
        """
        self._left = anyio.Event()
        while self._reader.exit is None and not self._left.is_set():
            socket = await self._attached()
            if socket is None:
                return
            try:
                message = await socket.receive()
            except Lost as error:
                await self._lose(socket, error)
                continue
            if socket is not self._socket:  # a writer found it broken: the new one says it again
                continue
            try:
                chunk = self._reader.read(message)
            except Error:
                await self._close_socket()
                raise
            if chunk is not None:
                self._patience.reset()
                yield chunk
        await self._close_socket()

    async def __aenter__(self) -> Self:
        """Return the terminal itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Detach and, unless `keep`, end the terminal, also when the task is cancelled."""
        with anyio.CancelScope(shield=True):
            await self.detach()
            if not self.keep:
                try:
                    await self.forget()
                except Error as error:
                    if error.code not in ENDED:
                        raise

    def __repr__(self) -> str:
        """Return id and what is known of the end."""
        return f"<Terminal {self._id} {self.exit.why if self.exit else 'running'}>"

    # ---- the connection

    async def _attached(self) -> WebSocket | None:
        """Return the connection, made (again) where it is missing; None: we were told to leave.

        Raises: Error, when there is no use in further attempts.
        """
        async with self._lock:
            while self._socket is None and not self._left.is_set():
                try:
                    call = terminal_calls.attach(self._ref, self._id, cursor=self._reader.cursor)
                    self._socket = await self._client.websocket(call)
                except Error as error:
                    if not self._was_attached and is_first_refusal(error):
                        raise
                    await self._pause(error)
                else:
                    if self._was_attached and self.on_connection:
                        self.on_connection(True)
                    self._was_attached = True
                    self._patience.attached()
            return self._socket

    async def _lose(self, socket: WebSocket, error: Lost) -> None:
        """Drop a connection that broke, and wait a little before the next one. Raises: the error, to give up."""
        async with self._lock:
            if await self._drop(socket):
                await self._pause(error)

    async def _drop(self, socket: WebSocket) -> bool:
        """Drop a connection that broke; False: that is known already, or we left it on purpose."""
        if socket is not self._socket:
            return False
        self._socket = None
        await socket.close()
        if self.on_connection:
            self.on_connection(False)
        return True

    async def _pause(self, error: Error) -> None:
        delay = self._patience.delay_s(error)
        if delay is None:
            raise error
        with anyio.move_on_after(delay):
            await self._left.wait()

    async def _close_socket(self) -> None:
        async with self._lock:
            socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def _write(self, piece: bytes, *, is_first: bool) -> None:
        from cove.sdk.websocket import NORMAL, NotSent

        while True:
            socket = await self._attached() if self._reader.exit is None else None
            if socket is None:
                raise Conflict("the terminal has ended, or we are no longer attached to it")
            try:
                await socket.send(piece)
            except NotSent as error:
                if error.close_code == NORMAL:
                    raise Conflict("the program of the terminal has ended") from error
                await self._lose(socket, error)
                if not is_first:  # the pieces before it may be lost
                    raise
            except Lost:
                async with self._lock:
                    await self._drop(socket)
                raise
            else:
                return
