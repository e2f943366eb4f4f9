"""Frames of the agent protocol: encoding, and an incremental decoder. Pure, no I/O.

Layout and kinds are agent/PROTOCOL.md sections 1 and 2; `agent/testdata/frames.json` holds both sides to them.
To add a kind: the table there, `Kind`, a row in `FROM_AGENT` if the agent may send it, a golden vector.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from struct import Struct
from types import MappingProxyType
from typing import Final, NamedTuple

from cove.model.errors import AgentViolation

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
INITIAL_CREDIT_BYTES: Final = 1024 * 1024
HEADER: Final = Struct(">IBI")

_SMALL_BUFFER: Final = 64 * 1024
"""At rest one connection holds this much address space; pages that nothing was read into cost no memory."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 0x01
    CALL = 0x02
    RESULT = 0x03
    FAIL = 0x04
    EVENT = 0x05
    DATA = 0x06
    DATA_ERR = 0x07
    EOF = 0x08
    CREDIT = 0x09
    CANCEL = 0x0A
    PING = 0x0B
    PONG = 0x0C


FROM_AGENT: Final = MappingProxyType(
    {
        Kind.HELLO: 64 * 1024,
        Kind.RESULT: MAX_PAYLOAD_BYTES,
        Kind.FAIL: 16 * 1024,  # a text of 1024 bytes, escaped by JSON to six times that at most
        Kind.EVENT: 64 * 1024,  # a stat of two paths of 4096 bytes, escaped
        Kind.DATA: MAX_PAYLOAD_BYTES,
        Kind.DATA_ERR: MAX_PAYLOAD_BYTES,
        Kind.EOF: 0,
        Kind.CREDIT: 4,
        Kind.PONG: 64,
    },
)
"""The kinds an agent may send, with the largest payload of each in bytes."""


class Frame(NamedTuple):
    """One received frame."""

    kind: Kind
    channel: int
    payload: bytes


def encode(kind: Kind, channel: int, payload: bytes = b"") -> bytes:
    """One frame as bytes. Raises: ValueError for a payload over 1 MiB."""
    return encode_header(kind, channel, len(payload)) + payload


def encode_header(kind: Kind, channel: int, length: int) -> bytes:
    """The 9 bytes in front of a payload that is sent separately, so that it need not be copied."""
    if length > MAX_PAYLOAD_BYTES:
        raise ValueError(f"payload of {length} bytes")
    return HEADER.pack(length, kind, channel)


class Decoder:
    """Turns received bytes into frames, whatever the pieces they come in.

    Used as `space()`, fill a prefix of it, `received(n)`, then `frames()` until `has_frame` is false; it never holds
    more than one largest frame. A breach raises AgentViolation, before any memory is taken for it, and leaves the
    decoder unusable.
    """

    def __init__(self) -> None:
        self._buffer = bytearray(_SMALL_BUFFER)
        self._start = 0
        self._end = 0
        self.has_frame = False

    def space(self) -> memoryview:
        """Where the next bytes go: never empty while there is no whole frame."""
        if self._start == self._end:
            self._start = self._end = 0
        return memoryview(self._buffer)[self._end :]

    def received(self, count: int) -> None:
        """Take note of `count` more bytes in the space."""
        self._end += count
        self.has_frame = True  # perhaps; `frames` finds out

    def frames(self, limit: int = sys.maxsize) -> list[Frame]:
        """Up to `limit` of the frames that are complete; `has_frame`: there may be more. Raises: AgentViolation."""
        frames: list[Frame] = []
        view = memoryview(self._buffer)
        needed = HEADER.size
        while (available := self._end - self._start) >= HEADER.size:
            if len(frames) == limit:
                return frames
            length, number, channel = HEADER.unpack_from(view, self._start)
            kind = _checked(number, length)
            needed = HEADER.size + length
            if available < needed:
                break
            payload = bytes(view[self._start + HEADER.size : self._start + needed])
            frames.append(Frame(kind, channel, payload))
            self._start += needed
            needed = HEADER.size
        self.has_frame = False
        self._make_room(needed)
        return frames

    def feed(self, data: bytes) -> list[Frame]:
        """`space`, `received` and `frames` over bytes that are already in memory. Raises: AgentViolation."""
        frames: list[Frame] = []
        rest = memoryview(data)
        while rest:
            space = self.space()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            rest = rest[count:]
            self.received(count)
            frames += self.frames()
        return frames

    @property
    def is_between_frames(self) -> bool:
        """Whether no half frame is held."""
        return self._start == self._end

    def relax(self) -> None:
        """Give a grown buffer back; call it when the connection falls idle. Does nothing inside a frame."""
        if self.is_between_frames and len(self._buffer) > _SMALL_BUFFER:
            self._buffer = bytearray(_SMALL_BUFFER)
            self._start = self._end = 0

    def _make_room(self, needed: int) -> None:
        # The old buffer is replaced, never resized: the transport may still hold a view of it.
        if self._start + needed <= len(self._buffer) and self._end < len(self._buffer):
            return
        held = self._buffer[self._start : self._end]
        self._buffer = bytearray(max(needed, len(self._buffer)))
        self._buffer[: len(held)] = held
        self._start, self._end = 0, len(held)


_KINDS: Final = MappingProxyType({int(kind): kind for kind in FROM_AGENT})


def _checked(number: int, length: int) -> Kind:
    kind = _KINDS.get(number)
    if kind is None:
        raise AgentViolation("the sandbox's agent broke the protocol", internal=f"frame of kind {number:#x}")
    if length > FROM_AGENT[kind]:
        raise AgentViolation("the sandbox's agent broke the protocol", internal=f"{kind.name} of {length} bytes")
    return kind
