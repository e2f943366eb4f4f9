"""The wire format of protocol buffers, as far as criu's messages and images need it. Pure, bounded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

_LONGEST_VARINT: Final = 10
_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5

Value = int | bytes


class Malformed(ValueError):
    """These bytes are no message."""


def varint(number: int) -> bytes:
    """`number`, which is not negative, as a varint."""
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 (seven bits a byte)
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: int | str | bytes) -> bytes:
    """One field: an int or bool as a varint, a text or message with its length."""
    if isinstance(value, int):
        return varint(number << 3 | _VARINT) + varint(int(value))
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _BYTES) + varint(len(raw)) + raw


def fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a message in their order. Raises: Malformed."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _read_varint(data, at)
        elif kind in {_FIXED32, _FIXED64}:
            length = 4 if kind == _FIXED32 else 8
        else:
            raise Malformed(f"wire type {kind}")
        if length > len(data) - at:
            raise Malformed("a field is longer than its message")
        piece, at = data[at : at + length], at + length
        yield number, piece if kind == _BYTES else struct.unpack("<I" if kind == _FIXED32 else "<Q", piece)[0]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:  # noqa: PLR2004 (the top bit: more follow)
            return number, at + index + 1
    raise Malformed("a number does not end")


def first(data: bytes, number: int) -> Value | None:
    """The first value of field `number`. Raises: Malformed."""
    return next((value for found, value in fields(data) if found == number), None)


def number_of(data: bytes, number: int, default: int = 0) -> int:
    """Field `number`, a number. Raises: Malformed when it is none."""
    value = first(data, number)
    if value is None:
        return default
    if not isinstance(value, int):
        raise Malformed(f"field {number} is no number")
    return value


def bytes_of(data: bytes, number: int) -> bytes:
    """Field `number`, a text or message; empty when it is not there. Raises: Malformed when it is a number."""
    value = first(data, number)
    if value is None:
        return b""
    if not isinstance(value, bytes):
        raise Malformed(f"field {number} is a number")
    return value
