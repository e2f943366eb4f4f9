"""A sitting on a real pseudo-terminal, at a terminal that a small server in this process plays."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from terminals_support import FakeTerminal, echo, running, up_to

PROGRAM = """
import sys
import cove
from cove.cli import interactive
from cove.cli.interactive import Interaction
from cove.sdk.terminals import Terminal
interactive.FLUSH_S = 60.0  # somebody reads here: what was typed before leaving arrives
sitting = Interaction(Terminal("box", "t1", client=cove.Client(sys.argv[1], "k")), replayed=int(sys.argv[2]))
print("READY", flush=True)
exit_ = sitting.run()
print("LEFT", exit_.exit if exit_ else None, flush=True)
"""
LIMIT_S = 60.0


class Window:
    """A pseudo-terminal with a sitting in it."""

    def __init__(self, fake: FakeTerminal, replayed: int = 0) -> None:
        self.ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, fake.url, str(replayed)],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, text: bytes) -> bytes:
        deadline = time.monotonic() + LIMIT_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen[-2000:]
            if select.select([self.ours], [], [], 0.1)[0]:
                self.seen += os.read(self.ours, 65536)
        return self.seen

    def wait_begun(self) -> None:
        """Wait until it reads keys as they are."""
        self.wait_for(b"READY")
        deadline = time.monotonic() + LIMIT_S
        while termios.tcgetattr(self.theirs) == self.before:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTerminal]:
    with running(tmp_path) as fake:
        fake.acts = [echo]
        yield fake


@pytest.fixture
def window(fake: FakeTerminal) -> Iterator[Window]:
    window = Window(fake)
    window.wait_begun()
    yield window
    window.close()


def test_keys_go_there_as_they_are_and_the_end_comes_back(fake: FakeTerminal, window: Window) -> None:
    keys = b"\x03\x1a\x11\x13\x04\x7f\r~~."
    window.type(keys)
    window.wait_for(b"\r~.")
    assert fake.wait_typed(len(keys) - 1) == keys.replace(b"~~", b"~")
    assert termios.tcgetattr(window.theirs) != window.before
    fake.exit = {"exit": 5, "why": "exited", "signal": None}
    window.type(b"\x1b[?1049hexit")
    seen = window.wait_for(b"LEFT 5")
    assert b"\x1b[?1049l" in seen[seen.index(b"exit") :]
    assert termios.tcgetattr(window.theirs) == window.before


def test_help_and_detach_are_ours(fake: FakeTerminal, window: Window) -> None:
    window.type(b"a")
    fake.wait_typed(1)
    window.type(b"\r~?")
    window.wait_for(b"~.   detach; the program goes on\r\n")
    window.type(b"~.")
    assert b"~.\r\n" in window.wait_for(b"LEFT None")
    assert window.process.wait(60) == 0
    assert fake.wait_typed(2) == b"a\r"
    assert termios.tcgetattr(window.theirs) == window.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_puts_the_terminal_right(fake: FakeTerminal, window: Window, number: signal.Signals) -> None:
    window.type(b"\x1b[?25l\x1b[?1000h")
    window.wait_for(b"\x1b[?1000h")
    fake.wait_typed(8)
    window.process.send_signal(number)
    window.wait_for(b"\x1b[?1000l")
    assert b"\x1b[?25h" in window.seen
    assert window.process.wait(60) == 128 + number
    assert termios.tcgetattr(window.theirs) == window.before


def test_a_closed_window_detaches(fake: FakeTerminal) -> None:
    window = Window(fake)
    window.wait_begun()
    window.type(b"a")
    fake.wait_typed(1)
    os.close(window.ours)
    window.process.wait(60)
    os.close(window.theirs)


def test_a_broken_connection_is_told_and_old_questions_stay_unasked(fake: FakeTerminal) -> None:
    fake.output = b"old\x1b[6n|new\x1b[5n|"
    fake.acts = [up_to(len(fake.output), 1012), echo]
    fake.typed += fake.output
    window = Window(fake, replayed=8)
    window.wait_for(b"[cove: attached again]\r\n")
    window.type(b"exit")
    seen = window.wait_for(b"LEFT 0")
    assert seen.index(b"old|new\x1b[5n|") < seen.index(b"[cove: connection lost, attaching again")
    window.close()
