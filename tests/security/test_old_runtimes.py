"""A runtime without the fixes that we rely on is refused, whatever the machine or an operator puts in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
SETUP_DIR = Path(os.environ.get("COVE_DATA_DIR", "/var/lib/cove"))


@pytest.mark.parametrize(
    ("driver", "program", "says", "wanted"),
    [
        ("runc", "runc", "runc version 1.3.5\\nspec: 1.2.0", "1.3.6 is needed"),
        ("runc", "runc", "runc version 1.1.12-0ubuntu1\\nspec: 1.1.0", "1.3.6 is needed"),
        ("crun", "crun", "crun version 1.8.1\\ncommit: x\\nspec: 1.0.0", "1.20 is needed"),
        ("gvisor", "runsc", "runsc version release-20221107.0\\nspec: 1.0.2", "older than release"),
        ("runc", "runc", "hello", "runc"),
    ],
)
def test_a_runtime_without_the_fixes_is_refused(
    tmp_path: Path, driver: str, program: str, says: str, wanted: str
) -> None:
    setup = tmp_path / "setup"
    (setup / "runtimes" / "current" / "bin").mkdir(parents=True)
    (setup / "images").symlink_to(SETUP_DIR / "images")
    fake = setup / "runtimes" / "current" / "bin" / program
    # It would tell of being asked for more than its version.
    fake.write_text(f'#!/bin/sh\ncase "$*" in *version*) printf "{says}\\n" ;; *) touch {tmp_path}/ran ;; esac\n')
    fake.chmod(0o755)
    argv = [sys.executable, "-m", "cove.engine.conformance", "--driver", driver, "--data-dir", str(tmp_path / "data")]
    done = subprocess.run([*argv, "--setup-dir", str(setup)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0
    assert wanted in done.stderr, done.stderr[-2000:]
    assert not (tmp_path / "ran").exists()
