"""Texts of settings as values. Each raises ValueError with a sentence that says what the value must be."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_REGION: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def flag(text: str) -> bool:
    """Yes or no."""
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"", "0", "false", "no", "off"}:
        return False
    raise ValueError("must be 0 or 1")


def number(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    """Reads a number from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError("must be a whole number" if kind is int else "must be a number") from None
        if not least <= value <= most:
            raise ValueError(f"must be {least:g} to {most:g}")
        return value

    return parse


def separated(text: str) -> tuple[str, ...]:
    """The words of a list, separated by commas."""
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def some_of(*words: str) -> Callable[[str], tuple[str, ...]]:
    """Reads a list of `words`."""

    def parse(text: str) -> tuple[str, ...]:
        given = separated(text.lower())
        if not set(given) <= set(words):
            raise ValueError(f"may name {', '.join(words)}")
        return given

    return parse


def region(text: str) -> str:
    """The name of a place, which also stands in keys."""
    if not _REGION.fullmatch(text):
        raise ValueError("must be 1-32 of a-z, 0-9 and hyphens")
    return text
