"""What isolation sandboxes really get here: one is made of each driver, looked at and ended. Changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Final

import msgspec

from cove.engine.effective import Effective
from cove.model.sandbox import Isolation
from cove.server.config import load
from cove.server.doctor.report import Line, missing, ok, warn
from cove.server.setup.settings import SetupSettings

_LIMIT_S: Final = 60.0


def probe_isolation(settings: SetupSettings) -> Line:
    """The effective isolation of every driver."""
    if not (settings.images_dir / "base" / "current").exists():
        return missing("isolation", "no image to make a sandbox from", cost="nothing is known", cure="cove setup")
    return judge(measure(settings))


def as_configured(drivers: Sequence[str]) -> list[str]:
    """Arguments for a trial of `drivers` as the server would run them. Raises: BadSetting."""
    configured = load(os.environ).settings
    argv = ["--quota", configured.quota]
    for word in configured.degrade:
        argv += ["--degrade", word]
    for driver in drivers:
        argv += ["--driver", driver]
    return argv


def measure(settings: SetupSettings) -> tuple[list[Effective], str]:
    """Make a sandbox of each driver in a process of its own. Returns what was found, and that process's complaint."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=settings.data_dir, ignore_cleanup_errors=True) as folder:
        argv = [sys.executable, "-m", "cove.engine.effective", "--data-dir", folder]
        argv += ["--setup-dir", str(settings.data_dir), *as_configured(load(os.environ).settings.drivers)]
        environment = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            return [], f"no answer within {_LIMIT_S:.0f} s"
    found = [msgspec.json.decode(line, type=Effective) for line in done.stdout.splitlines()]
    return found, done.stderr.decode(errors="replace").strip()[-300:]


def judge(measured: tuple[list[Effective], str]) -> Line:
    """One line for all drivers. Pure."""
    found, complaint = measured
    made = [one.isolation for one in found if one.isolation is not None]
    absent = [f"{one.driver}: {'; '.join(one.missing)}" for one in found if one.isolation is None]
    if not made:
        reason = "; ".join(absent) or complaint or "no answer"
        return missing("isolation", reason, cost="no sandbox can be made", cure="see the lines above")
    fact = _told(made)
    lacks = [*dict.fromkeys(f"{one.driver}: {reason}" for one in made for reason in one.missing), *absent]
    if lacks:
        return warn("isolation", fact, cost="; ".join(lacks), cure="docs/guides/isolation.md")
    return ok("isolation", fact)


def _told(made: list[Isolation]) -> str:
    """Drivers with the same layers together."""
    groups: dict[str, list[str]] = {}
    for one in made:
        users = "own ids" if one.user_namespace else "the machine's ids"
        groups.setdefault(f"{users}, {one.seccomp}, {one.quota}, cgroup {one.cgroup}", []).append(one.driver)
    return " · ".join(f"{', '.join(drivers)}: {layers}" for layers, drivers in groups.items())
