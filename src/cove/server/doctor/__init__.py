"""Tells what this machine offers Cove, what is missing, what that costs and how to get it.

Not a configuration tool: it changes nothing that outlives it. Each probe really tries the thing, in a forked child with
a time limit and, where mounts are involved, a mount namespace of its own. May import `cove.engine` and
`cove.server.setup`.

To add a probe: one function `machine -> Line` in the module of its subject, one line in `probes.py`.
"""

from __future__ import annotations

from cove.server.doctor.probes import examine
from cove.server.doctor.report import Line, Report, Status, render

__all__ = ["Line", "Report", "Status", "examine", "render"]
