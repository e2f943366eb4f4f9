"""`cove doctor --attack`: attacks fresh sandboxes of each driver and says what held, for somebody to hand on.

The attacks run in a process of their own (`python -m cove.engine.attacks`), with a data directory of their own beside
the server's, so a running server and its sandboxes are not touched.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import IO, Final

import msgspec

from cove.engine.attacks.run import End, Outcome, Verdict
from cove.server.config import load
from cove.server.doctor.isolation_probes import as_configured
from cove.server.setup.settings import SetupFailed, SetupSettings

_WIDTH: Final = 100
_END_LIMIT_S: Final = 60.0
_WORDS: Final = {
    Outcome.HELD: "held",
    Outcome.BROKEN: "BROKEN",
    Outcome.NOT_HERE: "not here",
    Outcome.FAILED: "FAILED",
}


def attack(
    settings: SetupSettings, drivers: Sequence[str], only: str = "", *, is_restored: bool = False
) -> Generator[Verdict]:
    """Attack each driver in turn; one verdict per attack, as it comes. Blocks, about a minute per driver.

    Args:
        settings: where runtimes and images are.
        drivers: their names.
        only: attacks whose name contains this.
        is_restored: what is attacked was kept with its memory and made again; some seconds more for each attack.

    Raises: SetupFailed when nothing can be attacked (no root, no runtimes, no image).
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".attack-", dir=settings.data_dir, ignore_cleanup_errors=True) as folder:
        argv = [sys.executable, "-m", "cove.engine.attacks", "--data-dir", folder]
        argv += ["--setup-dir", str(settings.data_dir), "--only", only, *as_configured(drivers)]
        argv += ["--restored"] if is_restored else []
        if outside := load(os.environ).settings.network_outside:
            argv += ["--network-outside", str(outside)]
        with tempfile.TemporaryFile() as complaints, _running(argv, complaints) as process:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            count, end = 0, None
            for line in process.stdout:
                found = msgspec.json.decode(line, type=Verdict | End)
                if isinstance(found, End):
                    end = found
                    break
                count += 1
                yield found
            process.wait(_END_LIMIT_S)
            complaints.seek(0)
            complaint = complaints.read()[-500:].decode(errors="replace").strip()
        if end is None or end.verdicts != count:
            raise SetupFailed(
                f"the attacks did not come to their end ({count} were tried): {complaint}",
                cure="cove doctor tells what is missing; it must run as root, after cove setup",
            )


@contextlib.contextmanager
def _running(argv: list[str], complaints: IO[bytes]) -> Generator[subprocess.Popen[bytes]]:
    environment = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
    # A session of its own: an interrupt is for us, and we tell it in a way that lets it free what it made.
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_LIMIT_S)
            process.kill()
            process.wait()


def is_green(verdicts: Sequence[Verdict]) -> bool:
    """Whether nothing broke, and every driver was attacked."""
    drivers = {one.driver for one in verdicts}
    attacked = {one.driver for one in verdicts if one.outcome is Outcome.HELD}
    return bool(verdicts) and all(one.is_good for one in verdicts) and drivers == attacked


def line(verdict: Verdict) -> str:
    """One verdict as text: a line, and below it what was tried and seen where it did not hold."""
    what = verdict.name.split("_", 2)[-1].replace("_", " ")
    text = [f"{_WORDS[verdict.outcome]:<9}{verdict.driver:<8}{verdict.case:<5}{what:<44}{verdict.ms / 1000:6.1f} s"]
    if verdict.outcome is not Outcome.HELD:
        for word, value in (("tried", verdict.tried), ("seen", verdict.seen)):
            indent = f"{'':17}{word + ':':<7}"
            text += textwrap.wrap(" ".join(value.split()), _WIDTH, initial_indent=indent, subsequent_indent=" " * 24)
    return "\n".join(text)


def summary(verdicts: Sequence[Verdict]) -> str:
    """The closing sentences, one per driver and one for all."""
    text: list[str] = [""]
    for driver in dict.fromkeys(one.driver for one in verdicts):
        own = [one for one in verdicts if one.driver == driver]
        counts = {outcome: sum(one.outcome is outcome for one in own) for outcome in Outcome}
        parts = [f"{counts[outcome]} {_WORDS[outcome]}" for outcome in Outcome if counts[outcome]]
        text.append(f"{driver}: {', '.join(parts)}.")
    bad = [f"{one.driver} {one.case}" for one in verdicts if not one.is_good]
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {os.uname().nodename}, Linux {os.uname().release}"
    absent = [one.driver for one in verdicts if one.name == "driver"]
    if absent:
        text.append(f"Not attacked, because it cannot run here: {', '.join(absent)}.")
    if bad:
        text.append(f"NOT SAFE for hostile code, {when}: {', '.join(bad)}.")
    else:
        text.append(f"Every attack held, {when}. What is not defended: docs/security.md.")
    return "\n".join(text)
