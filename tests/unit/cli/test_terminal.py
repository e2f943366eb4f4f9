from __future__ import annotations

import io
import json

import pytest

from cove.cli.terminal import as_json, clean, duration, has_colour, pick, size, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "text",
    ["\x1b[31mred", "a\rb", "a\x07", "\x9b31m", "\x7f", "a\u202eb", "a\u2066b", "\x00", "a\u2028b"],
)
def test_control_characters_never_reach_the_terminal(text: str) -> None:
    assert not [c for c in clean(text) if not c.isprintable()]


def test_cleaned_text_stays_one_line_and_keeps_what_people_write() -> None:
    assert clean("größe\n東京\tx") == "größe 東京 x"


def test_json_lines_hold_no_control_characters_either() -> None:
    line = as_json({"name": "a\x1b\x9b\x7f\u202eé"})
    assert line.isprintable()
    assert json.loads(line) == {"name": "a\x1b\x9b\x7f\u202eé"}


def test_no_color_and_dumb_terminals_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colour(Terminal())
    assert not has_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colour(Terminal())


def test_a_table_is_aligned_and_has_no_trailing_blanks() -> None:
    text = table(("A", "LONG"), [("xyz", 1), ("q\x1b[1m", "")], lambda _c, _t: None)
    assert text.splitlines() == ["A     LONG", "xyz   1", "q[1m"]


def test_picked_fields_come_in_the_order_asked_for() -> None:
    assert list(pick({"a": 1, "b": 2, "c": 3}, ("c", "a", "z"))) == ["c", "a"]
    assert pick({"a": 1}, ()) == {"a": 1}


def test_durations_and_sizes_have_one_unit() -> None:
    assert [duration(s) for s in (0.004, 2, 1680, 10800, 432000)] == ["4ms", "2s", "28m", "3h", "5d"]
    assert [size(n) for n in (0, 1023, 1536, 41 << 20, 3 << 40)] == ["0B", "1023B", "1.5K", "41M", "3.0T"]
