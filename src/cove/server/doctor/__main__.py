"""`python -m cove.server.doctor`: the report without the `cove` command. Exit 1 when something necessary is missing."""

from __future__ import annotations

import os
import sys

from cove.server.doctor.probes import examine
from cove.server.doctor.report import render
from cove.server.setup.settings import settings_from


def main() -> int:
    """Print the report."""
    report = examine(settings_from(os.environ))
    sys.stdout.write(render(report) + "\n")
    return 0 if report.is_usable else 1


if __name__ == "__main__":
    sys.exit(main())
