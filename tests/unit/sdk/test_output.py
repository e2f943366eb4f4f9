"""From events to chunks, and what a result keeps."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.sdk import output
from cove.sdk.errors import BadAnswer
from cove.sdk.output import OutputReader
from cove.sdk.results import Exit, Result, Tail


@given(st.text(max_size=40), st.lists(st.integers(0, 160), max_size=6))
def test_text_is_whole_however_the_bytes_are_cut(text: str, cuts: list[int]) -> None:
    text = text.encode("utf-8", "replace").decode()
    data = text.encode()
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = OutputReader()
    chunks = [reader.chunk("stdout", data[a:b]) for a, b in pairwise(borders)]
    chunks += reader.end(Exit(0))
    assert "".join(chunk.text for chunk in chunks) == text
    assert b"".join(chunk.data for chunk in chunks) == data
    assert reader.seen == len(data)


def test_a_character_that_never_became_whole_is_shown_at_the_end() -> None:
    reader = OutputReader()
    assert reader.chunk("stderr", b"a\xc3").text == "a"
    assert [(chunk.stream, chunk.data, chunk.text) for chunk in reader.end(Exit(0))] == [("stderr", b"", "\ufffd")]


def test_the_streams_do_not_share_characters() -> None:
    reader = OutputReader()
    assert reader.chunk("stdout", b"\xc3").text + reader.chunk("stderr", b"x").text == "x"
    assert reader.chunk("stdout", b"\xa9").text == "é"


@given(st.lists(st.binary(max_size=9), max_size=30), st.integers(1, 12))
def test_a_tail_is_the_end_of_all_that_was_added(pieces: list[bytes], limit: int) -> None:
    tail, whole = Tail(limit), b"".join(pieces)
    for piece in pieces:
        tail.add(piece)
    assert tail.bytes() == whole[-limit:]
    assert tail.dropped == max(0, len(whole) - limit)


def test_a_result_keeps_the_end_of_each_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "KEEP_BYTES", 4)
    reader = OutputReader(keep=True)
    assert reader.result() is None
    reader.chunk("stdout", b"123456")
    list(reader.end(Exit(1, why="timeout")))
    result = reader.result()
    assert result is not None
    assert (result.out, result.out_dropped, result.err, result.exit, result.ok) == ("3456", 2, "", 1, False)


@pytest.mark.parametrize("data", [b"event: stdout\ndata: {\n\n", b"event: stdout\ndata: [1]\n\n"])
def test_damaged_events_do_no_harm(data: bytes) -> None:
    with contextlib.suppress(BadAnswer):
        assert [chunk.data for chunk in OutputReader().feed(data)] == [b""]


@pytest.mark.parametrize(
    ("wire", "exit_code", "ok"),
    [
        ({"exit_code": 0, "why": "exited"}, 0, True),
        ({"exit_code": 0, "why": "timeout"}, 0, False),
        ({"exit_code": None, "signal": 9, "why": "killed"}, 137, False),
        ({"exit_code": None, "why": "sandbox-gone"}, -1, False),
        ({}, -1, False),
    ],
)
def test_an_end_is_ok_only_when_the_command_said_so(wire: dict[str, Any], exit_code: int, ok: bool) -> None:  # noqa: FBT001
    end = Exit.from_wire(wire)
    assert (end.exit, end.ok) == (exit_code, ok)


def test_bytes_that_are_no_text_are_kept_as_they_were() -> None:
    result = Result.from_wire({"exit_code": 0, "stdout": "/wA=", "encoding": "base64", "stdout_dropped_bytes": 5})
    assert (result.out_bytes, result.out, result.out_dropped) == (b"\xff\x00", "\ufffd\x00", 5)
