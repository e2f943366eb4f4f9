"""The process that speaks to the host, beside the one that runs code.

It has a process of its own because code may hold its interpreter (a regular expression without end, C code that prints)
or end it (os._exit, a crash, memory): this one still answers, interrupts, and delivers what was written before.

One thread, one epoll. What it reads is bounded by what it could send: a host that does not read holds the code up.
"""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, NamedTuple

from . import wire
from .streams import ERRORS, OUTPUT, Page, waiting_bytes

PROTOCOL = 1
_HIGH_BYTES = 1 << 18
_QUEUED = 64
_CONNECTIONS = 64
_HEADER = struct.Struct("=cI")
_TICKS = 20
_SMALL = 1 << 12
_RECENT_S = 0.002
_MOMENT_MS = 1
_AGAIN_S = 0.003
_INSIST_S = 0.25


class Job(NamedTuple):
    """A request that waits for its turn, or has it."""

    connection: Connection | None
    request: dict[str, Any]


class Connection:
    """One connection of the host's."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines = wire.Lines()
        self.out: collections.deque[memoryview] = collections.deque()
        self.size = 0
        self.queued = 0
        self.is_gone = False
        self.mask = 0

    @property
    def is_full(self) -> bool:
        """Whether it takes no more for now."""
        return self.size > _HIGH_BYTES

    def send(self, data: bytes) -> None:
        """Send what can be sent now, and keep the rest."""
        if self.is_gone:
            return
        self.out.append(memoryview(data))
        self.size += len(data)
        self.flush()

    def flush(self) -> None:
        """Send what is kept, as far as it can be."""
        while self.out and not self.is_gone:
            try:
                sent = self.sock.send(self.out[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.is_gone = True
                return
            self.size -= sent
            if sent == len(self.out[0]):
                self.out.popleft()
            else:
                self.out[0] = self.out[0][sent:]


class Ended(Exception):
    """The executor is gone."""


class Relay:
    """Serves until the executor has ended. All descriptors are given; `serve` gives its exit code."""

    def __init__(  # noqa: PLR0913 - what the two processes share
        self,
        *,
        listener: socket.socket,
        channel: socket.socket,
        pipes: dict[int, int],
        page: Page,
        child: int,
        language: str,
    ) -> None:
        self._listener = listener
        self._channel = channel
        self._pipes = pipes
        self._page = page
        self._child = child
        self._language = language
        self._info: dict[str, Any] | None = None
        self._connections: dict[int, Connection] = {}
        self._jobs: collections.deque[Job] = collections.deque()
        self._job: Job | None = None
        self._runs = 0
        self._buffer = bytearray()
        self._to_child: collections.deque[memoryview] = collections.deque()
        self._texts = {OUTPUT: wire.Text(), ERRORS: wire.Text()}
        self._waiting: list[Connection] = []
        self._epoll = select.epoll()
        self._is_reading = False
        self._told_at = 0.0
        self._idle_s = 0.0
        self._tick = time.monotonic()

    # -- the loop ------------------------------------------------------------------------------------------------

    def serve(self, idle_limit_s: float | None, said: int) -> int:
        """Serve; `said` is a descriptor to say "listening" on, once code can be run. Gives an exit code."""
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for fd in (wake, self._listener.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        self._read(is_reading=True)
        status: int | None = self._ended_status()
        tick_s = None if idle_limit_s is None else max(idle_limit_s / _TICKS, 0.05)
        while status is None:
            ready = {fd for fd, _ in self._epoll.poll(_INSIST_S if self._is_unseen() else tick_s)}
            if not ready and self._is_unseen():
                os.kill(self._child, signal.SIGINT)
            if wake in ready:
                os.read(wake, 4096)
                status = self._ended_status()
                if status is not None:
                    break
            before = self._info
            try:
                self._turn(ready)
            except Ended:
                status = os.waitpid(self._child, 0)[1]
                break
            if before is None and self._info is not None:
                with contextlib.suppress(OSError):
                    os.write(said, b"listening\n")
                self._tick, self._idle_s = time.monotonic(), 0.0
            if tick_s is not None and idle_limit_s is not None and self._is_idle_for(idle_limit_s, tick_s):
                os.kill(self._child, signal.SIGKILL)
                os.waitpid(self._child, 0)
                return 0
        return self._last_words(status)

    def _is_unseen(self) -> bool:
        """Whether an interrupt is under way. The kernel may have given it to a thread that does not care."""
        return self._job is not None and self._page.interrupted == self._runs != self._page.seen

    def _ended_status(self) -> int | None:
        pid, status = os.waitpid(self._child, os.WNOHANG)
        return status if pid else None

    def _is_idle_for(self, limit_s: float, tick_s: float) -> bool:
        # A sandbox may have been on the disk for a day in between: no tick counts for more than it was meant to be.
        now = time.monotonic()
        passed, self._tick = now - self._tick, now
        if self._job is not None or self._jobs:
            self._idle_s = 0.0
        else:
            self._idle_s += min(max(passed, 0.0), 2 * tick_s)
        return self._idle_s >= limit_s

    def _turn(self, ready: set[int]) -> None:
        if self._listener.fileno() in ready:
            self._accept()
        for fd in ready:
            connection = self._connections.get(fd)
            if connection is not None:
                connection.flush()
                self._take_requests(connection)
        if self._is_reading:
            # First the channel, then the pipe that the code wrote to last: see streams.py.
            self._take_frames()
            first = self._page.last
            for stream in sorted(self._pipes, key=lambda one: one != first):
                if self._pipes[stream] in ready:
                    self._take_output(stream)
        self._next()
        self._balance()

    def _balance(self) -> None:
        """Watch what can be worked on: nothing is read from the executor while its reader does not read."""
        for fd, connection in list(self._connections.items()):
            if connection.is_gone:
                self._forget(fd, connection)
                continue
            mask = (select.EPOLLIN if connection.queued < _QUEUED and not connection.is_full else 0) | (
                select.EPOLLOUT if connection.out else 0
            )
            if mask != connection.mask:
                connection.mask = mask
                self._epoll.modify(fd, mask)
        reader = self._job.connection if self._job is not None else None
        self._read(is_reading=reader is None or not reader.is_full)
        while self._to_child:
            try:
                sent = self._channel.send(self._to_child[0])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self._to_child.clear()
                break
            if sent == len(self._to_child[0]):
                self._to_child.popleft()
            else:
                self._to_child[0] = self._to_child[0][sent:]
        if self._is_reading:
            mask = select.EPOLLIN | (select.EPOLLOUT if self._to_child else 0)
            self._epoll.modify(self._channel, mask)

    def _read(self, *, is_reading: bool) -> None:
        if is_reading == self._is_reading:
            return
        self._is_reading = is_reading
        for fd in (self._channel.fileno(), *self._pipes.values()):
            if is_reading:
                self._epoll.register(fd, select.EPOLLIN)
            else:
                self._epoll.unregister(fd)

    # -- the host ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        # Whoever can run code here is this user: other users of the sandbox get nothing.
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("=iII", peer)[1] not in {0, os.geteuid()} or len(self._connections) >= _CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(sock)
        connection.mask = select.EPOLLIN
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock, select.EPOLLIN)

    def _take_requests(self, connection: Connection) -> None:
        if connection.is_gone or connection.is_full or connection.queued >= _QUEUED:
            return
        try:
            data = connection.sock.recv(1 << 16)
            if not data:
                connection.is_gone = True
                return
            for line in connection.lines.feed(data):
                request = json.loads(line)
                if isinstance(request, dict):
                    self._request(connection, request)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ValueError, RecursionError):
            connection.is_gone = True

    def _request(self, connection: Connection, request: dict[str, Any]) -> None:
        op = request.get("op")
        if op == "hello":
            self._say_ready(connection)
        elif op == "interrupt":
            self._interrupt(request.get("run"))
        elif op in ("run", "setup", "complete"):
            connection.queued += 1
            self._jobs.append(Job(connection, request))

    def _say_ready(self, connection: Connection, problem: str = "") -> None:
        if self._info is None:
            self._waiting.append(connection)
            return
        try:
            cwd = os.readlink(f"/proc/{self._child}/cwd")
        except OSError:
            cwd = ""
        ready = dict(
            self._info,
            t="ready",
            protocol=PROTOCOL,
            language=self._language,
            runs=self._runs,
            busy=self._job is not None,
            cwd=cwd,
        )
        if problem:
            ready["problem"] = problem
        connection.send(wire.encode(ready))

    def _interrupt(self, run: Any) -> None:
        if self._job is not None and self._job.request["op"] != "setup" and run in (None, self._job.request.get("run")):
            self._page.interrupted = self._runs
            os.killpg(0, signal.SIGINT)
            return
        for job in self._jobs if run is not None else ():
            if job.request.get("run") == run:
                self._jobs.remove(job)
                self._drop(job)
                return

    def _drop(self, job: Job) -> None:
        if job.connection is not None:
            job.connection.queued -= 1
            if job.request["op"] == "run":
                done = {"t": "done", "run": job.request.get("run"), "status": "interrupted", "count": 0}
                job.connection.send(wire.encode(done))

    def _forget(self, fd: int, connection: Connection) -> None:
        self._epoll.unregister(fd)
        del self._connections[fd]
        connection.sock.close()
        connection.out.clear()
        connection.size = 0
        self._jobs = collections.deque(job for job in self._jobs if job.connection is not connection)
        job = self._job
        if job is not None and job.connection is connection:
            self._job = Job(None, job.request)
            self._interrupt(None)

    # -- the executor --------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Give the executor its next request, if it has none."""
        if self._job is not None or self._info is None or not self._jobs:
            return
        job = self._jobs.popleft()
        self._job = job
        self._idle_s = 0.0
        if job.request["op"] == "run":
            self._runs += 1
            for text in self._texts.values():
                text.end()
            self._emit(wire.encode({"t": "started", "run": job.request.get("run"), "count": self._runs}))
        line = json.dumps(job.request, separators=(",", ":")).encode() + b"\n"
        self._to_child.append(memoryview(line))

    def _emit(self, line: bytes) -> None:
        if self._job is not None and self._job.connection is not None:
            self._job.connection.send(line)

    def _take_frames(self, *, to_the_end: bool = False) -> None:
        """All frames that are there, as long as their reader takes them, or to the end of an executor that is gone."""
        while True:
            try:
                data = self._channel.recv(1 << 18)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                raise Ended from None
            if not data:
                raise Ended
            self._buffer += data
            start = 0
            while len(self._buffer) - start >= _HEADER.size:
                kind, size = _HEADER.unpack_from(self._buffer, start)
                if len(self._buffer) - start < _HEADER.size + size:
                    break
                begin = start + _HEADER.size
                self._frame(kind, bytes(self._buffer[begin : begin + size]))
                start = begin + size
            del self._buffer[:start]
            self._page.taken += len(data)
            reader = self._job.connection if self._job is not None else None
            if reader is not None and reader.is_full and not to_the_end:
                return

    def _frame(self, kind: bytes, line: bytes) -> None:
        if kind == b"E":
            self._emit(line)
        elif kind == b"U":
            self._info = json.loads(line)
            for connection in self._waiting:
                self._say_ready(connection)
            self._waiting.clear()
        elif kind in (b"A", b"D"):
            self._finish(line)
        elif kind == b"I" and self._job is not None:
            time.sleep(_AGAIN_S)  # until what swallowed it is over
            os.kill(self._child, signal.SIGINT)

    def _finish(self, line: bytes) -> None:
        job = self._job
        if job is None:
            return
        if job.request["op"] == "run":
            self._take_rest()
        self._job = None
        if job.connection is None:
            return
        job.connection.queued -= 1
        if job.request["op"] == "setup":
            self._say_ready(job.connection, json.loads(line).get("problem") or "")
        else:
            job.connection.send(line)

    def _take_output(self, stream: int, limit: int | None = None) -> int:
        """Take what is there, once, and tell it. `limit`: no more, and now."""
        fd = self._pipes[stream]
        try:
            data = os.read(fd, wire.CHUNK_BYTES if limit is None else min(limit, wire.CHUNK_BYTES))
            is_recent = time.monotonic() - self._told_at < _RECENT_S
            if limit is None and len(data) < _SMALL and (is_recent or not data.endswith(b"\n")):
                data += self._more(stream, wire.CHUNK_BYTES - len(data))
        except (BlockingIOError, InterruptedError):
            return 0
        if self._job is not None and self._job.connection is not None and self._job.request["op"] == "run":
            self._tell(stream, self._texts[stream].feed(data))
        return len(data)

    def _take_rest(self) -> None:
        """What programs have written until now belongs to this run, even if they go on writing for ever."""
        for stream, fd in self._pipes.items():
            left = waiting_bytes(fd)
            while left > 0:
                taken = self._take_output(stream, left)
                left = left - taken if taken else 0
            self._tell(stream, self._texts[stream].end())

    def _more(self, stream: int, limit: int) -> bytes:
        """What is written in the next moment: else each word that is printed costs the host an event."""
        held = select.poll()
        held.register(self._channel, select.POLLIN)
        held.register(self._pipes[ERRORS if stream == OUTPUT else OUTPUT], select.POLLIN)
        if any(fd != self._channel.fileno() for fd, _ in held.poll(_MOMENT_MS)):
            return b""
        try:
            return os.read(self._pipes[stream], limit)
        except (BlockingIOError, InterruptedError):
            return b""

    def _tell(self, stream: int, text: str) -> None:
        if text and self._job is not None:
            self._told_at = time.monotonic()
            kind = "stdout" if stream == OUTPUT else "stderr"
            self._emit(wire.encode({"t": kind, "run": self._job.request.get("run"), "d": text}))

    def _last_words(self, status: int) -> int:
        """Deliver all that the executor has left, say how it ended, and give the exit code for it."""
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        with contextlib.suppress(Ended):
            self._take_frames(to_the_end=True)
        self._take_rest()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        died = {"t": "died", "code": code, "detail": f"The interpreter {how}."}
        if self._job is not None:
            died["run"] = self._job.request.get("run")
        for connection in self._connections.values():
            connection.send(wire.encode(died))
        end = time.monotonic() + 10
        while time.monotonic() < end and any(one.out for one in self._connections.values() if not one.is_gone):
            time.sleep(0.005)
            for connection in self._connections.values():
                connection.flush()
        return 128 - code if code < 0 else code


def fail(sentence: str) -> None:
    """Say why the kernel cannot start."""
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
