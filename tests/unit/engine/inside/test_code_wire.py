"""Lines, text and results of kernels, whatever comes in."""

from __future__ import annotations

import ast
import base64
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.inside import __file__ as inside
from cove.engine.inside.code import wire

ANY_TEXT = st.text(st.characters(codec=None), max_size=300)  # lone surrogates included


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(
    st.lists(st.binary(max_size=50).map(lambda line: line.replace(b"\n", b"")), max_size=20), st.lists(st.integers(0))
)
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    reader = wire.Lines()
    found = [line for part in split(b"".join(line + b"\n" for line in lines), cuts) for line in reader.feed(part)]
    assert found == lines


def test_a_line_without_end_is_refused_when_it_is_too_long() -> None:
    reader = wire.Lines()
    assert list(reader.feed(b"x" * wire.LINE_BYTES)) == []
    with pytest.raises(ValueError, match="too long"):
        list(reader.feed(b"x"))


@given(st.binary(max_size=400), st.lists(st.integers(0)))
def test_text_is_the_same_however_its_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    reader = wire.Text()
    assert "".join([*(reader.feed(part) for part in split(data, cuts)), reader.end()]) == data.decode(errors="replace")


@given(ANY_TEXT)
def test_what_is_cleaned_is_utf8_and_loses_nothing_else(text: str) -> None:
    cleaned = wire.clean(text)
    assert cleaned.encode().decode() == cleaned
    if not any("\ud800" <= one <= "\udfff" for one in text):
        assert cleaned == text


@given(st.dictionaries(ANY_TEXT, ANY_TEXT | st.integers() | st.booleans() | st.none(), max_size=5))
def test_a_message_is_one_line_of_json(message: dict[str, object]) -> None:
    line = wire.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert isinstance(json.loads(line), dict)


@given(
    st.dictionaries(
        st.sampled_from(["text/plain", "text/html", "image/png", "application/json", "application/x+json"]),
        ANY_TEXT | st.binary(max_size=100) | st.lists(st.floats() | st.integers(), max_size=3),
    ),
    st.integers(0, 400_000),
)
def test_a_result_comes_in_lines_that_are_short_enough_and_is_whole(data: dict[str, object], more: int) -> None:
    values = wire.bundle({**data, "text/markdown": "é" * more})
    pieces: dict[str, str] = {}
    *before, last = map(json.loads, wire.result("r", values, {"a": 1}, main=True))
    assert all(len(line) <= wire.LINE_BYTES for line in wire.result("r", values, {}))
    for piece in before:
        assert piece["t"] == "piece"
        pieces[piece["mime"]] = pieces.get(piece["mime"], "") + piece["d"]
    assert {mime: pieces.get(mime, "") + rest for mime, rest in last["data"].items()} == values
    for mime, text in values.items():
        if wire.is_json(mime) and not isinstance(data[mime], bytes):
            json.loads(text)


def test_bytes_are_base64_and_numbers_that_json_lacks_are_null() -> None:
    values = wire.bundle({"image/png": b"\x00\xff", "application/json": {"a": [float("nan"), 1]}, "text/plain": 5})
    assert base64.b64decode(values["image/png"]) == b"\x00\xff"
    assert json.loads(values["application/json"]) == {"a": [None, 1]}
    assert values["text/plain"] == "5"


@given(ANY_TEXT, ANY_TEXT, st.lists(ANY_TEXT, max_size=600), st.integers(1, 3000))
def test_an_error_fits_into_a_line(name: str, value: str, lines: list[str], times: int) -> None:
    assert len(wire.error("r", name * times, value * times, [line * times for line in lines])) <= wire.LINE_BYTES


def test_metadata_that_is_no_json_or_too_large_is_left_out() -> None:
    for meta in ({"a": object()}, {"a": "x" * (1 << 20)}, {"a": float("inf")}):
        (line,) = wire.result("r", {"text/plain": "v"}, meta)
        assert json.loads(line)["meta"] == {}


@pytest.mark.parametrize("path", sorted((Path(inside).parent / "code").glob("*.py")), ids=lambda path: path.name)
def test_the_files_are_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
