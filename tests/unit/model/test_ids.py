from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cove.model.ids import ADJECTIVES, NOUNS, is_core_id, is_name, new_core_id, new_name


def test_new_ids_and_names_have_their_form() -> None:
    assert all(is_core_id(new_core_id()) for _ in range(100))
    assert all(is_name(new_name()) for _ in range(100))
    assert len({new_core_id() for _ in range(1000)}) == 1000


def test_words_are_distinct_and_fit_a_hostname() -> None:
    for words in (ADJECTIVES, NOUNS):
        assert len(words) == len(set(words))
        assert all(is_name(word) for word in words)


@given(st.text(max_size=80))
def test_a_name_is_a_label(text: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    is_label = 1 <= len(text) <= 63 and set(text) <= allowed and text[0] != "-" and text[-1] != "-"
    assert is_name(text) is is_label
