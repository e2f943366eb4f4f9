"""Comparing version numbers of tools. Pure."""

from __future__ import annotations

import re


def at_least(version: str, minimum: str) -> bool:
    """Whether `version` (such as `1.3.6+ds1` or `4.2.1-1`) is `minimum` or newer, by its leading numbers."""
    return _numbers(version) >= _numbers(minimum)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(n) for n in found[0].split(".")) if found else ()
