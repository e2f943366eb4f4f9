"""Where the built agents lie: `agent-amd64`, `agent-arm64`, and `agent-build`, their build id.

The files are made by `hatch_build.py` and are not in the repository. This module only finds them.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

from cove.model.errors import EngineFailure, Unsupported

ARCHITECTURES: Final = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
"""What `uname -m` says, and the name that Go gives it."""

_HERE: Final = Path(__file__).parent


def agent_path(arch: str | None = None) -> Path:
    """The agent for `arch` (a key of ARCHITECTURES), by default this machine's.

    Raises: Unsupported (no agent for that architecture), EngineFailure (it has not been built).
    """
    machine = arch or platform.machine()
    name = ARCHITECTURES.get(machine)
    if name is None:
        raise Unsupported(f"there is no agent for the architecture {machine}")
    path = _HERE / f"agent-{name}"
    if not path.is_file():
        raise EngineFailure("the agent is not built", internal="run `python hatch_build.py` in the source tree")
    return path


def agent_build() -> str:
    """The 12 hex digits that the built agents give as `build` in their HELLO.

    Raises: EngineFailure (they have not been built).
    """
    try:
        return (_HERE / "agent-build").read_text().strip()
    except FileNotFoundError as error:
        raise EngineFailure("the agent is not built", internal="agent-build is missing") from error
