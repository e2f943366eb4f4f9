"""Large texts of a sandbox leave in pieces and are the same JSON as in one piece."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.edge import texts
from cove.edge.texts import PIECE_BYTES, TextsJson


class Wire:
    """An exchange that collects."""

    def __init__(self) -> None:
        self.body = b""
        self.largest = 0

    async def start(self, status: int, headers: Any) -> None:
        assert status == 200
        assert headers

    async def write(self, data: bytes, *, more: bool = True) -> None:
        del more
        self.body += data
        self.largest = max(self.largest, len(data))


async def delivered(out: bytes, err: bytes, encoding: str) -> tuple[dict[str, Any], int]:
    wire = Wire()
    value = {"exit_code": 0, "stdout": "", "stderr": "", "encoding": encoding}
    await TextsJson(value, {"stdout": out, "stderr": err}, encoding).deliver(wire, None)  # type: ignore[arg-type]
    return json.loads(wire.body), wire.largest


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])
async def test_every_size_comes_back(size: int) -> None:
    data = bytes(n % 256 for n in range(size))
    found, _ = await delivered(data, b"e", "base64")
    assert base64.b64decode(found["stdout"]) == data
    found, largest = await delivered(data, b"e", "utf-8")
    assert found["stdout"] == data.decode(errors="replace")
    assert (found["stderr"], found["exit_code"]) == ("e", 0)
    assert largest <= 6 * PIECE_BYTES


async def test_a_character_across_two_pieces_is_one() -> None:
    data = b"x" * (PIECE_BYTES - 1) + "é😀".encode()
    found, _ = await delivered(data, b"", "utf-8")
    assert found["stdout"] == data.decode()


@given(st.binary(max_size=50))
def test_pieces_equal_the_whole(data: bytes) -> None:
    original = texts.PIECE_BYTES
    texts.PIECE_BYTES = 3  # type: ignore[misc]
    try:
        joined = b'"' + b"".join(texts._pieces(data, "utf-8")) + b'"'
    finally:
        texts.PIECE_BYTES = original  # type: ignore[misc]
    assert json.loads(joined) == data.decode(errors="replace")
