"""The server name that a TLS client says first, in the clear. Pure; strict where two readers could differ.

With Encrypted Client Hello this is the outer name: the one whose host unwraps it, and the one that is judged. Sources:
RFC 8446 (records, ClientHello), 6066 section 3 (server_name), 8701 (GREASE: unknown values are skipped).
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

HELLO_BYTES: Final = 16 * 1024
"""Of a ClientHello. Browsers' have 2 KiB with post-quantum keys."""

_RECORDS: Final = 64
_HANDSHAKE: Final = 0x16
_RECORD_HEAD: Final = 5
_RECORD_BYTES: Final = 1 << 14
_CLIENT_HELLO: Final = 1
_CHANGE_CIPHER: Final = 0x14
_PERHAPS_HELLO: Final = (b"", bytes([_CLIENT_HELLO]))
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_SESSION_BYTES: Final = 32


class NotHello(Exception):
    """It begins as TLS does and is no ClientHello that we read. The text is for records of refusals."""


class Hello(Struct, frozen=True):
    """What a ClientHello says. `name` as it stands there, None: none. `size`: bytes of its records."""

    name: str | None
    size: int


def is_tls(data: bytes) -> bool:
    """Whether a connection that begins so is TLS."""
    return data[:1] == bytes([_HANDSHAKE])


def read_hello(data: bytes) -> Hello | None:
    """The ClientHello at the beginning of a connection, None: more bytes are needed. Raises: NotHello."""
    body = bytearray()
    offset = 0
    for _ in range(_RECORDS):
        head = data[offset : offset + _RECORD_HEAD]
        _check_head(head)
        if len(head) < _RECORD_HEAD:
            return None
        length = int.from_bytes(head[3:], "big")
        body += data[offset + _RECORD_HEAD : offset + _RECORD_HEAD + length]
        size = _size(body)
        offset += _RECORD_HEAD + length
        if offset > len(data):
            return None
        if size is not None and len(body) >= size:
            if len(body) > size:
                raise NotHello("a TLS greeting with something behind its end")
            return Hello(_read(bytes(body[4:])), offset)
    raise NotHello("a TLS greeting in too many pieces")


class Repeated:
    """What a client says after its ClientHello, until it is certain that no other ClientHello comes.

    A server may ask for a second one (RFC 8446 section 4.1.4), which passes in the clear and has to name the same
    server.
    """

    def __init__(self, first: Hello) -> None:
        self._name = first.name
        self._skip = first.size
        self._held = b""
        self.is_over = False

    def feed(self, data: bytes) -> bytes:
        """What of all that came so far, and was not returned before, may go on. Raises: NotHello."""
        if self._skip:
            first, data = data[: self._skip], data[self._skip :]
            self._skip -= len(first)
            return first + (self.feed(data) if data else b"")
        self._held += data
        end = 0
        while not self.is_over and len(self._held) - end >= _RECORD_HEAD:
            kind, length = self._held[end], int.from_bytes(self._held[end + 3 : end + 5], "big")
            if kind == _CHANGE_CIPHER and length == 1:
                if len(self._held) < end + _RECORD_HEAD + length:
                    break
                end += _RECORD_HEAD + length
                continue
            if kind == _HANDSHAKE and self._held[end + _RECORD_HEAD : end + _RECORD_HEAD + 1] in _PERHAPS_HELLO:
                again = read_hello(self._held[end:])
                if again is None:
                    break
                if again.name != self._name:
                    raise NotHello("a second TLS greeting with another server name")
            self.is_over = True
        if self.is_over:
            end = len(self._held)
        passed, self._held = self._held[:end], self._held[end:]
        return passed


def _check_head(head: bytes) -> None:
    if not bytes([_HANDSHAKE, 3]).startswith(head[:2]):
        raise NotHello("no TLS greeting")
    if len(head) == _RECORD_HEAD and not 0 < int.from_bytes(head[3:], "big") <= _RECORD_BYTES:
        raise NotHello("a TLS record of no lawful size")


def _size(body: bytearray) -> int | None:
    """Of the handshake message, its head included. Raises: NotHello."""
    if body and body[0] != _CLIENT_HELLO:
        raise NotHello("no TLS greeting")
    if len(body) < 4:  # noqa: PLR2004 - the type and three bytes of length
        return None
    size = 4 + int.from_bytes(body[1:4], "big")
    if size > HELLO_BYTES:
        raise NotHello("a TLS greeting that is too long")
    return size


class _Reader:
    """Takes a message apart from its front. Raises: NotHello (it ends too early)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __len__(self) -> int:
        return len(self._data) - self._at

    @property
    def is_empty(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise NotHello("a TLS greeting that ends too early")
        self._at += count
        return piece

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def vector(self, count: int) -> _Reader:
        """What follows its length of `count` bytes."""
        return _Reader(self.take(self.number(count)))

    def end(self) -> None:
        if not self.is_empty:
            raise NotHello("a TLS greeting with something behind its end")


def _read(message: bytes) -> str | None:
    """The server name in a ClientHello without its head. Raises: NotHello."""
    reader = _Reader(message)
    reader.take(2 + 32)  # the version of old and the random bytes
    if reader.number(1) > _SESSION_BYTES:
        raise NotHello("a TLS session of no lawful size")
    reader = _Reader(message[34:])
    reader.vector(1)
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression
    if reader.is_empty:
        return None
    extensions = reader.vector(2)
    reader.end()
    names: list[str] = []
    while not extensions.is_empty:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind == _SERVER_NAME:
            names.append(_server_name(content))
    if len(names) > 1:
        raise NotHello("a TLS greeting with two server names")
    return names[0] if names else None


def _server_name(content: _Reader) -> str:
    entries = content.vector(2)
    content.end()
    if entries.number(1) != _HOST_NAME:
        raise NotHello("a TLS server name of an unknown kind")
    name = entries.vector(2)
    entries.end()  # RFC 6066: not more than one name of a kind, and there is but one kind
    try:
        return name.take(len(name)).decode("ascii")
    except UnicodeDecodeError as error:
        raise NotHello("a TLS server name that is no host name") from error
