"""Lines of JSON: taken apart, put together, and kept within their bounds.

Both processes of a kernel use it. What is here holds for one side only: the host bounds all that comes from here anew.
"""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any

LINE_BYTES = 1 << 20
"""A longer line is of somebody who does not keep to the protocol."""

CHUNK_BYTES = 1 << 16
"""Of output, in one event."""

VALUE_BYTES = 32 << 20
"""All values of one result together."""

_INLINE_CHARS = 1 << 16
_PIECE_CHARS = 1 << 17
_META_BYTES = 1 << 17
_MEDIA_TYPES = 64
_NAME_CHARS = 1 << 10
_MESSAGE_CHARS = 1 << 16
_TRACEBACK_CHARS = 1 << 17
_TRACEBACK_LINES = 400


class Lines:
    """Cuts bytes that come in pieces into lines."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes, without their ends. Raises: ValueError (one is too long)."""
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._add(line)
            complete = b"".join(self._parts)
            self._parts, self._size = [], 0
            yield complete
        self._add(rest)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > LINE_BYTES:
            raise ValueError("a line is too long")
        if part:
            self._parts.append(part)


class Text:
    """Makes text of bytes that come in pieces: a character that is split is kept whole, what is none becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The text that is complete."""
        return self._decoder.decode(data)

    def end(self) -> str:
        """What is left of a character that was never finished."""
        return self._decoder.decode(b"", True)


def clean(text: str) -> str:
    """Without lone surrogates, which no UTF-8 has; halves that belong together are joined."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def encode(message: Mapping[str, Any]) -> bytes:
    """One line with its end. Raises: ValueError, TypeError (no JSON)."""
    line = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return line.encode() + b"\n"
    except UnicodeEncodeError:
        return clean(line).encode() + b"\n"


def cut(text: str, limit: int) -> str:
    """Its beginning and its end, if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters are left out ...\n{text[-half:]}"


def error(run: str, name: str, value: str, traceback: list[str]) -> bytes:
    """The line that tells of an exception, whatever size it has."""
    lines = [line for part in traceback for line in part.split("\n")]
    if len(lines) > _TRACEBACK_LINES:
        half = _TRACEBACK_LINES // 2
        lines = [*lines[:half], f"... {len(lines) - 2 * half} lines are left out ...", *lines[-half:]]
    each = max(_TRACEBACK_CHARS // max(len(lines), 1), 200)
    if sum(map(len, lines)) > _TRACEBACK_CHARS:
        lines = [cut(line, each) for line in lines]
    return encode(
        {
            "t": "error",
            "run": run,
            "name": cut(name, _NAME_CHARS),
            "value": cut(value, _MESSAGE_CHARS),
            "traceback": lines,
        }
    )


def is_json(mime: str) -> bool:
    """Whether values of this media type are JSON."""
    return mime == "application/json" or mime.endswith("+json")


def value_text(mime: str, value: Any) -> str:
    """One value as text: JSON ones as JSON, bytes in base64."""
    if is_json(mime) and not isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
        except ValueError:  # JSON has no NaN
            loose = json.dumps(value, default=str)
            return json.dumps(json.loads(loose, parse_constant=lambda _: None), ensure_ascii=False)
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (list, tuple)) and mime.startswith("text/"):
        return "".join(map(str, value))
    return str(value)


def bundle(data: Mapping[Any, Any]) -> dict[str, str]:
    """All values of a result as text. What is too large is replaced by a sentence."""
    values: dict[str, str] = {}
    notes: list[str] = []
    left = VALUE_BYTES
    # Small ones first: of a plot in three forms the readable one stays.
    texts: list[tuple[str, str]] = []
    for mime, value in list(data.items())[:_MEDIA_TYPES]:
        try:
            texts.append((cut(str(mime), 128), clean(value_text(str(mime), value))))
        except Exception as problem:  # noqa: BLE001 - objects of strangers are made text here
            notes.append(f"The value of type {mime} cannot be shown: {type(problem).__name__!r}")
    for mime, text in sorted(texts, key=lambda one: len(one[1])):
        size = len(text) if text.isascii() else len(text.encode())
        if size > left:
            notes.append(
                f"The value of type {mime} has {size / (1 << 20):.1f} MiB and is left out:"
                f" results have at most {VALUE_BYTES >> 20} MiB."
            )
            continue
        left -= size
        values[mime] = text
    if notes:
        values["text/plain"] = "\n".join([*([values["text/plain"]] if "text/plain" in values else []), *notes])
    return values


def result(  # noqa: PLR0913 - the fields of the line
    run: str, data: dict[str, str], meta: Any, *, main: bool = False, name: str | None = None, update: bool = False
) -> Iterator[bytes]:
    """The lines that tell of a result: pieces first, if it is too long for one line."""
    try:
        if len(encode({"meta": meta})) > _META_BYTES:
            meta = {}
    except (ValueError, TypeError, RecursionError):
        meta = {}
    last: dict[str, Any] = {"t": "result", "run": run, "data": data, "meta": meta or {}, "main": main, "update": update}
    if name is not None:
        last["id"] = cut(str(name), 256)
    if sum(map(len, data.values())) <= _INLINE_CHARS:
        yield encode(last)
        return
    rest: dict[str, str] = {}
    for mime, text in data.items():
        inline = text
        if len(text) > _NAME_CHARS:
            for start in range(0, len(text), _PIECE_CHARS):
                yield encode({"t": "piece", "run": run, "mime": mime, "d": text[start : start + _PIECE_CHARS]})
            inline = ""
        rest[mime] = inline
    yield encode(dict(last, data=rest))
