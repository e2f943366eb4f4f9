"""Standard output and error of the process that runs code: two pipes to the relay, and order between them.

The order of what is written to one pipe is the kernel's. Between the pipes and the channel on which results go, it is
kept like this:

* Before something goes to another way than the one before, the relay has taken all from that one.
* The relay takes from the channel first, then from the pipe that the code itself wrote to last.

So all that the code does is in its order, and programs that it starts are in order with it. Only when one program
writes to both pipes within the moment that the relay needs to wake up, its output comes before its errors.
"""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

OUTPUT, ERRORS = 1, 2

_PIPE_BYTES = 1 << 18
_PATIENCE_S = 0.25
_NOTHING = bytes(4)


class Page:
    """A page of memory that both processes see. Each number has one writer.

    It has no lock: each is 8 bytes, aligned, which are written at once.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def _get(self, place: int) -> int:
        number: int = struct.unpack_from("=Q", self._memory, place * 8)[0]
        return number

    def _set(self, place: int, value: int) -> None:
        struct.pack_into("=Q", self._memory, place * 8, value)

    @property
    def last(self) -> int:
        """The stream that the code itself wrote to last."""
        return self._get(0)

    @last.setter
    def last(self, stream: int) -> None:
        self._set(0, stream)

    @property
    def taken(self) -> int:
        """How many bytes the relay has taken from the channel."""
        return self._get(1)

    @taken.setter
    def taken(self, count: int) -> None:
        self._set(1, count)

    @property
    def interrupted(self) -> int:
        """The number of the run that is to be interrupted."""
        return self._get(2)

    @interrupted.setter
    def interrupted(self, count: int) -> None:
        self._set(2, count)

    @property
    def seen(self) -> int:
        """The number of the run whose interrupt has reached the code's thread."""
        return self._get(3)

    @seen.setter
    def seen(self, count: int) -> None:
        self._set(3, count)


def waiting_bytes(fd: int) -> int:
    """What is in a pipe; 0 if it is none."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, _NOTHING), sys.byteorder)
    except (OSError, ValueError):
        return 0


def wait_until(is_so: Callable[[], bool], patience_s: float | None) -> bool:
    """Poll until `is_so`, first quickly. False: it was not, for `patience_s`."""
    for _ in range(20):
        if is_so():
            return True
        os.sched_yield()
    delay_s, end = 0.00005, None if patience_s is None else time.monotonic() + patience_s
    while not is_so():
        if end is not None and time.monotonic() > end:
            return False
        time.sleep(delay_s)
        delay_s = min(delay_s * 1.5, 0.005)
    return True


class _Raw(io.RawIOBase):
    """Writes to a descriptor all that it is given, once the other stream is empty."""

    def __init__(self, streams: Streams, stream: int) -> None:
        super().__init__()
        self._streams = streams
        self._stream = stream

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream

    def isatty(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return "<stdout>" if self._stream == OUTPUT else "<stderr>"

    @property
    def mode(self) -> str:
        return "wb"

    def write(self, data: Any) -> int:
        self._streams.turn_to(self._stream)
        size = len(data)
        try:
            done = os.write(self._stream, data)
        except BlockingIOError:
            done = 0
        if done == size:
            return done
        view = memoryview(data).cast("B")
        size = len(view)
        while done < size:
            try:
                done += os.write(self._stream, view[done:])
            except BlockingIOError:
                os.set_blocking(self._stream, True)  # a program that shares the pipe, as node does, has changed it
        return size


class Streams:
    """Both streams. Made once, in the process that runs code."""

    def __init__(self, page: Page, output: int, errors: int) -> None:
        self._page = page
        self._last = 0
        self.nudge: Callable[[], None] = lambda: None
        """Has the relay take what it may be waiting with."""
        self._fds = {OUTPUT: output, ERRORS: errors}
        """Our own copies of the pipes, kept where code does not close them by accident."""
        self._texts: dict[int, io.TextIOWrapper] = {}
        for stream, fd in self._fds.items():
            os.dup2(fd, stream)
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, 1031, _PIPE_BYTES)  # F_SETPIPE_SZ, which fcntl names from Python 3.10 on
            self._open(stream)

    def _open(self, stream: int) -> None:
        # Each write goes through: nothing is lost when the process dies, and nothing has to be flushed by a timer.
        text = io.TextIOWrapper(
            _Raw(self, stream),  # raw, as `python3 -u` has it
            encoding="utf-8",
            errors="backslashreplace",
            newline="\n",
            write_through=True,
        )
        self._texts[stream] = text
        name = "stdout" if stream == OUTPUT else "stderr"
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)

    def turn_to(self, stream: int) -> None:
        """Before the code itself writes to `stream`: have the relay take all of the other one."""
        other = ERRORS if stream == OUTPUT else OUTPUT
        fd = self._fds[other]
        if waiting_bytes(fd):
            self.nudge()
            wait_until(lambda: not waiting_bytes(fd), _PATIENCE_S)
        if self._last != stream:
            self._last = self._page.last = stream

    def wait_taken(self) -> None:
        """Have the relay take all that was written. Gives up when others go on writing."""
        self.flush()
        fds = self._fds.values()
        if any(map(waiting_bytes, fds)):
            self.nudge()
            wait_until(lambda: not any(map(waiting_bytes, fds)), _PATIENCE_S)

    def flush(self) -> None:
        """Push out what an object of the code's, put in place of ours, holds back."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # it is whatever the code has put there
                stream.flush()

    def mend(self) -> None:
        """Open again what code has closed."""
        for stream, fd in self._fds.items():
            try:
                os.fstat(stream)
            except OSError:
                os.dup2(fd, stream)
            name = "stdout" if stream == OUTPUT else "stderr"
            current = getattr(sys, name, None)
            try:
                is_usable = current is not None and not current.closed
            except Exception:  # noqa: BLE001 - it is whatever the code has put there
                is_usable = current is not None
            if self._texts[stream].closed:
                self._open(stream)
            elif not is_usable:
                setattr(sys, name, self._texts[stream])


class Channel:
    """The executor's end of the channel to the relay."""

    def __init__(self, sock: socket.socket, page: Page, whole: AbstractContextManager[object]) -> None:
        self._sock = sock
        self._page = page
        self.whole = whole
        """Within it nothing interrupts: half a frame would be the end of the kernel."""
        self._sent = 0
        self._lock = threading.RLock()
        self.owner = os.getpid()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that runs code, and no copy that code made by fork(2)."""
        return os.getpid() == self.owner

    def send(self, kind: bytes, line: bytes, *, wait: bool = False) -> None:
        """Send one frame. `wait`: until the relay has it, so that it comes before what is written next."""
        if not self.is_ours:
            return
        frame = struct.pack("=cI", kind, len(line)) + line
        with self._lock, self.whole:
            self._sock.sendall(frame)
            self._sent += len(frame)
            sent = self._sent
        if wait:
            wait_until(lambda: self._page.taken >= sent, None)

    def receive(self, size: int = 1 << 16) -> bytes:
        """What the relay has sent; empty: it is gone."""
        data: bytes = self._sock.recv(size)
        return data

    def close(self) -> None:
        """In a copy that code made: let go of it."""
        self._sock.close()
