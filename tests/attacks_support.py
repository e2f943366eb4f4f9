"""The attacks that `cove doctor --attack` ships, run as it runs them: a process of its own, a line for each verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests_support import SETUP_DIR

Verdicts = dict[str, dict[str, Any]]


def attacked(folder: Path, program: list[str], driver: str, *only: str, outside: str = "") -> tuple[int, Verdicts, str]:
    argv = [sys.executable, *program, "--driver", driver, "--data-dir", str(folder), "--setup-dir", str(SETUP_DIR)]
    argv += ["--network-outside", outside] if outside else []
    for word in only:
        argv += ["--only", word]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    shutil.rmtree(folder, ignore_errors=True)
    rows = [row for line in done.stdout.splitlines() if "name" in (row := json.loads(line))]
    return done.returncode, {row["name"]: row for row in rows}, done.stderr
