"""Terminals of a sandbox, synchronous: `Terminal`, attached over a WebSocket. The twin is `aio/terminals.py`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

from cove.sdk import calls, terminal_calls
from cove.sdk.errors import Conflict, Error
from cove.sdk.jobs import ENDED
from cove.sdk.terminal_calls import INPUT_BYTES, POLL_S, Patience, TerminalReader, is_first_refusal
from cove.sdk.transport import Lost
from cove.sdk.units import Duration, parse_seconds

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.models import TerminalInfo
    from cove.sdk.results import Chunk, Exit
    from cove.sdk.websocket import WebSocket


class Terminal:
    """A program on a terminal of its own. It outlives this client, and the server's restarts.

    Iterating yields its output from `cursor` on and ends with the program; after a broken connection, or a restart of
    the server, it goes on where it was. Others may be attached at the same time. Any thread may write while another one
    iterates. Leaving a `with` ends the terminal unless `keep`. Get one from `box.terminal`, `box.attach_terminal` or
    `box.terminals`.

    Attributes:
        keep: whether the terminal stays when a `with` on it is left.
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
        self._lock = threading.RLock()
        self._socket: WebSocket | None = None
        self._was_attached = False
        self._left = threading.Event()

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
        """The terminal as it was when the server last answered."""
        return self._info or self.refresh()

    @property
    def exit(self) -> Exit | None:
        """How its program ended, as far as we know; None while it runs."""
        return self._reader.exit or (calls.exit_of(self._info) if self._info else None)

    def refresh(self) -> TerminalInfo:
        """Ask the server again.

        Raises: NotFound (forgotten), Gone (the sandbox has ended).
        """
        self._info = self._client.call(terminal_calls.terminal(self._ref, self._id))
        return self._info

    def write(self, data: str | bytes) -> None:
        r"""Type: text, or bytes such as `b"\x03"` for Ctrl-C. Waits while the program does not read.

        What was written just before a connection broke may be lost; it is never sent twice.

        Raises: Conflict (its program has ended), Unreachable (the connection broke: what was written may have arrived).
        """
        raw = data.encode() if isinstance(data, str) else bytes(data)
        for start in range(0, len(raw), INPUT_BYTES):
            self._write(raw[start : start + INPUT_BYTES], is_first=start == 0)

    def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size; its program is told (SIGWINCH). Raises: Conflict (it has ended)."""
        self._client.call(terminal_calls.resize(self._ref, self._id, cols, rows))

    def signal(self, signal: str | int = "TERM") -> None:
        """Send a signal, by name or number, to the program's process group. Raises: Conflict (it has ended)."""
        self._client.call(terminal_calls.signal(self._ref, self._id, signal))

    def wait(self, timeout: Duration | None = None) -> Exit | None:
        """Wait for the program's end and return it; None: `timeout` is over and it still runs. Reads no output.

        Args:
            timeout: seconds or text such as `"5m"`; None: for as long as it takes.
        """
        limit = parse_seconds(timeout, "timeout")
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            info = self.refresh()
            left = POLL_S if deadline is None else deadline - time.monotonic()
            if self.exit is not None or left <= 0:
                return self.exit
            call = terminal_calls.output(self._ref, self._id, cursor=info.cursor, wait_s=min(left, POLL_S))
            if not self._client.call(call).get("ended"):
                time.sleep(min(left, 0.05))  # a program that never stops writing must not keep us busy

    def detach(self) -> None:
        """Close the connection and stop iterating; the terminal goes on. From any thread."""
        self._left.set()
        with self._lock:
            socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def forget(self) -> None:
        """End the terminal: its program is hung up and killed, and its output dropped."""
        self._client.call(terminal_calls.forget(self._ref, self._id))

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the output from `cursor` on, to the program's end; iterating again goes on.

        Raises: Unreachable (the connection broke and could not be made again), Gone, SandboxGone, NotFound.
        """
        self._left.clear()
        while self._reader.exit is None and not self._left.is_set():
            socket = self._attached()
            if socket is None:
                return
            try:
                message = socket.receive()
            except Lost as error:
                self._lose(socket, error)
                continue
            with self._lock:
                if socket is not self._socket:  # a writer found it broken: the new one says it again
                    continue
                try:
                    chunk = self._reader.read(message)
                except Error:
                    self._close_socket()
                    raise
            if chunk is not None:
                self._patience.reset()
                yield chunk
        self._close_socket()

    def __enter__(self) -> Self:
        """Return the terminal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Detach and, unless `keep`, end the terminal."""
        self.detach()
        if not self.keep:
            try:
                self.forget()
            except Error as error:
                if error.code not in ENDED:
                    raise

    def __repr__(self) -> str:
        """Return id and what is known of the end."""
        return f"<Terminal {self._id} {self.exit.why if self.exit else 'running'}>"

    # ---- the connection

    def _attached(self) -> WebSocket | None:
        """Return the connection, made (again) where it is missing; None: we were told to leave.

        Raises: Error, when there is no use in further attempts.
        """
        with self._lock:
            while self._socket is None and not self._left.is_set():
                try:
                    call = terminal_calls.attach(self._ref, self._id, cursor=self._reader.cursor)
                    self._socket = self._client.websocket(call)
                except Error as error:
                    if not self._was_attached and is_first_refusal(error):
                        raise
                    self._pause(error)
                else:
                    if self._was_attached and self.on_connection:
                        self.on_connection(True)
                    self._was_attached = True
                    self._patience.attached()
            return self._socket

    def _lose(self, socket: WebSocket, error: Lost) -> None:
        """Drop a connection that broke, and wait a little before the next one. Raises: the error, to give up."""
        with self._lock:
            if self._drop(socket):
                self._pause(error)

    def _drop(self, socket: WebSocket) -> bool:
        """Drop a connection that broke; False: that is known already, or we left it on purpose."""
        if socket is not self._socket:
            return False
        self._socket = None
        socket.close()
        if self.on_connection:
            self.on_connection(False)
        return True

    def _pause(self, error: Error) -> None:
        delay = self._patience.delay_s(error)
        if delay is None:
            raise error
        self._left.wait(delay)

    def _close_socket(self) -> None:
        with self._lock:
            socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def _write(self, piece: bytes, *, is_first: bool) -> None:
        from cove.sdk.websocket import NORMAL, NotSent

        while True:
            socket = self._attached() if self._reader.exit is None else None
            if socket is None:
                raise Conflict("the terminal has ended, or we are no longer attached to it")
            try:
                socket.send(piece)
            except NotSent as error:
                if error.close_code == NORMAL:
                    raise Conflict("the program of the terminal has ended") from error
                self._lose(socket, error)
                if not is_first:  # the pieces before it may be lost
                    raise
            except Lost:
                with self._lock:
                    self._drop(socket)
                raise
            else:
                return
