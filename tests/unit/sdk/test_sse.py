"""However the bytes are cut, the events are the same; nothing grows without a bound."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.sdk.errors import BadAnswer
from cove.sdk.sse import MAX_EVENT_BYTES, EventParser

LINE = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=20)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["stdout", "exit", "x"]), st.lists(LINE, min_size=1, max_size=3)), max_size=5
)


def parse(pieces: list[bytes], most_bytes: int = MAX_EVENT_BYTES) -> list[tuple[str, str]]:
    parser = EventParser(most_bytes)
    return [found for piece in pieces for found in parser.feed(piece)]


@given(EVENTS, st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_events_do_not_depend_on_where_the_bytes_are_cut(
    events: list[tuple[str, list[str]]],
    end: str,
    cuts: list[int],
    pings: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    text = "".join(
        (f": ping{end}{end}" if pings else "")
        + f"event: {kind}{end}"
        + "".join(f"data: {line}{end}" for line in lines)
        + end
        for kind, lines in events
    )
    data = text.encode()
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(borders)]
    assert parse(pieces) == [(kind, "\n".join(lines)) for kind, lines in events]


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_no_bytes_break_it(pieces: list[bytes]) -> None:
    for kind, data in parse(pieces):
        assert isinstance(kind, str)
        assert isinstance(data, str)


def test_what_was_never_finished_is_no_event() -> None:
    assert parse([b"event: exit\ndata: {}\n"]) == []


def test_other_fields_and_comments_are_ignored() -> None:
    assert parse([b"id: 1\nretry: 5\n: c\ndata:x\n\nevent: y\n\n"]) == [("message", "x")]


def test_an_endless_event_is_refused() -> None:
    for piece in (b"x" * 30, b"data: " + b"x" * 30 + b"\n"):
        with pytest.raises(BadAnswer, match="larger"):
            parse([piece] * 5, 100)
