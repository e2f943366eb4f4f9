"""Makes this machine ready to run sandboxes: system packages, runtimes, agents, the built-in image.

Not the server, and not imported by it at start: `cove setup`, `make setup` and `make clean` call it. Each step is
idempotent, reports itself through a `Progress`, and fails with a `SetupFailed` that says what to do. A second run finds
everything in place and does nothing. Runs as root; may import `cove.model` and, for cleaning up,
the engine's kernel calls; no HTTP library, because it also has to work in a half-installed checkout.

To add a step: one function `ensure_<thing>(setup: Setup)` in a module of its own, one line in `steps.py`, one in
`clean.py` if it leaves something outside the data directory, one probe in `server/doctor/`.
"""

from __future__ import annotations

from cove.server.setup.progress import Progress, SilentProgress, StderrProgress
from cove.server.setup.settings import SetupFailed, SetupSettings, settings_from
from cove.server.setup.steps import run_setup

__all__ = [
    "Progress",
    "SetupFailed",
    "SetupSettings",
    "SilentProgress",
    "StderrProgress",
    "run_setup",
    "settings_from",
]
