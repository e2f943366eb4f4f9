"""The order of setup, and the lock that lets only one run at a time. Knows no step's inside."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

from cove.server.setup.agents import ensure_agents
from cove.server.setup.commands import Runner
from cove.server.setup.datadir import LOCK, make_data_dir
from cove.server.setup.images import ensure_image
from cove.server.setup.packages import ensure_packages, require_debian_and_root
from cove.server.setup.progress import Progress
from cove.server.setup.runtimes import ensure_runtimes
from cove.server.setup.settings import SetupFailed, SetupSettings


def run_setup(settings: SetupSettings, progress: Progress) -> None:
    """Do all steps that are not done yet. Blocks, for a minute or two on a fresh machine, ~0.2 s when nothing is to do.

    An interrupt ends the running programs and leaves nothing half-made in use; the next run sweeps what lies about.
    Raises: SetupFailed.
    """
    require_debian_and_root()
    with setup_lock(settings, progress):
        runner = Runner()
        ensure_packages(settings, runner, progress)
        _side_by_side(
            runner,
            lambda: ensure_runtimes(settings, runner, progress),
            lambda: build_all(settings, runner, progress),
        )


def build_images(settings: SetupSettings, progress: Progress, names: list[str]) -> None:
    """Build the images `names` alone. Raises: SetupFailed."""
    require_debian_and_root()
    with setup_lock(settings, progress):
        runner = Runner()
        ensure_packages(settings, runner, progress)
        for name in names:
            ensure_image(settings, runner, progress, name)


def build_all(settings: SetupSettings, runner: Runner, progress: Progress) -> None:
    """The agents, then the images of the setting. Raises: SetupFailed for the agents and the first image."""
    ensure_agents(settings, runner, progress)
    for number, name in enumerate(settings.images):
        try:
            ensure_image(settings, runner, progress, name)
        except SetupFailed as error:
            if number == 0:
                raise
            # Sandboxes do without it: a machine without a registry of npm packages still gets everything else.
            progress.note(f"The image {name} was not made: {error.public}\nhint: {error.cure}")


def _side_by_side(runner: Runner, *jobs: Callable[[], None]) -> None:
    """Run `jobs` in threads; when one fails or we are interrupted, the others' programs are ended first."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [error for future in done if (error := future.exception()) is not None]
        except BaseException:
            runner.kill_all()
            raise
        if failed:
            runner.kill_all()
            raise failed[0]


@contextmanager
def setup_lock(settings: SetupSettings, progress: Progress) -> Generator[None]:
    """Hold the data directory for one setup. A second one waits, and says for what. Makes the directory."""
    make_data_dir(settings.data_dir)
    with (settings.data_dir / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note("Another setup is running: waiting for it to end.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
