"""What the server's process asks of the machine for itself."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from cove.server.serve import raise_open_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
raise_open_files()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""


def test_it_may_have_as_many_open_files_as_the_hard_limit_says() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
