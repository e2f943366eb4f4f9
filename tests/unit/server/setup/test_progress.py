from __future__ import annotations

import io
import re
import time

import pytest

from cove.server.setup import progress as module
from cove.server.setup.progress import StderrProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_step_that_is_over_at_once_says_nothing() -> None:
    out = io.StringIO()
    with StderrProgress(out).step("Looking"):
        pass
    assert out.getvalue() == ""


def test_a_noticeable_step_ends_in_one_line_with_its_time() -> None:
    out = io.StringIO()
    with StderrProgress(out).step("Building") as step:
        time.sleep(0.31)
        step.done("Built it")
    assert re.fullmatch(r"Built it in \d+\.\d s\.\n", out.getvalue())


def test_a_failing_step_is_named_however_short_it_was() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError, match="no"), StderrProgress(out).step("Building"):
        raise ValueError("no")
    assert out.getvalue().startswith("Building: failed in")


def test_a_long_step_without_a_terminal_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOTICEABLE_S", 0.01)
    monkeypatch.setattr(module, "LONG_S", 0.02)
    out = io.StringIO()
    with StderrProgress(out).step("Building"):
        time.sleep(0.2)
    assert out.getvalue().count("Building ...\n") == 1
    assert "\x1b" not in out.getvalue()


def test_a_terminal_shows_steps_side_by_side_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOTICEABLE_S", 0.01)
    out = Terminal()
    report = StderrProgress(out)
    with report.step("One"), report.step("Two"):
        time.sleep(0.1)
    assert "One (0 s) · Two (0 s)" in out.getvalue()
    assert out.getvalue().endswith("s.\n")


def test_a_note_is_one_line() -> None:
    out = io.StringIO()
    StderrProgress(out).note("hello")
    assert out.getvalue() == "hello\n"
