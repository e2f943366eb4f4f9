"""Builds built-in images from their recipes with mmdebstrap, out of the machine's own Debian mirror.

An image is `<data>/images/<name>/<digest12>/` with `rootfs/` (owned by root, never written again) and `image.json`
(`ImageFacts`); `<data>/images/<name>/current` is a symlink to the newest. It is built beside that under a name starting
with a dot and renamed when complete, so an image is either there and whole or not there.

Setuid bits and file capabilities are removed from every file: in a sandbox no_new_privs makes them inert, and on the
host's disk they must not lie about.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.server.setup import mirror as mirrors
from cove.server.setup.commands import Command, Runner
from cove.server.setup.mirror import Mirror
from cove.server.setup.progress import Progress
from cove.server.setup.recipes import LoadedRecipe, load_recipe
from cove.server.setup.settings import SetupFailed, SetupSettings
from cove.server.setup.treedigest import measure_tree

# Every image is built as if at this moment, so that two builds from one state of the mirror are the same bytes.
SOURCE_DATE_EPOCH: Final = "1735689600"  # 2025-01-01
_BUILDING: Final = ".building-"
_XATTR_CAPABILITY: Final = "security.capability"
_UNWANTED: Final = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*")
_WANTED: Final = ("/usr/share/doc/*/copyright",)


class ImageFacts(Struct, frozen=True, kw_only=True):
    """What `image.json` holds. `recipe_digest` tells whether the recipe has changed since."""

    name: str
    digest: str
    rootfs: str
    env: dict[str, str]
    workdir: str
    size_bytes: int
    created_at: float
    recipe_digest: str
    suite: str


def ensure_image(settings: SetupSettings, runner: Runner, progress: Progress, name: str) -> None:
    """Have the image `name` built from its present recipe. Raises: SetupFailed."""
    loaded = load_recipe(settings.recipes_dir, name)
    if not settings.refresh and is_current(settings.images_dir, loaded):
        return
    with progress.step(f"Building image {name}") as step:
        home = settings.images_dir / name
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        sweep(home)
        facts = _build(settings, runner, loaded)
        step.done(f"Built image {name} ({facts.size_bytes >> 20} MiB)")


def is_current(images_dir: Path, loaded: LoadedRecipe) -> bool:
    """Whether `current` of this image was built from this recipe."""
    facts = read_image(images_dir, loaded.name)
    return facts is not None and facts.recipe_digest == loaded.digest and Path(facts.rootfs, "etc").is_dir()


def read_image(images_dir: Path, name: str) -> ImageFacts | None:
    """The facts of the image in use under `name`, or None."""
    try:
        return msgspec.json.decode((images_dir / name / "current" / "image.json").read_bytes(), type=ImageFacts)
    except (OSError, msgspec.DecodeError):
        return None


def sweep(home: Path) -> None:
    """Remove builds that were interrupted. The caller holds the setup lock."""
    for path in home.glob(f"{_BUILDING}*"):
        shutil.rmtree(path, ignore_errors=True)


def _build(settings: SetupSettings, runner: Runner, loaded: LoadedRecipe) -> ImageFacts:
    mirror = mirrors.find_mirror(runner, settings.debian_mirror)
    recipe = loaded.recipe
    suite = mirror.suite if mirror.suite in recipe.suites else recipe.suites[0]
    home = settings.images_dir / loaded.name
    building = home / f"{_BUILDING}{os.getpid()}"
    building.mkdir(mode=0o755)
    try:
        rootfs = building / "rootfs"
        runner.run(_mmdebstrap(runner, mirror, suite, loaded, rootfs))
        _empty(rootfs / "dev")  # mmdebstrap leaves nodes there; the runtime mounts its own /dev
        _strip_privileges(rootfs)
        tree = measure_tree(rootfs)
        if tree.special:
            raise SetupFailed(
                f"image {loaded.name} holds device nodes or sockets: {', '.join(tree.special[:3])}",
                cure=f"remove them in a hook of images/{loaded.name}",
            )
        final = home / tree.digest[:12]
        facts = ImageFacts(
            name=loaded.name,
            digest=tree.digest,
            rootfs=str(final / "rootfs"),
            env=recipe.env,
            workdir=recipe.workdir,
            size_bytes=tree.size_bytes,
            created_at=time.time(),
            recipe_digest=loaded.digest,
            suite=suite,
        )
        _publish(home, building, final, facts)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return facts


def _mmdebstrap(runner: Runner, mirror: Mirror, suite: str, loaded: LoadedRecipe, rootfs: Path) -> Command:
    """The command that fills `rootfs`."""
    config = rootfs.parent / "apt.conf"
    config.write_text(inherited_apt_conf(_apt_config(runner)), encoding="utf-8")
    sources = [mirrors.source_line(mirror.uri, suite, mirror.signed_by)]
    if suite == mirror.suite:
        # The machine names them, so they exist. A mirror from the setting may lack them: then the suite alone.
        if mirror.has_updates:
            sources.append(mirrors.source_line(mirror.uri, f"{suite}-updates", mirror.signed_by))
        if mirror.security_uri is not None:
            sources.append(mirrors.source_line(mirror.security_uri, f"{suite}-security", mirror.security_signed_by))
    # dpkg would sync every file to disk; `_publish` syncs them all at once.
    options = ["--dpkgopt=force-unsafe-io"]
    options += [f"--dpkgopt=path-exclude={glob}" for glob in _UNWANTED]
    options += [f"--dpkgopt=path-include={glob}" for glob in _WANTED]
    hooks = [f"--customize-hook={hook}" for hook in loaded.hooks]
    return Command(
        argv=[
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--format=directory",
            "--variant=apt",
            f"--aptopt={config}",
            f"--include={','.join(sorted(loaded.recipe.packages))}",
            *options,
            *hooks,
            suite,
            rootfs,
            *sources,
        ],
        what=f"building image {loaded.name} with mmdebstrap",
        cure="see above; it is safe to run setup again",
        env={"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH, "COVE_IMAGE": loaded.name},
        timeout_s=1800,
    )


def _apt_config(runner: Runner) -> str:
    return runner.run(Command(argv=["apt-config", "dump"], what="apt-config dump", cure="repair apt", timeout_s=60))


def inherited_apt_conf(dump: str) -> str:
    """What of the machine's apt configuration holds for a build as well: how to reach its mirrors, and how to log in.

    mmdebstrap's apt looks into the new root for its configuration and would know no proxy, certificate or password.
    The result is kept out of the finished image by the recipes' hooks and by mmdebstrap itself.
    """
    skipped = ("Acquire::IndexTargets", "Acquire::Changelogs", "Acquire::Languages", "Acquire::CompressionTypes")
    lines = [line for line in dump.splitlines() if line.startswith("Acquire::") and not line.startswith(skipped)]
    lines += ['Dir::Etc::netrc "/etc/apt/auth.conf";', 'Dir::Etc::netrcparts "/etc/apt/auth.conf.d/";']
    return "\n".join([*lines, 'Acquire::Languages "none";', ""])


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _strip_privileges(rootfs: Path) -> None:
    """Remove setuid and setgid bits and file capabilities of all regular files."""
    for folder, _, files in os.walk(rootfs):
        for name in files:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode):
                continue
            if mode & (stat.S_ISUID | stat.S_ISGID):
                path.chmod(stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))
            with contextlib.suppress(OSError):  # ENODATA: it has none, which is the rule
                os.removexattr(path, _XATTR_CAPABILITY, follow_symlinks=False)


def _publish(home: Path, building: Path, final: Path, facts: ImageFacts) -> None:
    """Give the finished image its name, then let `current` name it."""
    (building / "image.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
    (building / "apt.conf").unlink(missing_ok=True)
    os.sync()
    if final.exists():  # the same bytes again; running sandboxes may stand on it, so only the facts are renewed
        (building / "image.json").rename(final / "image.json")
    else:
        building.rename(final)
    link = home / ".current"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.rename(home / "current")
