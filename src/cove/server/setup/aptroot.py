"""An apt of Cove's own: fetches packages of another suite without the machine ever hearing of that suite.

Its lists, cache, sources and (empty) package database lie in a private directory that is removed afterwards. The rest
of the machine's apt configuration holds as it is: proxy, login, certificates, keys, and whether it tolerates a mirror
whose Release file is past its Valid-Until (only the machine's administrator may decide that; Cove never does).
Nothing is installed: `fetch` downloads the dependency closure, `unpack` opens the archives.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cove.server.setup.commands import Command, Runner
from cove.server.setup.settings import SetupFailed

# Not in the data directory: apt drops its rights to `_apt` for downloads, and that directory is closed to all but root.
PARENT: Final = Path("/var/tmp")  # noqa: S108 - a fresh directory of mkdtemp, made by root
PREFIX: Final = "cove-apt-"


class AptRoot:
    """A private apt. Made by `open_apt_root` only."""

    def __init__(self, runner: Runner, directory: Path) -> None:
        self._runner = runner
        self._directory = directory

    def update(self, sources: list[str]) -> None:
        """Fetch and check the lists of `sources` (lines of sources.list). Raises: SetupFailed."""
        (self._directory / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
        self._apt(
            "update",
            # Without this a suite that is missing is a warning, and the install below would fail without saying why.
            "--error-on=any",
            what="reading the package lists of " + ", ".join(line.split()[-2] for line in sources),
            cure="see above: try again when the mirror is at fault, or choose one by COVE_DEBIAN_MIRROR",
        )

    def fetch(self, *packages: str) -> list[Path]:
        """Download `packages` and all they depend on; apt checks each against the signed lists. Raises: SetupFailed."""
        archives = self._directory / "cache" / "archives"
        self._apt(
            "install",
            "--download-only",
            "--no-install-recommends",
            *packages,
            what=f"downloading {' '.join(packages)}",
            cure="see above; try again, it is safe to repeat",
        )
        return sorted(archives.glob("*.deb"))

    def unpack(self, archives: list[Path], target: Path) -> None:
        """Unpack `archives` over each other into `target`; no maintainer script runs. Raises: SetupFailed."""
        for archive in archives:
            self._runner.run(
                Command(
                    argv=["dpkg-deb", "--extract", archive, target],
                    what=f"unpacking {archive.name}",
                    cure="is the disk full? then make room and run setup again",
                )
            )

    def _apt(self, *args: str, what: str, cure: str) -> None:
        own = self._directory
        # On the command line because that is read last; a file named by APT_CONFIG is read first (apt.conf(5)).
        overrides = {
            "Dir::State": f"{own}/state",
            "Dir::State::lists": f"{own}/state/lists",
            "Dir::State::status": f"{own}/status",
            "Dir::Cache": f"{own}/cache",
            "Dir::Cache::archives": f"{own}/cache/archives",
            "Dir::Etc::sourcelist": f"{own}/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Default-Release": "",
            "Acquire::Languages": "none",
        }
        options = [part for key, value in overrides.items() for part in ("-o", f"{key}={value}")]
        self._runner.run(
            Command(argv=["apt-get", "--quiet", "--yes", *options, *args], what=what, cure=cure, timeout_s=1800)
        )


@contextmanager
def open_apt_root(runner: Runner) -> Generator[AptRoot]:
    """A private apt for the time of the context; its directory is removed at the end, also after a failure."""
    sweep()
    try:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
    except OSError as error:
        raise SetupFailed(
            f"{PARENT} cannot be written: {error.strerror}", cure="make room there and run setup again"
        ) from error
    try:
        directory.chmod(0o755)
        for name in ("state/lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True)
        (directory / "status").touch()
        yield AptRoot(runner, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def sweep() -> list[Path]:
    """Remove what an interrupted setup left. The caller holds the setup lock, so none of them is in use."""
    left = [path for path in PARENT.glob(f"{PREFIX}*") if path.is_dir() and not path.is_symlink()]
    for path in left:
        if path.stat().st_uid == 0:
            shutil.rmtree(path, ignore_errors=True)
    return left
