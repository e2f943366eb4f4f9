"""Reads tar archives as a stream: ustar, pax (POSIX.1-2001) and GNU long names. Standard library only; runs inside.

Written for hostile input: header sizes are bounded, nothing is kept of an entry that has passed, and every stream ends
in a `LayerError` or at the archive's end. Sparse files are refused: no builder of images writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
MAX_EXTRA = 1024 * 1024
"""Largest extended header: longer names than the kernel takes, and all attributes that a file may have."""

MAX_DIGITS = 19
REGULAR, HARDLINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"
SPECIAL = (b"3", b"4", b"6")
_SKIPPED = (b"V", b"M", b"N", b"A")


class LayerError(Exception):
    """The layer is damaged, hostile or beyond a limit. `kind` is `bad` or `limit`."""

    def __init__(self, text: str, kind: str = "bad") -> None:
        super().__init__(text)
        self.kind = kind


class Entry(NamedTuple):
    """One member. Its content must be read or skipped before the next."""

    kind: bytes
    name: bytes
    link: bytes
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    attributes: dict[bytes, bytes]


class TarStream:
    """Entries of an archive whose bytes come from `read(n)`: n bytes, fewer only at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = 0
        self._padding = 0

    def entries(self) -> Iterator[Entry]:
        """Every member in turn. Raises: LayerError."""
        globals_: dict[bytes, bytes] = {}
        extra: dict[bytes, bytes] = {}
        while True:
            self._skip_rest()
            head = self._read(BLOCK)
            if not head or head == bytes(BLOCK):
                return
            if len(head) < BLOCK:
                raise LayerError("the archive is cut off")
            _check_sum(head)
            kind, size = head[156:157], _number(head[124:136])
            if kind in {b"x", b"g", b"X"}:
                records = _pax(self._extra(size))
                (globals_ if kind == b"g" else extra).update(records)
            elif kind in {b"L", b"K"}:
                extra[b"path" if kind == b"L" else b"linkpath"] = self._extra(size).rstrip(b"\0")
            elif kind in _SKIPPED:
                self._begin(size)
            else:
                yield self._entry(head, kind, {**globals_, **extra})
                extra = {}

    def read(self, size: int) -> bytes:
        """The next bytes of the present entry's content, at most `size`; empty at its end."""
        wanted = min(size, self._left)
        if not wanted:
            return b""
        data = self._read(wanted)
        if len(data) < wanted:
            raise LayerError("the archive is cut off")
        self._left -= wanted
        return data

    def _entry(self, head: bytes, kind: bytes, extra: dict[bytes, bytes]) -> Entry:
        if kind == b"S" or any(key.startswith(b"GNU.sparse") for key in extra):
            raise LayerError("the archive has sparse files, which are not supported")
        name = head[0:100].split(b"\0", 1)[0]
        if head[257:263] == b"ustar\0" and (prefix := head[345:500].split(b"\0", 1)[0]):
            name = prefix + b"/" + name
        name = extra.get(b"path", name)
        kind = REGULAR if kind in {b"\0", b"7"} else kind
        if kind == REGULAR and name.endswith(b"/"):
            kind = DIRECTORY  # as archives before ustar said it
        size = _decimal(extra, b"size", _number(head[124:136]))
        # Links and nodes have no content, whatever their size says (pax: a hard link may repeat its target's).
        self._begin(size if kind == REGULAR else 0)
        if kind not in {REGULAR, HARDLINK, SYMLINK, DIRECTORY, *SPECIAL}:
            raise LayerError(f"the archive has an entry of an unknown kind {kind!r}")
        return Entry(
            kind=kind,
            name=name,
            link=extra.get(b"linkpath", head[157:257].split(b"\0", 1)[0]),
            size=self._left,
            mode=_number(head[100:108]) & 0o7777,
            uid=_decimal(extra, b"uid", _number(head[108:116])),
            gid=_decimal(extra, b"gid", _number(head[116:124])),
            mtime_ns=_moment(extra.get(b"mtime"), _number(head[136:148])),
            attributes={
                key.removeprefix(b"SCHILY.xattr."): value
                for key, value in extra.items()
                if key.startswith(b"SCHILY.xattr.")
            },
        )

    def _begin(self, size: int) -> None:
        if size < 0:
            raise LayerError("the archive has an entry of negative size")
        self._left = size
        self._padding = -size % BLOCK

    def _skip_rest(self) -> None:
        while self.read(BLOCK * 512):
            pass
        if self._padding and len(self._read(self._padding)) < self._padding:
            raise LayerError("the archive is cut off")
        self._padding = 0

    def _extra(self, size: int) -> bytes:
        if not 0 <= size <= MAX_EXTRA:
            raise LayerError("the archive has an extended header of more than 1 MiB")
        self._begin(size)
        data = self.read(size) if size else b""
        self._skip_rest()
        return data


def _check_sum(head: bytes) -> None:
    stored = _number(head[148:156])
    # Some old writers summed signed bytes; none of those made images.
    if stored != sum(head) - sum(head[148:156]) + 8 * 32:
        raise LayerError("this is no tar archive, or it is damaged")


def _number(field: bytes) -> int:
    """A numeric field: octal text, or GNU's base 256 where the first bit is set."""
    if field[0] & 0x80:
        is_negative = field[0] & 0x40
        return int.from_bytes(field if is_negative else bytes([field[0] & 0x7F]) + field[1:], "big", signed=True)
    text = field.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise LayerError("the archive has a number that is none") from None


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Records of `LENGTH KEY=VALUE newline`, LENGTH counting all of it."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, has_space, _ = data[at : at + 12].partition(b" ")
        length = int(digits) if has_space and digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        key, has_value, value = record[:-1].partition(b"=")
        if length <= len(digits) + 1 or not record.endswith(b"\n") or not has_value or at + length > len(data):
            raise LayerError("the archive has a damaged extended header")
        found[key] = value
        at += length
    return found


def _decimal(extra: dict[bytes, bytes], key: bytes, default: int) -> int:
    text = extra.get(key)
    if text is None:
        return default
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise LayerError("the archive has a number that is none")
    return int(text)


def _moment(text: bytes | None, seconds: int) -> int:
    """A time in nanoseconds, within what every file system takes."""
    try:
        value = int(float(text) * 1e9) if text is not None else seconds * 10**9
    except (ValueError, OverflowError):
        raise LayerError("the archive has a time that is none") from None
    return max(0, min(value, (2**32 - 1) * 10**9))
