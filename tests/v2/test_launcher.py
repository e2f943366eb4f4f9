"""How a run ends whose machine does not: shell programs take QEMU's place."""

from __future__ import annotations

from pathlib import Path

from v2.__main__ import SUITES, console_end, expected, run_guest

LINE = '{"suite": "guest", "name": "kernel", "ok": true}'


def test_what_was_said_is_kept_and_a_good_end_is_no_complaint() -> None:
    verdicts, end = run_guest(["sh", "-c", f"echo noise; echo '{LINE}'"], 30)
    assert ([v.name for v in verdicts], end) == (["kernel"], "")


def test_a_machine_that_hangs_is_ended_at_its_limit() -> None:
    verdicts, end = run_guest(["sh", "-c", f"echo '{LINE}'; exec sleep 60"], 1)
    assert ([v.name for v in verdicts], end) == (["kernel"], "the machine did not end by itself within 1 s")


def test_a_machine_that_fails_is_told() -> None:
    assert run_guest(["sh", "-c", "exit 3"], 30) == ([], "QEMU ended with 3")
    assert run_guest(["sh", "-c", "kill -6 $$"], 30) == ([], "QEMU ended with -6")


def test_the_end_of_the_console_is_shown_without_its_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    assert console_end(log) == []
    log.write_text("".join(f"line {n}\r\n" for n in range(20)) + "\x1b[2Jpanic\r\n\r\n")
    assert console_end(log) == [*(f"line {n}" for n in range(13, 20)), "[2Jpanic"]


def test_every_suite_has_checks_that_must_be_said() -> None:
    suites = {suite for suite, name in expected(SUITES) if name != "exit"}
    assert suites == {"guest", *SUITES}
