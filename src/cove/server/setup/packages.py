"""System packages that Cove needs, from the machine's own suites. Never removes, never asks, adds no source."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from cove.server.setup.commands import Command, Runner
from cove.server.setup.progress import Progress
from cove.server.setup.settings import SetupFailed, SetupSettings

# Name -> why it is needed; the names are the same on Debian 12, 13 and Ubuntu 24.04.
PACKAGES: Final = {
    "mmdebstrap": "makes the built-in images",
    "debian-archive-keyring": "checks the signatures of Debian's archive (also on Ubuntu)",
    "btrfs-progs": "makes the pool of writable layers",
    "e2fsprogs": "makes them where there is no btrfs",
    "libnftables1": "network policy",
    "zstd": "snapshots, archives and layers of images",
    "skopeo": "fetches images from registries",
    "ca-certificates": "https of image registries and webhooks",
}

_INSTALLED: Final = "installed-packages"

_APT_GET: Final = (
    "apt-get",
    "--quiet",
    "--yes",
    "-o",
    "DPkg::Lock::Timeout=300",  # another apt may be at work, on a fresh cloud machine it usually is
)
_INSTALL: Final = (
    "install",
    "--no-install-recommends",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
)


def require_debian_and_root() -> None:
    """Raises: SetupFailed when we are not root or the machine has no apt."""
    if os.geteuid() != 0:
        raise SetupFailed("setup needs root: it installs packages and makes images", cure="sudo make setup")
    if shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        raise SetupFailed(
            "this machine has no apt, and Cove installs itself on Debian 12, Debian 13 and Ubuntu 24.04 only",
            cure="use one of these, or install the tools that `cove doctor` names by hand",
        )


def missing_packages(runner: Runner, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that are not installed. One dpkg-query, about 20 ms."""
    command = Command(
        argv=["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *names],
        accept=(0, 1),  # 1: a name it has never heard of
        what="dpkg-query",
        cure="repair the package database: dpkg --configure -a",
        timeout_s=60,
    )
    rows = (line.split() for line in runner.run(command).splitlines())
    installed = {row[0] for row in rows if len(row) > 1 and row[1] == "installed"}
    return tuple(name for name in names if name not in installed)


def install(runner: Runner, names: tuple[str, ...]) -> None:
    """Install `names` with what they need. Raises: SetupFailed."""
    cure = "see above; when the mirror is at fault try again, when dpkg is: dpkg --configure -a"
    update = Command(argv=[*_APT_GET, "update"], what="apt-get update", cure=cure)
    runner.run(update)
    env = {"NEEDRESTART_SUSPEND": "1"}  # Ubuntu's needrestart would ask which services to restart
    what = f"apt-get install {' '.join(names)}"
    runner.run(Command(argv=[*_APT_GET, *_INSTALL, *names], what=what, cure=cure, env=env, timeout_s=1800))


def ensure_packages(settings: SetupSettings, runner: Runner, progress: Progress) -> None:
    """Install what is missing of PACKAGES, and note it for `clean` to name. Raises: SetupFailed."""
    with progress.step("Looking for system packages") as step:
        missing = missing_packages(runner, tuple(PACKAGES))
        if missing:
            step.doing = f"Installing {', '.join(missing)}"
            install(runner, missing)
            noted = sorted({*read_installed(settings.data_dir), *missing})
            (settings.data_dir / _INSTALLED).write_text("\n".join(noted) + "\n", encoding="utf-8")
            step.done(f"Installed {', '.join(missing)}")


def read_installed(data_dir: Path) -> list[str]:
    """Names of the packages that setup has installed on this machine."""
    try:
        return (data_dir / _INSTALLED).read_text(encoding="utf-8").split()
    except OSError:
        return []
