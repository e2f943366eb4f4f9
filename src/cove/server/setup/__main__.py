"""`python -m cove.server.setup`: setup and cleaning for the Makefile, which may run before there is a `cove`."""

from __future__ import annotations

import os
import signal
import sys

from cove.model.errors import CoveError
from cove.server.setup.clean import clean
from cove.server.setup.progress import StderrProgress
from cove.server.setup.settings import SetupFailed, settings_from
from cove.server.setup.steps import build_images, run_setup

USAGE = "usage: python -m cove.server.setup [image NAME... | clean [--every]]"


def main(argv: list[str]) -> int:
    """Run one verb; 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = StderrProgress(sys.stderr)
    try:
        return _dispatch(argv, progress)
    except SetupFailed as error:
        progress.note(f"error: {error.public}\nhint: {error.cure}")
    except CoveError as error:
        progress.note(f"error: {error.public}")
    except KeyboardInterrupt:
        progress.note("interrupted: nothing half-made is in use; run it again to go on")
        return 130
    return 1


def _dispatch(argv: list[str], progress: StderrProgress) -> int:
    settings = settings_from(os.environ)
    match argv:
        case []:
            run_setup(settings, progress)
        case ["image", *names] if names:
            build_images(settings, progress, names)
        case ["clean", *flags] if set(flags) <= {"--every"}:
            clean(settings, progress, every=bool(flags))
        case _:
            progress.note(USAGE)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
