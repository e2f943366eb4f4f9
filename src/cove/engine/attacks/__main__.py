"""The command line of the attacks; see the package."""

from __future__ import annotations

import sys

from cove.engine.attacks.run import main

if __name__ == "__main__":
    sys.exit(main())
