"""What people write for sizes, durations and "not given", and what the wire wants. Pure."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from cove.sdk.errors import BadRequest

_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_FACTOR: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Unset(Enum):
    """The type of `UNSET`: an argument that was not given, where None has a meaning of its own."""

    UNSET = "unset"

    def __repr__(self) -> str:
        """Return what a reader of `help()` should see."""
        return "UNSET"


UNSET: Final = Unset.UNSET

Size = int | str
"""Bytes as a number, or text with a unit: `"512m"`, `"4g"`, `"1.5GiB"`. Units are powers of 1024."""

Duration = float | str
"""Seconds as a number, or text with a unit: `"500ms"`, `"30s"`, `"1h30m"`, `"2d"`; `"never"` is None."""


def parse_bytes(size: Size, field: str) -> int:
    """Return `size` in bytes.

    Raises: BadRequest, naming `field`.
    """
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size)
    if match is None:
        raise BadRequest(f'{field}: "{size}" is no size', field=field, hint='write "512m", "4g" or a number of bytes')
    return round(float(match[1]) * _FACTOR[match[2].lower()])


def parse_mib(size: Size, field: str) -> int:
    """Return `size` in MiB, rounded up.

    Raises: BadRequest, naming `field`; also for a bare number below 1 MiB, which is nearly always a forgotten unit.
    """
    number = parse_bytes(size, field)
    if 0 < number < _FACTOR["m"]:
        raise BadRequest(f"{field}: {size} is less than 1 MiB", field=field, hint=f'a number is bytes; write "{size}m"')
    return -(-number // _FACTOR["m"])


def parse_seconds(duration: Duration | None, field: str) -> float | None:
    """Return `duration` in seconds, None for never.

    Raises: BadRequest, naming `field`; also for 0, which elsewhere means "never" as often as "at once".
    """
    if duration is None or duration == "never":
        return None
    if isinstance(duration, str):
        if _DURATION.fullmatch(duration) is None:
            hint = 'write "30s", "2h", "1h30m" or "never"'
            raise BadRequest(f'{field}: "{duration}" is no duration', field=field, hint=hint)
        duration = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(duration))
    if not duration > 0:
        raise BadRequest(f"{field}: must be more than 0", field=field, hint='for no limit write "never" or None')
    return float(duration)
