from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.core.secrets import MasterKey, Secrets, new_master_key
from cove.model.credentials import Secret
from cove.model.errors import EngineFailure

ROW = ("credential", "default", "sb", "openai")


def secrets(*ring: MasterKey) -> tuple[Secrets, list[tuple[MasterKey, ...]]]:
    saved: list[tuple[MasterKey, ...]] = []
    return Secrets(ring or (new_master_key(),), saved.append), saved


@given(st.text())
def test_what_is_sealed_opens_and_is_never_sealed_alike(text: str) -> None:
    ours, _ = secrets()
    first, second = ours.seal(Secret(text), *ROW), ours.seal(Secret(text), *ROW)
    assert first != second
    assert ours.open(first, *ROW).reveal() == text


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret("sk-very-secret")
    for text in (repr(secret), str(secret), f"{secret}", repr([secret]), repr(new_master_key().key and secret)):
        assert "very" not in text
    master = new_master_key()
    assert master.key.hex() not in repr(master)
    assert repr(master.key) not in repr(master)


@given(st.integers(min_value=0, max_value=2**20), st.integers(min_value=0, max_value=7))
def test_a_changed_bit_is_seen(place: int, bit: int) -> None:
    ours, _ = secrets()
    sealed = bytearray(ours.seal(Secret("sk-1234567890"), *ROW).encode())
    sealed[place % len(sealed)] ^= 1 << bit
    try:
        found = ours.open(sealed.decode("latin-1"), *ROW).reveal()
    except EngineFailure:
        return
    assert found == "sk-1234567890", "only unused bits of the last base64 letter may differ"


@pytest.mark.parametrize(
    "other",
    [
        ("credential", "default", "sb", "github"),
        ("credential", "default", "sc", "openai"),
        ("credential", "other", "sb", "openai"),
        ("webhook", "default", "sb", "openai"),
        ("credential", "default", "sb"),
        ("credential", "default", 'sb", "openai'),
    ],
)
def test_a_text_that_was_moved_to_another_row_does_not_open(other: tuple[str, ...]) -> None:
    ours, _ = secrets()
    with pytest.raises(EngineFailure) as raised:
        ours.open(ours.seal(Secret("sk-123"), *ROW), *other)
    assert "sk-123" not in f"{raised.value} {raised.value.internal}"


def test_another_servers_key_opens_nothing() -> None:
    ours, _ = secrets()
    theirs, _ = secrets()
    sealed = theirs.seal(Secret("x"), *ROW)
    assert not ours.can_open(sealed)
    for text in (sealed, "", "1", "1.", "1..", "2.x.y", "1.abcd.!!!!"):
        with pytest.raises(EngineFailure):
            ours.open(text, *ROW)


def test_a_rotation_keeps_the_old_key_until_its_end() -> None:
    ours, saved = secrets()
    old = ours.seal(Secret("x"), *ROW)
    ours.begin_rotation()
    assert len(saved[0]) == 2
    assert not ours.is_current(old)
    assert ours.open(old, *ROW).reveal() == "x"
    new = ours.seal(Secret("x"), *ROW)
    assert ours.is_current(new)
    ours.end_rotation()
    assert saved[1] == saved[0][:1]
    assert ours.open(new, *ROW).reveal() == "x"
    with pytest.raises(EngineFailure):
        ours.open(old, *ROW)


def test_a_ring_that_cannot_be_written_is_not_used() -> None:
    def refuse(_: object) -> None:
        raise EngineFailure("the disk is full")

    ours = Secrets((new_master_key(),), refuse)
    sealed = ours.seal(Secret("x"), *ROW)
    with pytest.raises(EngineFailure, match="full"):
        ours.begin_rotation()
    assert ours.is_current(sealed)


def test_what_is_blinded_depends_on_the_key() -> None:
    ours, _ = secrets()
    theirs, _ = secrets()
    assert ours.blind("a") == ours.blind("a") != ours.blind("b")
    assert ours.blind("a") != theirs.blind("a")
    assert len(ours.blind("a")) == 64


async def test_a_rotation_asks_everybody_who_keeps_texts_and_forgets_the_old_key_last() -> None:
    ours, saved = secrets()
    kept = {name: ours.seal(Secret(name), name) for name in ("a", "b")}

    def holder(name: str) -> Callable[[], Awaitable[int]]:
        async def reseal() -> int:
            await asyncio.sleep(0)
            assert len(saved[-1]) == 2, "the old key is still there"
            kept[name] = ours.resealed(kept[name], name) or kept[name]
            return 1

        return reseal

    ours.holders += [holder("a"), holder("b")]
    assert await ours.rotate() == 2
    assert len(saved[-1]) == 1
    for name, sealed in kept.items():
        assert ours.is_current(sealed)
        assert ours.open(sealed, name).reveal() == name
    assert ours.resealed(kept["a"], "a") is None
    assert ours.resealed("1.ffffffff.x", "a") is None


async def test_a_rotation_that_fails_in_the_middle_keeps_both_keys() -> None:
    ours, saved = secrets()
    sealed = ours.seal(Secret("x"), "row")

    async def fails() -> int:
        await asyncio.sleep(0)
        raise EngineFailure("the disk is full")

    ours.holders.append(fails)
    with pytest.raises(EngineFailure):
        await ours.rotate()
    assert len(saved) == 1
    assert len(saved[0]) == 2
    assert ours.open(sealed, "row").reveal() == "x"
