"""What setup is told, where it puts things, and how it fails. No I/O here.

To add a setting: a row in `server/settings_table.py`, a field of `SetupSettings`, a line in `settings_from`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.model.errors import EngineFailure
from cove.server.config import load

DATA_DIR: Final = Path("/var/lib/cove")
RUN_DIR: Final = Path("/run/cove")


class SetupFailed(EngineFailure):
    """A step of setup could not be done. `public` says which and why, `cure` what to do about it."""

    def __init__(self, public: str, *, cure: str, internal: str = "") -> None:
        super().__init__(public, internal=internal)
        self.cure = cure


class SetupSettings(Struct, frozen=True, kw_only=True):
    """Input of setup.

    `checkout` is the directory with `hatch_build.py` and `images/`; in an installed wheel the recipes lie inside the
    package instead and there is nothing to build; `recipes` names another directory of them. `debian_mirror` overrides
    what the machine's apt configuration says. `extra_ca`: certificates that images trust besides their own.
    `refresh` makes runtimes and images again although they are in place.
    """

    data_dir: Path = DATA_DIR
    run_dir: Path = RUN_DIR
    checkout: Path | None = None
    debian_mirror: str = ""
    images: tuple[str, ...] = ("base",)
    extra_ca: Path | None = None
    recipes: Path | None = None
    refresh: bool = False

    @property
    def runtimes_dir(self) -> Path:
        """Holds one directory per set of runtimes and the symlink `current`."""
        return self.data_dir / "runtimes"

    @property
    def images_dir(self) -> Path:
        """Holds one directory per image."""
        return self.data_dir / "images"

    @property
    def recipes_dir(self) -> Path:
        """Where the recipes of the built-in images lie."""
        if self.recipes is not None:
            return self.recipes
        packaged = Path(__file__).resolve().parents[2] / "images"
        return self.checkout / "images" if self.checkout is not None else packaged


def find_checkout() -> Path | None:
    """The source tree this package runs from, or None for an installed wheel."""
    top = Path(__file__).resolve().parents[4]
    return top if (top / "hatch_build.py").is_file() or (top / "images" / "base").is_dir() else None


def settings_from(environ: Mapping[str, str]) -> SetupSettings:
    """The server's own settings (environment, TOML file, default), as far as setup needs them.

    Raises: BadSetting; SetupFailed when the data directory is the root of the file system.
    """
    settings = load(environ).settings
    if settings.data_dir == Path("/"):
        raise SetupFailed("the data directory is /", cure=f"set COVE_DATA_DIR to one of Cove's own, such as {DATA_DIR}")
    return SetupSettings(
        data_dir=settings.data_dir,
        run_dir=settings.run_dir,
        checkout=find_checkout(),
        debian_mirror=settings.debian_mirror.strip(),
        images=settings.images,
        extra_ca=settings.extra_ca,
    )
