"""Patterns over whole host names: RE2, so matching takes linear time whatever a tenant writes. Pure.

The library has no types; nothing but this module touches it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol, cast

import re2  # type: ignore[import-untyped]

PATTERN_CHARS: Final = 512
PATTERN_BYTES: Final = 64 * 1024
"""Most memory that one compiled pattern may take; RE2 refuses what needs more."""

_ERROR = cast("type[Exception]", re2.error)  # pyright: ignore[reportUnknownMemberType]


class Pattern(Protocol):
    """A compiled pattern."""

    def fullmatch(self, text: str) -> object | None:
        """Something where the whole text matches."""
        ...


_COMPILE = cast("Callable[[str, object], Pattern]", re2.compile)  # pyright: ignore[reportUnknownMemberType]


def check_pattern(text: str) -> None:
    """Raises: ValueError with a sentence for people."""
    if not text or len(text) > PATTERN_CHARS or not text.isascii() or not text.isprintable():
        raise ValueError(f"a pattern has 1-{PATTERN_CHARS} printable ASCII characters")
    try:
        compile_pattern(text)
    except _ERROR as error:
        raise ValueError(f"this pattern is no RE2 expression: {_reason(error)}") from error


@lru_cache(maxsize=1024)
def compile_pattern(text: str) -> Pattern:
    """A checked pattern, made to match whole names in any case. Raises: what the library raises."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.case_sensitive = False
    options.max_mem = PATTERN_BYTES
    return _COMPILE(text, options)


def _reason(error: Exception) -> str:
    reason: object = error.args[0] if error.args else ""
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
