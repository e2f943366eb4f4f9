"""JSON answers with large texts from a sandbox, made and sent in pieces. No dialect's field names.

A sandbox decides how much a command prints and of what: encoded in one piece, 20 MiB of NUL bytes are 120 MiB of JSON
and half a second in which the server answers nobody. Here each piece is 64 KiB, with a turn of the loop between.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from cove.edge.exchange import Exchange
from cove.edge.ops import JSON, ErrorWriter

PIECE_BYTES: Final = 64 * 1024 // 3 * 3
"""A multiple of three, so that base64 of the pieces is base64 of the whole."""

_ENCODE: Final = msgspec.json.Encoder().encode


class TextsJson:
    """A JSON object whose fields `texts` hold bytes of a sandbox.

    Args:
        value: the object, with an empty string in each of those fields, in the order of `texts`, one after the other.
        texts: the bytes, by field.
        encoding: `utf-8` (what is none becomes U+FFFD) or `base64`.
    """

    __slots__ = ("_encoding", "_texts", "_value")

    def __init__(self, value: object, texts: Mapping[str, bytes], encoding: str) -> None:
        self._value = value
        self._texts = texts
        self._encoding = encoding

    async def deliver(self, exchange: Exchange, table: ErrorWriter) -> None:
        """Send it, a piece at a time."""
        del table
        empty = ",".join(f'"{name}":""' for name in self._texts).encode()
        head, _, tail = _ENCODE(self._value).partition(empty)
        await exchange.start(200, [(b"content-type", JSON)])
        before = head
        for name, data in self._texts.items():
            await exchange.write(before + f'"{name}":"'.encode())
            for piece in _pieces(data, self._encoding):
                await exchange.write(piece)
                await asyncio.sleep(0)
            before = b'",'
        await exchange.write(b'"' + tail, more=False)


def _pieces(data: bytes, encoding: str) -> Iterator[bytes]:
    view = memoryview(data)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for start in range(0, len(data), PIECE_BYTES):
        piece = view[start : start + PIECE_BYTES]
        if encoding == "base64":
            yield base64.b64encode(piece)
        else:
            is_last = start + PIECE_BYTES >= len(data)
            yield _ENCODE(decoder.decode(piece, is_last))[1:-1]
