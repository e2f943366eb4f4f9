"""Makes our terminal the terminal of a program in a sandbox: raw keys there, its output here, its size ours.

The two directions never wait for one another: output is written by the main thread; keys are read by one thread and
sent by another, with a bounded queue between them, so that `~.` is heard while a program reads nothing.

Whatever ends us (the program, `~.`, SIGTERM, a closed window, an error), the user's terminal is put right again.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from cove.cli.keys import DETACH, Escapes
from cove.cli.screen import Modes, Replay
from cove.sdk.errors import Conflict, Error

if TYPE_CHECKING:
    from cove.sdk.results import Exit
    from cove.sdk.terminals import Terminal

IN: Final = 0
OUT: Final = 1
READ_BYTES: Final = 16 * 1024
AHEAD: Final = 256
"""Reads of keys that wait for the program: 4 MiB at most."""
FLUSH_S: Final = 1.0
"""How long detaching waits for what was typed before it."""
END_S: Final = 2.0
"""How long our threads get to end; they end with the process anyway."""
DEFAULT_SIZE: Final = (80, 24)

HELP_TEXT: Final = (
    "\r\nAfter a line break:\r\n  ~.   detach; the program goes on\r\n  ~~   one ~\r\n  ~?   this help\r\n"
)


def is_terminal() -> bool:
    """Whether both our input and our output are a terminal."""
    return os.isatty(IN) and os.isatty(OUT)


def window_size() -> tuple[int, int]:
    """Return columns and rows of our terminal."""
    try:
        size = os.get_terminal_size(OUT)
    except OSError:
        return DEFAULT_SIZE
    return (size.columns or DEFAULT_SIZE[0], size.lines or DEFAULT_SIZE[1])


class Interaction:
    """One sitting at a terminal of a sandbox.

    Args:
        terminal: is read from its cursor on.
        replayed: so many bytes of its output are old and shown again. Where they are not all that there was, a program
            that fills the screen is made to draw it anew.

    Attributes:
        is_mid_line: whether the output ended in the middle of a line.
    """

    def __init__(self, terminal: Terminal, *, replayed: int = 0) -> None:
        self.is_detached = False
        self.is_mid_line = False
        self._terminal = terminal
        self._modes = Modes()
        self._replay = Replay(replayed)
        self._keys: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._is_over = False
        self._wants_redraw = replayed > 0 and terminal.cursor > 0
        self._stop, self._stopper = os.pipe()
        self._sizes, self._sizer = os.pipe()
        os.set_blocking(self._sizer, False)  # a signal handler writes to it

    def run(self) -> Exit | None:
        """Sit there until the program has ended; returns how, or None after `~.` or a closed window.

        Raises: what the SDK raises; the user's terminal is as it was before.
        """
        self._terminal.on_connection = self._tell_connection
        threads = [threading.Thread(target=work, daemon=True) for work in (self._read_keys, self._send, self._resize)]
        with self._raw():
            for thread in threads:
                thread.start()
            if self._wants_redraw:
                self._redraw()
            try:
                self._show()
            finally:
                self._end(threads)
        return self._terminal.exit

    # ---- output

    def _show(self) -> None:
        for chunk in self._terminal:
            if chunk.lost:
                self._tell(f"{chunk.lost} bytes before this are no longer kept")
                self._redraw()
            data = self._replay.clean(chunk.data)
            self.is_mid_line = not data.endswith(b"\n")
            self._modes.see(data)
            try:
                _write(data)
            except OSError:  # the window was closed
                self._detach()
                return

    def _tell(self, text: str) -> None:
        with suppress(OSError):
            _write(f"\r\n[cove: {text}]\r\n".encode())

    def _tell_connection(self, is_there: bool) -> None:  # noqa: FBT001 - the SDK's signature
        self._tell("attached again" if is_there else "connection lost, attaching again; ~. leaves")
        if is_there:
            self._redraw()

    # ---- size

    def _redraw(self) -> None:
        """Let a program that fills the screen draw it anew, as it does when its size changes."""
        self._wants_redraw = True
        self._wake_sizer()

    def _wake_sizer(self) -> None:
        with suppress(BlockingIOError):  # full: it will be awake for long
            os.write(self._sizer, b".")

    def _resize(self) -> None:
        while True:
            os.read(self._sizes, READ_BYTES)
            if self._is_over:
                return
            cols, rows = window_size()
            with suppress(Error):  # it has ended, or the server is away: attached again, we come here again
                if self._wants_redraw:
                    self._wants_redraw = False
                    self._terminal.resize(cols, rows - 1 if rows > 1 else rows + 1)
                self._terminal.resize(cols, rows)

    # ---- keys

    def _read_keys(self) -> None:
        escapes = Escapes()
        poll = select.poll()
        poll.register(IN, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            poll.poll()
            if self._is_over:
                return
            try:
                typed = os.read(IN, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                typed = b""
            if not typed:  # the window was closed
                self._detach()
                return
            for keys in escapes.feed(typed):
                if keys.data:
                    self._keys.put(keys.data)
                if keys.order == DETACH:
                    with suppress(OSError):
                        _write(b"~.\r\n")
                    with self._keys.all_tasks_done:
                        self._keys.all_tasks_done.wait_for(lambda: not self._keys.unfinished_tasks, FLUSH_S)
                    self._detach()
                    return
                if keys.order:
                    with suppress(OSError):
                        _write(HELP_TEXT.encode())

    def _send(self) -> None:
        while (data := self._keys.get()) is not None:
            try:
                self._terminal.write(data)
            except Conflict:  # it has ended; the output says how
                return
            except Error:
                if self._is_over or self.is_detached:
                    return
                self._tell("what you typed last may not have arrived")
            finally:
                self._keys.task_done()

    def _detach(self) -> None:
        self.is_detached = True
        self._terminal.detach()

    # ---- beginning and end

    def _end(self, threads: list[threading.Thread]) -> None:
        self._is_over = True
        self._terminal.detach()
        os.write(self._stopper, b".")
        self._wake_sizer()
        while True:  # make room for the word that there is no more
            try:
                self._keys.put_nowait(None)
                break
            except queue.Full:
                with suppress(queue.Empty):
                    self._keys.get_nowait()
        for thread in threads:
            thread.join(END_S)
        if not any(thread.is_alive() for thread in threads):
            for end in (self._stop, self._stopper, self._sizes, self._sizer):
                os.close(end)

    @contextmanager
    def _raw(self) -> Generator[None]:
        before = termios.tcgetattr(IN)

        def resized(_number: int, _frame: object) -> None:
            self._wake_sizer()

        def resumed(_number: int, _frame: object) -> None:  # a shell that stopped us has made it its own meanwhile
            tty.setraw(IN)
            self._redraw()

        def ended(number: int, _frame: object) -> None:
            sys.exit(128 + number)

        handlers: dict[signal.Signals, Any] = {
            signal.SIGWINCH: resized,
            signal.SIGCONT: resumed,
            signal.SIGTERM: ended,
            signal.SIGHUP: ended,
        }
        old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            tty.setraw(IN)
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            with suppress(OSError, termios.error):
                _write(self._modes.reset())
            with suppress(OSError, termios.error):
                termios.tcsetattr(IN, termios.TCSADRAIN, before)


def _write(data: bytes) -> None:
    """Write all of it to our terminal, which may take its time."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(OUT, rest) :]
        except BlockingIOError:  # somebody else made it so; it stays as they want it
            poll = select.poll()
            poll.register(OUT, select.POLLOUT)
            poll.poll()
