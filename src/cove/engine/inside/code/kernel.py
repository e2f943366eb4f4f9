"""A kernel: runs code in a sandbox and keeps its state. PROTOCOL.md says how it speaks.

    python3 -u kernel.py --context ID [--language NAME] [--idle-s N] [--preload MODULES] [--ahead]
    python3 kernel.py --probe

It says "listening" on its output once code can be run. Exit codes: 0 idle for too long or asked to end, 64 it cannot
start (a sentence on stderr says why), else the interpreter's own.
"""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import os
import sys
import types


def _package() -> str:
    """Make the modules beside this file a package, whose names no code of a user meets. Gives its name."""
    if __package__:
        return __package__
    here = os.path.dirname(os.path.abspath(__file__))
    package = types.ModuleType("cove_code")
    package.__path__ = [here]
    sys.modules["cove_code"] = package
    # As in an interactive Python: modules of the working directory, and not those beside this file.
    if sys.path and os.path.abspath(sys.path[0]) == here:
        sys.path[0] = ""
    return "cove_code"


def main() -> int:
    """Run a kernel or a probe, by the arguments."""
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    start = __import__(_package() + ".start", fromlist=["main"])
    return int(start.main(sys.argv[1:], writes_bytecode=writes_bytecode))


if __name__ == "__main__":
    sys.exit(main())
