"""A run that says too little is a failed run."""

from __future__ import annotations

from v2.verdicts import Verdict, complaints, read_line

EXPECTED = [("guest", "end"), ("runc", "exit"), ("runc", "check_a")]
GOOD = [Verdict(suite, name, ok=True) for suite, name in EXPECTED]


def test_a_complete_good_run_has_no_complaints() -> None:
    assert complaints(GOOD, EXPECTED) == []


def test_a_guest_that_said_nothing_failed_every_check() -> None:
    assert complaints([], EXPECTED) == ["guest: no verdict on end", "runc: no verdict on exit, check_a"]


def test_a_driver_without_a_line_is_named() -> None:
    assert complaints(GOOD[:2], EXPECTED) == ["runc: no verdict on check_a"]


def test_a_failure_counts_and_a_known_gap_does_not() -> None:
    failed = Verdict("runc", "check_b", ok=False, detail="no")
    gap = Verdict("runc", "check_c", ok=False, detail="no", gap="cannot")
    assert complaints([*GOOD, failed, gap], EXPECTED) == ["runc: check_b failed"]
    assert "no" in failed.line()


def test_what_the_kernel_writes_between_is_no_verdict() -> None:
    assert read_line("[ 9.7] Kernel panic - not syncing\n") is None
    assert read_line('{"suite": "runc", "name": "check_a"') is None
    assert read_line('{"suite": "runc", "name": "check_a", "ok": true, "ms": 1.5}\n') == Verdict(
        "runc", "check_a", ok=True, ms=1.5
    )
