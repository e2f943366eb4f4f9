"""Times as isol8 writes them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(seconds: float) -> str:
    """As JavaScript's `toISOString`: UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def optional_timestamp(seconds: float | None) -> str | None:
    """The same, None for none."""
    return None if seconds is None else timestamp(seconds)
