from __future__ import annotations

import io
import time

import pytest

from cove.cli.progress import waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_short_wait_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with waiting("Waiting"):
        pass
    assert terminal.getvalue() == ""


def test_a_long_wait_names_what_it_waits_for_and_leaves_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with waiting("Waiting for the moon"):
        time.sleep(0.6)
    assert "Waiting for the moon 0 s" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_without_a_terminal_or_when_quiet_there_is_none(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    with waiting("Waiting", quiet=stream.isatty()):
        time.sleep(0.5)
    assert stream.getvalue() == ""
