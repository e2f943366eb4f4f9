"""Runs a command in a sandbox and is its terminal: output live and byte for byte, piped input, its exit code.

No click here: `main` comes straight to this for `cove exec BOX COMMAND…`, which has 80 ms for everything.

A command is tied to our connection, so it dies with us. Input that is short and complete goes along with the request;
longer or live input needs a background command, which we kill and forget when we end.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from cove.cli.failures import FAILED, Failure, PipeClosed
from cove.cli.terminal import paint, say, size
from cove.sdk import calls
from cove.sdk.jobs import Running

if TYPE_CHECKING:
    from cove.cli.session import Session
    from cove.sdk.client import Client
    from cove.sdk.jobs import Job
    from cove.sdk.results import Chunk, Exit
    from cove.sdk.transport import Call

INLINE_BYTES: Final = 512 * 1024
"""Input up to here goes along with the request, whose body may have 2 MiB."""
PIECE_BYTES: Final = 64 * 1024
KEEP_BYTES: Final = 16 * 1024 * 1024
"""Output that the sandbox keeps of a command with live input, should we read more slowly than it writes."""


NO_SUCH_COMMAND: Final = 127


class Output:
    """Where a command's output goes: our own two streams, or NDJSON with `--json`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._decoders: dict[str, Any] = {}

    def chunk(self, chunk: Chunk) -> None:
        """Pass on one piece. Raises: PipeClosed."""
        if self._session.json:
            self._event({"event": chunk.stream, "data": chunk.text})
            return
        stream = sys.stdout if chunk.stream == "stdout" else sys.stderr
        try:
            stream.buffer.write(chunk.data)
            stream.flush()
        except BrokenPipeError as error:
            raise PipeClosed from error

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Print an event of ours, with `--json` only."""
        if self._session.json:
            self._event({"event": name, **facts})

    def _event(self, event: dict[str, Any]) -> None:
        fields = self._session.fields
        if not fields or any(field in event for field in fields):
            try:
                self._session.emit(event)
            except BrokenPipeError as error:
                raise PipeClosed from error

    def _text(self, chunk: Chunk) -> str:
        import codecs

        decoder = self._decoders.setdefault(chunk.stream, codecs.getincrementaldecoder("utf-8")("replace"))
        return str(decoder.decode(chunk.data))


def execute(session: Session, ref: str, body: dict[str, Any], *, has_stdin: bool = True) -> int:
    """Run the command of `body` (see `calls.exec_body`) in `ref` and return its exit code.

    Raises: whatever the SDK raises; NotFound before anything was done.
    """
    output = Output(session)
    given, is_whole = read_stdin() if has_stdin else (b"", True)
    if is_whole:
        if given:
            from base64 import b64encode

            body = body | {"stdin": b64encode(given).decode()}
        exit_ = relay(session.client, calls.stream(ref, body), output)
    else:
        exit_ = _run_with_live_input(session.client, ref, body, given, output)
    return finish(session, exit_, output, body["command"])


def finish(session: Session, exit_: Exit, output: Output, command: Sequence[str]) -> int:
    """Tell how the command ended where its exit code alone does not, and return that code."""
    if exit_.why == "sandbox-gone":
        raise Failure(
            "the sandbox ended while the command ran", code="sandbox-gone", exit_code=FAILED, hint="cove ls -a"
        )
    facts = {name: getattr(exit_, name) for name in ("exit", "why", "signal", "ms", "cpu_ms", "memory_peak_bytes")}
    output.event("exit", facts)
    note = why_line(exit_)
    if exit_.exit == NO_SUCH_COMMAND and len(command) == 1 and " " in command[0]:
        note = "a word with blanks is one program's name; for the shell's language: -- sh -c 'LINE'"
    if note and not session.json:
        say(f"{paint('note:', 'yellow', sys.stderr)} {note}")
    return exit_.exit


def why_line(exit_: Exit) -> str:
    """Return the sentence for an end that a reader would wonder about, or an empty string."""
    match exit_.why:
        case "oom":
            peak = f" (peak {size(exit_.memory_peak_bytes)})" if exit_.memory_peak_bytes else ""
            return f"it needed more memory than the sandbox may have{peak}; more: cove new --memory 2g"
        case "timeout":
            return f"it ran into its time limit after {exit_.ms / 1000:.1f} s and was killed, with all it had started"
        case "killed":
            return f"it was ended by signal {exit_.signal}" if exit_.signal else "it was killed"
        case _:
            return ""


def relay(client: Client, call: Call[None], output: Output) -> Exit:
    """Pass on the output of the streamed command that `call` runs, and return its end."""
    with Running(client, call) as running:
        for chunk in running:
            output.chunk(chunk)
    exit_ = running.exit
    assert exit_ is not None  # noqa: S101 - the iteration ends with it or raises
    return exit_


# ---- input


def read_stdin() -> tuple[bytes, bool]:
    """Return what our standard input has now, and whether that is all of it. A terminal counts as empty.

    Never waits: a pipe that nobody writes to must not keep a command from starting.
    """
    try:
        fd = sys.stdin.fileno()
        mode = os.fstat(fd).st_mode
    except (AttributeError, OSError, ValueError):
        return b"", True
    if stat.S_ISCHR(mode) and (os.isatty(fd) or _is_devnull(fd)):
        return b"", True
    pieces: list[bytes] = []
    count = 0
    while count < INLINE_BYTES and (stat.S_ISREG(mode) or select.select([fd], [], [], 0)[0]):
        piece = os.read(fd, PIECE_BYTES)
        if not piece:
            return b"".join(pieces), True
        pieces.append(piece)
        count += len(piece)
    return b"".join(pieces), False


def _is_devnull(fd: int) -> bool:
    return os.path.samestat(os.fstat(fd), os.stat(os.devnull))  # noqa: PTH116 - pathlib costs 4 ms


def _live_input(first: bytes) -> Iterator[bytes]:
    if first:
        yield first
    fd = sys.stdin.fileno()
    while piece := os.read(fd, PIECE_BYTES):
        yield piece


def _run_with_live_input(client: Client, ref: str, body: dict[str, Any], first: bytes, output: Output) -> Exit:
    from cove.sdk.jobs import Job

    with ExitStack() as stack:
        with _signals_held():  # until its id is known, nobody could end it
            info = client.call(calls.start(ref, body | {"stdin_open": True, "keep_bytes": KEEP_BYTES}))
            job = Job(ref, info.id, client=client, info=info)
            stack.enter_context(ends_on_sigterm())
            stack.enter_context(_forgotten(job))
        _feed(job, first)
        for chunk in job:
            if chunk.lost:
                raise Failure(
                    f"{size(chunk.lost)} of output were lost: it came faster than it could be passed on",
                    code="output-lost",
                    exit_code=FAILED,
                    hint="write it to a file in the sandbox, then: cove cp BOX:/path -",
                )
            output.chunk(chunk)
    assert job.exit is not None  # noqa: S101 - the iteration ends with it or raises
    return job.exit


def _feed(job: Job, first: bytes) -> None:
    """Write our input to the command from a thread of its own, which ends with the process."""
    import threading

    from cove.sdk.errors import Error

    def feed() -> None:
        with suppress(Error, OSError, ValueError):  # the command has ended, or does not read: its output tells how
            job.write(_live_input(first), close=True)

    threading.Thread(target=feed, daemon=True).start()


@contextmanager
def _forgotten(job: Job) -> Generator[None]:
    """At the end, kill the command if it runs and drop its output; a sandbox that is gone has done so."""
    from cove.sdk.errors import Error

    try:
        yield
    finally:
        with suppress(Error):
            job.forget()


@contextmanager
def _signals_held() -> Generator[None]:
    """Take signals that end us at the end of this, not in between."""
    import signal

    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ends_on_sigterm() -> Generator[None]:
    """Let SIGTERM and a closed terminal unwind us, for what has to be undone; the exit code is as the shell's."""
    import signal

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
