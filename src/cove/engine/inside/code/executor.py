"""The process that runs code: takes one request after another from the relay, and tells what comes of it."""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping
from importlib import util
from typing import Any, NamedTuple

from . import wire
from .streams import Channel, Page, Streams

_GRACE_S = 1.0

CANNOT_START = 64
"""Exit code of a kernel that cannot be started; a sentence on stderr says why."""


class CannotStart(Exception):
    """The engine is not there. Its text is for whoever asked."""


class Failure(NamedTuple):
    """What a run raised."""

    name: str
    value: str
    traceback: list[str]


class Info(NamedTuple):
    """What an engine is."""

    kernel: str
    version: str
    rich: bool
    missing: list[str]


class Interrupts:
    """Makes KeyboardInterrupt of SIGINT while code runs, and only then; as a context: holds it back within."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._owner = os.getpid()
        self.is_armed = False
        self._held = 0
        self._came = False
        self._main = threading.get_ident()

    def install(self) -> None:
        """Take SIGINT. Also when code has taken it: each run begins with an interrupt that works."""
        if signal.getsignal(signal.SIGINT) != self._handle:
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, _number: int, _frame: Any) -> None:
        if os.getpid() == self._owner:  # copies that code made share the page
            self._page.seen = self._page.interrupted
        if self._held:
            self._came = True
        elif self.is_armed:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._held += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self._main:
            self._held -= 1
            if self._came and not self._held:
                self._came = False
                if self.is_armed:
                    raise KeyboardInterrupt


class Sink:
    """Where an engine puts what a run shows."""

    def __init__(self, channel: Channel, streams: Streams) -> None:
        self._channel = channel
        self._streams = streams
        self.run = ""

    def result(
        self,
        data: Mapping[Any, Any],
        meta: Any = None,
        *,
        main: bool = False,
        name: str | None = None,
        update: bool = False,
    ) -> None:
        """Show a value in all its forms."""
        if not self._channel.is_ours:
            print(data.get("text/plain", ""))  # noqa: T201 - a copy of the process has its output only
            return
        lines = list(wire.result(self.run, wire.bundle(data), meta or {}, main=main, name=name, update=update))
        self._streams.wait_taken()
        for line in lines:
            # Nothing of the code's comes between the main result and the end of the run, which goes the same way.
            self._channel.send(b"E", line, wait=not main)

    def clear(self, *, wait: bool) -> None:
        """Have what was shown removed."""
        self._streams.wait_taken()
        self._channel.send(b"E", wire.encode({"t": "clear", "run": self.run, "wait": wait}), wait=True)

    def error(self, failure: Failure) -> None:
        """Tell of an exception."""
        self._channel.send(b"E", wire.error(self.run, *failure))


class Engine:
    """What runs code in one language. The one for a language is made by `engine_for`."""

    info: Info

    def run(self, code: str, count: int) -> Failure | None:
        """Run it. May raise whatever the code raises; KeyboardInterrupt is an interruption."""
        raise NotImplementedError

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        """`matches`, `start` and `end` of what could stand at `cursor`."""
        raise NotImplementedError

    def setup(self, env: Mapping[str, str | None]) -> None:
        """The environment has been changed, before the first run."""


def failure_of(problem: BaseException, traceback: list[str] | None = None) -> Failure:
    """Tell of an exception whose own text may fail."""
    name = type(problem).__name__
    try:
        value = str(problem)
    except BaseException as other:  # noqa: BLE001 - an exception of the code's own making
        value = f"<its text cannot be had: {type(other).__name__}>"
    return Failure(name, value, traceback if traceback is not None else [f"{name}: {value}" if value else name])


def engine_for(language: str, sink: Sink) -> Engine:
    """The best engine that there is. Raises: CannotStart."""
    if language == "python":
        main = types.ModuleType("__main__", "Code of this context.")
        sys.modules["__main__"] = main
        reason = "IPython is not installed in this image"
        if util.find_spec("IPython") is not None:
            try:
                from .rich import RichEngine

                return RichEngine(sink, main)
            except Exception as problem:  # noqa: BLE001 - a broken or foreign IPython is no reason to have no Python
                reason = f"IPython does not start: {type(problem).__name__}: {problem}"
        from .plain import PlainEngine

        return PlainEngine(sink, main, reason)
    from .bridge import BridgeEngine

    return BridgeEngine(sink, language)


def run_program(argv: Any, **options: Any) -> int:
    """Run a program whose output is the run's, and end it with an interrupt. Gives its exit code, or minus a signal."""
    child = subprocess.Popen(argv, **options)
    try:
        return child.wait()
    except BaseException:
        try:
            child.wait(_GRACE_S)  # it got the signal, too
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise


def system(command: Any) -> int:
    """Run a command in a shell: in place of os.system, which takes no notice of interrupts while it waits."""
    code = run_program([b"/bin/sh", b"-c", os.fsencode(command)], close_fds=False)
    return code << 8 if code >= 0 else -code


def arm_reseed() -> None:
    """Have `cove_fork`, so that random numbers differ in copies of the sandbox: of any Python, by its path."""
    try:
        importlib.import_module("cove_fork")
    except ImportError:
        path = "/usr/lib/python3/dist-packages/cove_fork.py"
        if not os.path.exists(path):
            return
        spec = util.spec_from_file_location("cove_fork", path)
        if spec is not None and spec.loader is not None:
            module = util.module_from_spec(spec)
            sys.modules["cove_fork"] = module
            spec.loader.exec_module(module)


class Executor:
    """One per process: `serve` returns when the relay is gone."""

    def __init__(self, sock: socket.socket, page: Page, streams: Streams) -> None:
        self._page = page
        self._streams = streams
        self._interrupts = Interrupts(page)
        self._channel = Channel(sock, page, self._interrupts)
        self._sink = Sink(self._channel, streams)
        streams.nudge = functools.partial(self._channel.send, b"N", b"")
        self._count = 0
        self._engine: Engine

    def start(self, language: str, preload: list[str]) -> None:
        """Make the engine and say that it is there. Raises: CannotStart."""
        self._interrupts.install()
        os.system = system
        self._keep_interrupts()
        arm_reseed()
        self._engine = engine_for(language, self._sink)
        os.register_at_fork(after_in_child=self._channel.close)
        for name in preload:
            with contextlib.suppress(Exception):  # the code that needs it will be told
                importlib.import_module(name)
        info = self._engine.info
        said = {"kernel": info.kernel, "version": info.version, "rich": info.rich, "missing": info.missing}
        self._channel.send(b"U", wire.encode(said))

    def _keep_interrupts(self) -> None:
        """Have an interrupt sent again that Python has dropped, because it hit a hook of fork(2) or a destructor."""
        before = sys.unraisablehook

        def tell(dropped: Any) -> None:
            if dropped.exc_type is KeyboardInterrupt and self._channel.is_ours:
                self._channel.send(b"I", b"")
            else:
                before(dropped)

        sys.unraisablehook = tell

    def serve(self) -> None:
        """Work on requests until the relay is gone."""
        lines = wire.Lines()
        while True:
            try:
                data = self._channel.receive()
                if not data:
                    return
                for line in lines.feed(data):
                    self._work(json.loads(line))
            except KeyboardInterrupt:
                continue  # too late for a run, too early for the next

    def _work(self, request: dict[str, Any]) -> None:
        op = request["op"]
        if op == "run":
            self._run(request)
        elif op == "complete":
            self._complete(request)
        elif op == "setup":
            problem = self._setup(request)
            self._channel.send(b"A", wire.encode({"problem": problem}))

    def _setup(self, request: Mapping[str, Any]) -> str:
        env = {str(name): value for name, value in (request.get("env") or {}).items()}
        _change_env(env)
        if "PYTHONPATH" in env:
            sys.path[1:1] = [path for path in (env["PYTHONPATH"] or "").split(os.pathsep) if path not in sys.path]
        if "TZ" in env:
            time.tzset()
        cwd, trouble = request.get("cwd"), ""
        if cwd:
            try:
                os.chdir(cwd)
            except OSError as problem:
                trouble = f"cannot work in {cwd}: {problem.strerror}"
        self._engine.setup(env)
        return trouble

    def _complete(self, request: Mapping[str, Any]) -> None:
        code, cursor = str(request.get("code") or ""), request.get("cursor")
        if not isinstance(cursor, int) or not 0 <= cursor <= len(code):
            cursor = len(code)
        answer: dict[str, Any] = {"matches": [], "start": cursor, "end": cursor}
        try:
            self._interrupts.is_armed = True
            answer.update(self._engine.complete(code, cursor))
        except BaseException:  # noqa: BLE001, S110 - whatever objects of the code do when they are asked for their names
            pass
        finally:
            self._interrupts.is_armed = False
        matches = [wire.cut(str(match), 1024) for match in answer["matches"][:500]]
        line = wire.encode(dict(answer, t="completed", id=request.get("id"), matches=matches))
        self._channel.send(b"A", line)

    def _run(self, request: Mapping[str, Any]) -> None:
        self._count += 1
        self._sink.run = str(request.get("run") or "")
        before = _change_env({str(name): value for name, value in (request.get("env") or {}).items()})
        self._streams.mend()
        self._interrupts.install()
        failure: Failure | None = failure_of(KeyboardInterrupt())
        try:
            failure = self._attempt(str(request.get("code") or ""))
        except KeyboardInterrupt:
            self._interrupts.is_armed = False
        if not self._channel.is_ours:
            self._leave_copy(failure)
        self._streams.mend()
        self._streams.wait_taken()
        if failure is not None:
            self._sink.error(failure)
        _change_env(before)
        # What else an interrupted run raises in the end comes of the interrupt.
        was_interrupted = self._page.interrupted == self._count or (failure and failure.name == "KeyboardInterrupt")
        status = "ok" if failure is None else "interrupted" if was_interrupted else "error"
        line = wire.encode({"t": "done", "run": self._sink.run, "status": status, "count": self._count})
        self._channel.send(b"D", line)

    def _attempt(self, code: str) -> Failure | None:
        try:
            self._interrupts.is_armed = True
            if self._page.interrupted == self._count:
                raise KeyboardInterrupt
            return self._engine.run(code, self._count)
        except BaseException as problem:  # noqa: BLE001 - what code raises is what it is run for
            return failure_of(problem)
        finally:
            self._interrupts.is_armed = False

    def _leave_copy(self, failure: Failure | None) -> None:
        """The code made a copy of this process and let it run on: its end is here."""
        if failure is not None and failure.name != "SystemExit":
            sys.stderr.write("\n".join(failure.traceback) + "\n")
        self._streams.flush()
        code = 0 if failure is None else 1
        if failure is not None and failure.name == "SystemExit" and failure.value.isdigit():
            code = int(failure.value) & 255
        os._exit(code)


def _change_env(env: Mapping[str, str | None]) -> dict[str, str | None]:
    """Set variables, None removes; gives back what puts it as it was."""
    before: dict[str, str | None] = {}
    for name, value in env.items():
        before[name] = os.environ.get(name)
        try:
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = str(value)
        except (OSError, ValueError):
            before.pop(name)  # a name that no environment can have
    return before
