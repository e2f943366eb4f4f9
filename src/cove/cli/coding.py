"""Runs one piece of code and shows what comes of it: output as it is, values as text, pictures as files.

No click here. Ctrl-C interrupts the code as in a terminal, and what it still says is shown; a second one leaves it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cove.cli.failures import FAILED, INTERRUPTED, TIMED_OUT, Failure, PipeClosed
from cove.cli.terminal import clean, paint, say
from cove.sdk.errors import Error

if TYPE_CHECKING:
    from cove.cli.session import Session
    from cove.sdk.executions import CodeResult, Execution, Raised
    from cove.sdk.sandbox import Sandbox

RAISED: Final = 1
_PICTURES: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/svg+xml": "svg",
    "image/gif": "gif",
    "image/webp": "webp",
    "application/pdf": "pdf",
}
"""Media types that are written to files, the best first, and what their names end in."""
_MOST_FILES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Where:
    """Where code runs: a context, or the one of a language; and what holds for each run."""

    box: Sandbox
    language: str | None = None
    context: str | None = None
    env: dict[str, str] | None = None
    timeout: str | None = None

    @property
    def context_id(self) -> str:
        """The id of the context, which a sandbox's own one has of its language."""
        return self.context or self.language or "python"


class Show:
    """Where everything goes: our two streams and files of ours, or NDJSON with `--json`."""

    def __init__(self, session: Session, directory: str | None) -> None:
        self._session = session
        self._directory = directory
        self._number = 0

    def stdout(self, text: str) -> None:
        """Pass on output. Raises: PipeClosed."""
        self._text("stdout", text)

    def stderr(self, text: str) -> None:
        """Likewise."""
        self._text("stderr", text)

    def result(self, result: CodeResult) -> None:
        """Show a result: the path of its picture's file, else its text. Raises: PipeClosed, OSError."""
        if self._session.json:
            facts: dict[str, Any] = {"event": "result", "data": dict(result.data), "metadata": dict(result.metadata)}
            facts |= {"main": result.main, "display_id": result.display_id, "update": result.update}
            path = self._saved(result) if self._directory is not None else None
            self._event(facts | ({"path": path} if path else {}))
            return
        shown = self._saved(result)
        if shown is None:
            shown = result.text or result.markdown or result.latex or result.html
        if shown is None and result.data:
            shown = f"<{', '.join(sorted(result.data))}>"
        if shown is not None:
            _write(sys.stdout, f"{shown}\n")

    def error(self, raised: Raised) -> None:
        """Show what the code raised."""
        if self._session.json:
            self._event(
                {"event": "error", "name": raised.name, "value": raised.value, "traceback": list(raised.traceback)}
            )
        else:
            _write(sys.stderr, f"{raised}\n")

    def done(self, execution: Execution) -> None:
        """Tell the end of a run where its output does not."""
        if self._session.json:
            names = ("status", "count", "duration_ms", "context", "fresh", "detail")
            self._event({"event": "done", **{name: getattr(execution, name) for name in names}})
            return
        note = _note(execution)
        if note:
            say(f"{paint('note:', 'yellow', sys.stderr)} {note}")

    def _text(self, stream: str, text: str) -> None:
        if self._session.json:
            self._event({"event": stream, "text": text})
        else:
            _write(sys.stdout if stream == "stdout" else sys.stderr, text)

    def _event(self, event: dict[str, Any]) -> None:
        fields = self._session.fields
        if not fields or any(field in event for field in fields):
            try:
                self._session.emit(event)
            except BrokenPipeError as error:
                raise PipeClosed from error

    def _saved(self, result: CodeResult) -> str | None:
        """Write the picture of a result to the next free file, never over one; None: it has none."""
        kind = next((kind for kind in _PICTURES if kind in result.data), None)
        content = None if kind is None else result.content(kind)
        if kind is None or content is None:
            return None
        directory = self._directory or "."
        os.makedirs(directory, exist_ok=True)  # noqa: PTH103 - pathlib costs 4 ms
        while self._number < _MOST_FILES:
            self._number += 1
            path = f"{directory}/cove-output-{self._number}.{_PICTURES[kind]}"
            with suppress(FileExistsError), open(path, "xb") as file:  # noqa: PTH123 - as above
                file.write(content)
                return path
        raise Failure(f"{directory} is full of pictures", code="local-file", exit_code=FAILED, hint="--output DIR")


def run_code(where: Where, code: str, show: Show) -> int:
    """Run `code`, show it, and return our exit code: 0, 1 when it raised, 124, 130. Raises: whatever the SDK raises."""
    with _interrupting(where):
        execution = where.box.run_code(
            code,
            language=where.language,
            context=where.context,
            env=where.env,
            timeout=where.timeout,
            on_stdout=show.stdout,
            on_stderr=show.stderr,
            on_result=show.result,
            on_error=show.error,
        )
    if execution.status == "sandbox-gone":
        raise Failure("the sandbox ended while the code ran", code="sandbox-gone", exit_code=FAILED, hint="cove ls -a")
    show.done(execution)
    return {"ok": 0, "interrupted": INTERRUPTED, "timeout": TIMED_OUT}.get(execution.status, RAISED)


@contextmanager
def _interrupting(where: Where) -> Generator[None]:
    """Let the first Ctrl-C interrupt the code, and the second one us."""
    asked = threading.Event()

    def ask() -> None:
        with suppress(Error):
            where.box.contexts.get(where.context_id).interrupt()

    def on_interrupt(_number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        threading.Thread(target=ask, daemon=True).start()  # the main thread reads on

    with handling(signal.SIGINT, on_interrupt):
        yield


@contextmanager
def handling(number: int, handler: Callable[[int, object], None]) -> Generator[None]:
    """Handle a signal so for a while. Only the main thread may, others go on without."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _write(stream: Any, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError as error:
        raise PipeClosed from error


def _note(execution: Execution) -> str:
    match execution.status:
        case "timeout":
            return f"it ran into its time limit after {execution.duration_ms / 1000:.1f} s and was interrupted"
        case "kernel-died":
            return clean(execution.detail or "the interpreter ended; the next run gets a fresh one")
        case _:
            return clean(execution.detail or "")
