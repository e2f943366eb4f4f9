"""Runs in the guest: every suite of the plan, one JSON line per check to stdout. Judges nothing; `verdicts.py` does.

A suite is a program that prints a line per check (`name`, `ok`, `detail`, `gap`, `ms`). Its name is put into each line,
and its exit becomes a check of its own, so that one that dies half-way is seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_DATA = Path("/mnt/data")
_ATTACKS = "attacks-"


def say(suite: str, verdict: dict[str, Any]) -> None:
    """One verdict to the launcher."""
    sys.stdout.write(json.dumps({"suite": suite, **verdict}) + "\n")
    sys.stdout.flush()


def command_of(suite: str, slow: float) -> list[str]:
    """What runs the suite: a program beside this one, the attacks on a driver, or a driver's conformance suite."""
    program = Path(__file__).parent / f"{suite}_checks.py"
    if program.exists():
        return [sys.executable, str(program), str(_DATA / suite), str(slow)]
    data = ["--data-dir", str(_DATA / suite)]
    if suite.startswith(_ATTACKS):
        return [sys.executable, "-m", "cove.engine.attacks", "--driver", suite.removeprefix(_ATTACKS), *data]
    return [sys.executable, "-m", "cove.engine.conformance", "--driver", suite, *data, "--slow", str(slow)]


def verdict_of(line: bytes) -> dict[str, Any]:
    """A suite's line as a verdict; an attack that met its defence, or found no ground, is good."""
    said: dict[str, Any] = json.loads(line)
    if "outcome" not in said:
        return said
    good = said["outcome"] in {"held", "not-here"}
    return {"name": said["name"], "ok": good, "detail": f"{said['outcome']}: {said['seen']}", "ms": said["ms"]}


def run(suite: str, slow: float) -> None:
    """Run one suite to its end and pass its verdicts on."""
    started = time.monotonic()
    (_DATA / suite).mkdir(parents=True)
    with subprocess.Popen(command_of(suite, slow), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        for line in child.stdout:
            say(suite, verdict_of(line))
    ms = round((time.monotonic() - started) * 1000)
    say(suite, {"name": "exit", "ok": child.returncode == 0, "detail": f"exit {child.returncode}", "ms": ms})


def main() -> None:
    """Run the plan."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    say("guest", {"name": "kernel", "ok": True, "detail": os.uname().release})
    for suite in plan["suites"]:
        run(suite, plan["slow"])
    say("guest", {"name": "end", "ok": True, "detail": ""})


if __name__ == "__main__":
    main()
