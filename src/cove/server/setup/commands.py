"""Runs the machine's own programs for setup: no shell, no questions, a time limit, and an error that says what to do.

Not for sandboxes. Every child gets a session of its own, so that an interrupt ends the whole of it (apt and mmdebstrap
start many) and never half.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.server.setup.settings import SetupFailed

TAIL_LINES: Final = 12
_KILL_GRACE_S: Final = 10.0
_UNINHERITED: Final = ("APT_CONFIG", "DEBIAN_FRONTEND", "LC_ALL", "LANG", "LANGUAGE", "SOURCE_DATE_EPOCH")


class Command(Struct, frozen=True, kw_only=True):
    """One program to run. `what` names it in an error ("apt-get update"), `cure` is the advice there."""

    argv: Sequence[str | Path]
    what: str
    cure: str
    timeout_s: float = 600.0
    env: Mapping[str, str] = {}
    cwd: Path | None = None
    accept: tuple[int, ...] = (0,)


class Runner:
    """Runs commands and can end all that are running; shared by the threads of one setup."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, command: Command) -> str:
        """Run it to its end and return stdout. stderr is kept for the error.

        Raises: SetupFailed when it is not installed, fails, or passes its time limit (it is killed).
        """
        child = self._start(command)
        try:
            out, err = child.communicate(timeout=command.timeout_s)
        except subprocess.TimeoutExpired as error:
            raise SetupFailed(
                f"{command.what} did not end within {command.timeout_s:.0f} s", cure=command.cure
            ) from error
        finally:
            self._end(child)
        stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
        if child.returncode not in command.accept:
            tail = _tail(stderr) or _tail(stdout)
            raise SetupFailed(
                f"{command.what} failed (exit {child.returncode})" + (f":\n{tail}" if tail else ""),
                cure=command.cure,
                internal=(stdout + stderr)[-8000:],
            )
        return stdout

    def kill_all(self) -> None:
        """End every running command, and refuse new ones. Called when setup is interrupted or a sibling failed."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            _signal_group(child, signal.SIGTERM)

    def _start(self, command: Command) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if name not in _UNINHERITED}
        env |= {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **command.env}
        with self._lock:
            if self._stopped:
                raise SetupFailed(f"{command.what} was not started: setup is ending", cure="run setup again")
            try:
                child = subprocess.Popen(
                    [os.fspath(arg) for arg in command.argv],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=env,
                    cwd=command.cwd,
                    start_new_session=True,
                )
            except OSError as error:
                raise SetupFailed(
                    f"{command.what} could not be started: {error.strerror}", cure=command.cure
                ) from error
            self._running.add(child)
        return child

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        if child.poll() is None:
            _signal_group(child, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_KILL_GRACE_S)
        if child.returncode != 0:
            # It may have died before its own children, which must not go on writing where we sweep.
            _signal_group(child, signal.SIGKILL)
            child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        with self._lock:
            self._running.discard(child)


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join("  " + line[:300] for line in lines[-TAIL_LINES:])
