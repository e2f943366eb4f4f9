"""Bodies and query strings into frozen wire structs, strictly. Pure.

A wire struct for a body forbids unknown fields. A wire struct for a query has scalar fields, `tuple[str, ...]` fields
(the parameter may be repeated) and `dict[str, str]` fields, which collect `NAME.KEY=VALUE` parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar, get_origin, get_type_hints
from urllib.parse import unquote_plus

import msgspec

from cove.edge.errors import Malformed, Where

T = TypeVar("T")

_AT: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_INDEX: Final = re.compile(r"\[[^\]]*\]")
_NAMED: Final = re.compile(r"(?:unknown|required) field `([^`]*)`")
_FIELD_LENGTH: Final = 100
"""A field name in an error is the caller's own text: cut, so that an answer stays small."""


def body_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A strict decoder of JSON bodies into `kind`. An empty body counts as `{}`."""
    decoder = msgspec.json.Decoder(kind)

    def decode(body: bytes) -> T:
        try:
            return decoder.decode(body or b"{}")
        except msgspec.ValidationError as error:
            raise _malformed(str(error), Where.BODY) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(f"the body is not valid JSON: {_plain(str(error))}", where=Where.BODY) from error
        except RecursionError as error:
            raise Malformed("the body is nested too deeply", where=Where.BODY) from error

    return decode


def query_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A strict decoder of query strings into `kind`: unknown and repeated parameters are refused by name."""
    hints = get_type_hints(kind)
    repeated = {name for name, hint in hints.items() if get_origin(hint) is tuple}
    mappings = {name for name, hint in hints.items() if get_origin(hint) is dict}
    default = msgspec.convert({}, kind) if not _has_required(kind) else None

    def decode(query: bytes) -> T:
        if not query and default is not None:
            return default
        try:
            return msgspec.convert(_collect(query, repeated, mappings), kind, strict=False)
        except msgspec.ValidationError as error:
            raise _malformed(str(error), Where.QUERY) from error

    return decode


def _has_required(kind: type[Any]) -> bool:
    return any(field.required for field in msgspec.structs.fields(kind))


def _collect(query: bytes, repeated: set[str], mappings: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in query.split(b"&"):
        if not part:
            continue
        raw_name, _, raw_value = part.partition(b"=")
        name = _text(raw_name, None)
        value = _text(raw_value, name)
        head, dot, key = name.partition(".")
        if dot and head in mappings:
            found.setdefault(head, {})[key] = value
        elif name in repeated:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise Malformed(f"the parameter {name[:_FIELD_LENGTH]} is given twice", where=Where.QUERY, field=name)
        else:
            found[name] = value
    return found


def _text(raw: bytes, name: str | None) -> str:
    """A decoded name, or the value of the parameter `name`."""
    what = "a parameter's name" if name is None else f"the parameter {name[:_FIELD_LENGTH]}"
    try:
        text = unquote_plus(raw.decode("ascii"), errors="strict")
    except UnicodeDecodeError as error:
        raise Malformed(f"{what} is not valid UTF-8", where=Where.QUERY, field=name) from error
    if "\0" in text:
        raise Malformed(f"{what} has a NUL character", where=Where.QUERY, field=name)
    return text


def _malformed(message: str, where: Where) -> Malformed:
    """Msgspec's sentence, turned into ours: `cpus: expected float <= 64.0`, with the field apart."""
    field: str | None = None
    if at := _AT.search(message):
        field, message = _INDEX.sub("", at.group(1)), message[: at.start()]
    if named := _NAMED.search(message):
        name = f"{field}.{named.group(1)}" if field else named.group(1)
        name = name[:_FIELD_LENGTH]
        noun = "parameter" if where is Where.QUERY else "field"
        verb = "is not known here" if "unknown" in message else "is missing"
        return Malformed(f"the {noun} {name} {verb}", where=where, field=name)
    sentence = _plain(message)
    field = field[:_FIELD_LENGTH] if field else None
    return Malformed(f"{field}: {sentence}" if field else sentence, where=where, field=field)


def _plain(message: str) -> str:
    text = message.replace("`", "")
    return text[:1].lower() + text[1:]
