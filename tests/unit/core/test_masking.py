"""Secrets out of output: wherever the pieces are cut, the text is the same."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cove.core.masking import Clipped, Masker, mask


def plainly(text: str, secrets: list[str]) -> str:
    """What a whole text becomes: the longest secret first."""
    found = sorted({one for one in secrets if one}, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, found)), "***", text) if found else text


@given(st.text("abcé", max_size=40), st.lists(st.text("abé", max_size=5), max_size=4), st.lists(st.integers(1, 6)))
def test_pieces_change_nothing(text: str, secrets: list[str], cuts: list[int]) -> None:
    data, told, masker = text.encode(), "", Masker(secrets)
    for cut in cuts:
        told += masker.feed(data[:cut])
        data = data[cut:]
    told += masker.feed(data) + masker.finish()
    assert told == plainly(text, secrets)


def test_the_longest_wins() -> None:
    assert mask("abcdef abc", ["abc", "abcdef"]) == "*** ***"


def test_what_may_be_a_secret_waits_and_nothing_else_does() -> None:
    masker = Masker(["secret"])
    assert masker.feed(b"prompt> ") == "prompt> "
    assert masker.feed(b"a sec") == "a "
    assert masker.feed(b"ond") == "second"
    assert masker.feed(b"sec") == ""
    assert masker.finish() == "sec"


def test_bytes_that_are_no_text_are_told_as_such() -> None:
    masker = Masker([])
    assert masker.feed(b"\xc3") == ""
    assert masker.feed(b"\xa4\xff") == "ä\ufffd"


def test_a_limit_keeps_the_head_and_counts_all() -> None:
    clipped = Clipped(["topsecret"], 5)
    for piece in (b"ab", b"topsec", b"ret", b"tail"):
        clipped.feed(piece)
    assert clipped.finish() == "ab***"
    assert clipped.total == 9
    assert clipped.is_cut
    exact = Clipped([], 2)
    exact.feed(b"ab")
    assert (exact.finish(), exact.is_cut) == ("ab", False)


def test_a_limit_cuts_no_character() -> None:
    clipped = Clipped([], 3)
    clipped.feed("ää".encode())
    assert clipped.finish() == "ä"
