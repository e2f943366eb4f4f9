"""Recipes of built-in images: `images/<name>/recipe.toml`, parsed and checked. Builds nothing.

To add a built-in image: one directory in `images/` with a `recipe.toml` (fields: `Recipe`) and, where packages are not
enough, executable files in `hooks/`. A recipe with a `base` starts from the finished tree of that image and adds to it,
which takes seconds; the hooks of both run, in order of their names, with the new root's path as their argument.
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
_NPM_NAME: Final = re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*")
_NPM_VERSION: Final = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?")
_INTEGRITY: Final = re.compile(r"sha512-[A-Za-z0-9+/]{86}==")
_PLACE: Final = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*")
_BASES: Final = 4


class NpmArchive(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One package of the npm registry, unpacked as it is: no script of it runs, nothing it depends on is fetched.

    `integrity` is the registry's own sha512 of the archive. `into` is a directory in the image without leading slash.
    `architecture` is Debian's name (amd64, arm64) of the only machines that get it, empty: all. `members` are the
    files and directories of the package to take, empty: all.
    """

    name: str
    version: str
    integrity: str
    into: str
    architecture: str = ""
    members: tuple[str, ...] = ()


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image is made of.

    `base`: the image to start from, empty: an empty directory. `suites`: Debian releases it can be built from, the
    machine's own is preferred; a recipe with a base has none and takes the base's. `packages` are added to those of
    the base, as are `npm` archives. `env` and `workdir` become the image's defaults for every command; `env` adds to
    the base's, an empty `workdir` is the base's. `without`: packages that others depend on and that are left out.
    `kernels`: languages whose contexts are started ahead in sandboxes that wait in the pool.
    """

    description: str
    packages: tuple[str, ...]
    suites: tuple[str, ...] = ()
    base: str = ""
    without: tuple[str, ...] = ()
    npm: tuple[NpmArchive, ...] = ()
    env: dict[str, str] = {}
    workdir: str = ""
    kernels: tuple[str, ...] = ()


class LoadedRecipe(Struct, frozen=True, kw_only=True):
    """A recipe with its name, what it inherits filled in, and a digest over all that it and its bases hold."""

    name: str
    recipe: Recipe
    hooks: tuple[Path, ...]
    digest: str
    base: LoadedRecipe | None = None


def load_recipe(recipes_dir: Path, name: str) -> LoadedRecipe:
    """Read the recipe `name` and those it is based on. Raises: SetupFailed when there is none or it is malformed."""
    return _load(recipes_dir, name, depth=0)


def recipe_names(recipes_dir: Path) -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.parent.name for path in recipes_dir.glob("*/recipe.toml"))


def _load(recipes_dir: Path, name: str, *, depth: int) -> LoadedRecipe:
    known = recipe_names(recipes_dir)
    if not NAME.fullmatch(name) or name not in known:
        raise SetupFailed(f"there is no recipe {name!r}", cure=f"known are: {', '.join(known) or 'none'}")
    directory = recipes_dir / name
    try:
        recipe = msgspec.toml.decode((directory / "recipe.toml").read_bytes(), type=Recipe)
    except (OSError, msgspec.DecodeError) as error:
        raise _malformed(name, str(error)) from error
    wrong = _fault(recipe)
    if wrong:
        raise _malformed(name, wrong)
    hooks = [path for path in (directory / "hooks").glob("*") if os.access(path, os.X_OK)]
    digest = _directory_digest(directory)
    base: LoadedRecipe | None = None
    if recipe.base:
        if depth == _BASES:
            raise _malformed(name, f"more than {_BASES} bases, or one that is based on itself")
        base = _load(recipes_dir, recipe.base, depth=depth + 1)
        hooks += base.hooks
        digest = hashlib.sha256(f"{digest} {base.digest}".encode()).hexdigest()
        recipe = msgspec.structs.replace(
            recipe,
            suites=base.recipe.suites,
            env=base.recipe.env | recipe.env,
            workdir=recipe.workdir or base.recipe.workdir,
        )
    ordered = sorted(hooks, key=lambda path: path.name)
    return LoadedRecipe(name=name, recipe=recipe, hooks=tuple(ordered), digest=digest, base=base)


def _fault(recipe: Recipe) -> str:
    """What is wrong with a recipe that decodes, or nothing."""
    bad = [package for package in (*recipe.packages, *recipe.without) if not _PACKAGE.fullmatch(package)]
    if bad:
        return f"{bad[0]!r} is no package name"
    if bool(recipe.suites) == bool(recipe.base):
        return "it needs either suites or a base"
    if recipe.without and not recipe.base:
        return "packages can be left out only where there is a base"
    if recipe.workdir and not recipe.workdir.startswith("/"):
        return "workdir is no absolute path"
    for archive in recipe.npm:
        fields = (
            (_NPM_NAME, archive.name),
            (_NPM_VERSION, archive.version),
            (_INTEGRITY, archive.integrity),
            (_PLACE, archive.into),
        )
        wrong = [text for pattern, text in fields if not pattern.fullmatch(text)]
        if wrong:
            return f"npm package {archive.name!r}: {wrong[0]!r} is wrong"
    return ""


def _malformed(name: str, why: str) -> SetupFailed:
    return SetupFailed(f"images/{name}/recipe.toml: {why}", cure="correct the file")


def _directory_digest(directory: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(directory)).encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
