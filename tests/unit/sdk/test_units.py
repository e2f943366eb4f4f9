"""What people write for sizes and durations."""

from __future__ import annotations

import pytest

from cove.sdk.errors import BadRequest
from cove.sdk.units import UNSET, parse_bytes, parse_mib, parse_seconds


@pytest.mark.parametrize(
    ("size", "mib"),
    [("512m", 512), ("4g", 4096), ("1.5GiB", 1536), ("1 MB", 1), (1 << 20, 1), ((1 << 20) + 1, 2), (0, 0)],
)
def test_sizes_are_powers_of_1024_and_rounded_up(size: int | str, mib: int) -> None:
    assert parse_mib(size, "memory") == mib


@pytest.mark.parametrize("size", ["", "m", "12x", "-1m", "1 2m", "٣m"])
def test_what_is_no_size_is_refused_by_name(size: str) -> None:
    with pytest.raises(BadRequest, match="disk") as caught:
        parse_bytes(size, "disk")
    assert caught.value.field == "disk"


def test_a_forgotten_unit_is_found() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_mib(512, "memory")
    assert '"512m"' in caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1h30m", 5400), ("2d", 172800), (1.5, 1.5), (7, 7), ("never", None), (None, None)],
)
def test_durations(text: float | str | None, seconds: float | None) -> None:
    assert parse_seconds(text, "timeout") == seconds


@pytest.mark.parametrize("text", ["", "30", "1h 30m", "-1s", "0s", 0, -3, float("nan")])
def test_what_is_no_duration_is_refused_by_name(text: float | str) -> None:
    with pytest.raises(BadRequest, match="timeout"):
        parse_seconds(text, "timeout")


def test_unset_reads_well() -> None:
    assert repr(UNSET) == "UNSET"
