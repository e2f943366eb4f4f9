"""Recipes of built-in images: `images/<name>/recipe.toml`, parsed and checked. Builds nothing.

To add a built-in image: one directory in `images/` with a `recipe.toml` (fields: `Recipe`) and, where packages are not
enough, executable files in `hooks/`, run in name order with the new root's path as their argument.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.server.setup.settings import SetupFailed

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image is made of. `suites`: Debian releases it can be built from, the machine's own is preferred.

    `env` and `workdir` become the image's defaults for every command.
    """

    description: str
    suites: tuple[str, ...]
    packages: tuple[str, ...]
    env: dict[str, str]
    workdir: str = "/"


class LoadedRecipe(Struct, frozen=True, kw_only=True):
    """A recipe with its name, its hooks and a digest over everything that its directory holds."""

    name: str
    recipe: Recipe
    hooks: tuple[Path, ...]
    digest: str


def load_recipe(recipes_dir: Path, name: str) -> LoadedRecipe:
    """Read the recipe `name`. Raises: SetupFailed when there is none or it is malformed."""
    known = recipe_names(recipes_dir)
    if not NAME.fullmatch(name) or name not in known:
        raise SetupFailed(f"there is no recipe {name!r}", cure=f"known are: {', '.join(known) or 'none'}")
    directory = recipes_dir / name
    try:
        recipe = msgspec.toml.decode((directory / "recipe.toml").read_bytes(), type=Recipe)
    except (OSError, msgspec.DecodeError) as error:
        raise SetupFailed(f"images/{name}/recipe.toml: {error}", cure="correct the file") from error
    bad = [package for package in recipe.packages if not _PACKAGE.fullmatch(package)]
    if bad or not recipe.suites or not recipe.workdir.startswith("/"):
        raise SetupFailed(
            f"images/{name}/recipe.toml: "
            + (f"{bad[0]!r} is no package name" if bad else "suites or workdir is wrong"),
            cure="correct the file",
        )
    hooks = sorted(path for path in (directory / "hooks").glob("*") if os.access(path, os.X_OK))
    return LoadedRecipe(name=name, recipe=recipe, hooks=tuple(hooks), digest=_directory_digest(directory))


def recipe_names(recipes_dir: Path) -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.parent.name for path in recipes_dir.glob("*/recipe.toml"))


def _directory_digest(directory: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(directory)).encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
