"""Every isolation driver against the shipped conformance suite. To add a driver: its name in DRIVERS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cove.engine.conformance import checks

pytestmark = pytest.mark.real
DRIVERS = ("runc", "crun", "gvisor", "fake")
SETUP_DIR = os.environ.get("COVE_DATA_DIR", "/var/lib/cove")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for driver in DRIVERS:
        data_dir = tmp_path_factory.mktemp(driver)
        argv = [sys.executable, "-m", "cove.engine.conformance", "--driver", driver]
        argv += ["--data-dir", str(data_dir), "--setup-dir", SETUP_DIR]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        assert done.stdout, done.stderr
        for line in done.stdout.splitlines():
            verdict = json.loads(line)
            found[driver, verdict["name"]] = verdict
        shutil.rmtree(data_dir)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", sorted(checks()))
@pytest.mark.parametrize("driver", DRIVERS)
def test_driver_passes(driver: str, check: str, verdicts: dict[tuple[str, str], dict[str, Any]]) -> None:
    verdict = verdicts[driver, check]
    if verdict["gap"] is not None:
        pytest.xfail(verdict["gap"])
    assert verdict["ok"], verdict["detail"]


def test_a_run_leaves_nothing_on_the_machine(verdicts: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert verdicts
    mounts = Path("/proc/self/mounts").read_text()
    assert "conformance" not in mounts
