"""What all requests share: paths, and the first look at an answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from cove.sdk.errors import BadAnswer, BadRequest

T = TypeVar("T")

API: Final = "/api/v1"
Page = tuple[list[dict[str, Any]], str | None]


def quoted(text: str) -> str:
    """Return one segment of a path."""
    if text.replace("-", "").replace("_", "").isalnum() and text.isascii():
        return text
    from urllib.parse import quote

    return quote(text, safe="")


def box_path(ref: str, rest: str = "") -> str:
    """Return the path of a sandbox, or of something below it.

    Raises: BadRequest (an empty reference would name the whole collection).
    """
    if not ref or ref in {".", ".."}:
        raise BadRequest(f'"{ref}" names no sandbox', field="ref")
    return f"{API}/sandboxes/{quoted(ref)}{rest}"


def checked(wire: Any) -> dict[str, Any]:
    """Return the answer, which must be an object.

    Raises: BadAnswer.
    """
    if not isinstance(wire, dict):
        raise BadAnswer("the server's answer has another form than this client understands")
    return wire  # pyright: ignore[reportUnknownVariableType]


def nothing(_wire: Any) -> None:
    """Ignore the answer."""


def raw(data: str | bytes | Iterable[bytes]) -> bytes | Iterable[bytes]:
    """Return `data` as a body: text as UTF-8, buffers as bytes, iterables as they are."""
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytearray | memoryview):  # both also iterate, as numbers
        return bytes(data)  # pyright: ignore[reportUnknownArgumentType]
    return data


def page_of(field: str) -> Callable[[Any], Page]:
    """Return the reader of a page: the objects under `field`, and the cursor of the next page."""

    def parse(wire: Any) -> Page:
        return list(checked(wire).get(field) or ()), wire.get("cursor")

    return parse


def items_of(field: str, read: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    """Return the reader of a whole list: the objects under `field`, each read by `read`."""

    def parse(wire: Any) -> list[T]:
        return [read(each) for each in checked(wire).get(field) or ()]

    return parse
