"""Builds built-in images from their recipes with mmdebstrap, out of the machine's own Debian mirror.

An image is `<data>/images/<name>/<digest12>/` with `rootfs/` (owned by root, never written again) and `image.json`
(`ImageFacts`); `<data>/images/<name>/current` is a symlink to the newest. It is built beside that under a name starting
with a dot and renamed when complete, so an image is either there and whole or not there.

Setuid bits and file capabilities are removed from every file: in a sandbox no_new_privs makes them inert, and on the
host's disk they must not lie about.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import stat
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine.confined.measure import measure_tree
from cove.engine.extra_ca import VARIABLES, ExtraCa, add_certificates, read_extra_ca
from cove.model.errors import CoveError
from cove.server.setup import mirror as mirrors
from cove.server.setup import npm
from cove.server.setup.commands import Command, Runner
from cove.server.setup.leftout import leave_out
from cove.server.setup.mirror import Mirror
from cove.server.setup.progress import Progress
from cove.server.setup.recipes import LoadedRecipe, load_recipe
from cove.server.setup.settings import SetupFailed, SetupSettings
from cove.store.snapshots import needed_digests

# Every image is built as if at this moment, so that two builds from one state of the mirror are the same bytes.
SOURCE_DATE_EPOCH: Final = "1735689600"  # 2025-01-01
_BUILDING: Final = ".building-"
_KEEP_OLD_S: Final = 3600.0
"""A server that was asked for a sandbox may have read `current` just before it moved."""

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
    kernels: tuple[str, ...] = ()


def ensure_image(settings: SetupSettings, runner: Runner, progress: Progress, name: str) -> None:
    """Have the image `name` built from its present recipe, and first those it is based on. Raises: SetupFailed."""
    _ensure(settings, runner, progress, load_recipe(settings.recipes_dir, name), read_extra_ca(settings.extra_ca))


def _ensure(settings: SetupSettings, runner: Runner, progress: Progress, loaded: LoadedRecipe, extra: ExtraCa) -> None:
    if not settings.refresh and is_current(settings.images_dir, loaded, extra):
        return
    base: ImageFacts | None = None
    if loaded.base is not None:
        # Never made anew for its own sake here: with `refresh`, a list of three images would make it three times.
        _ensure(msgspec.structs.replace(settings, refresh=False), runner, progress, loaded.base, extra)
        base = read_image(settings.images_dir, loaded.base.name)
    with progress.step(f"Building image {loaded.name}") as step:
        home = settings.images_dir / loaded.name
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        sweep(home)
        collect_old(home, settings.run_dir, _needed(settings.data_dir))
        facts = _Build(settings, runner, loaded, extra).run(base)
        step.done(f"Built image {loaded.name} ({facts.size_bytes >> 20} MiB)")


def is_current(images_dir: Path, loaded: LoadedRecipe, extra: ExtraCa) -> bool:
    """Whether `current` of this image was built from this recipe with these certificates."""
    facts = read_image(images_dir, loaded.name)
    return (
        facts is not None
        and facts.recipe_digest == _source_digest(loaded, extra)
        and Path(facts.rootfs, "etc").is_dir()
    )


def _source_digest(loaded: LoadedRecipe, extra: ExtraCa) -> str:
    """Names all that an image is made of, besides the state of the mirror."""
    if not extra.certificates:
        return loaded.digest
    return hashlib.sha256(f"{loaded.digest} {extra.digest}".encode()).hexdigest()


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


def _needed(data_dir: Path) -> set[str] | None:
    """The digests that snapshots and hibernated sandboxes need; None: nobody can say."""
    try:
        return needed_digests(data_dir / "cove.db")
    except CoveError:
        return None


def collect_old(home: Path, run_dir: Path, needed: set[str] | None, *, older_than_s: float = _KEEP_OLD_S) -> list[str]:
    """Remove trees of an image that `current` does not name any more and nothing stands on. Returns their names.

    Boxes of every server of this machine count: each keeps its image's digest in its directory below `run_dir`. While
    one is being made, which has none there yet, nothing is removed. The caller holds the setup lock.
    """
    boxes = list(run_dir.glob("*/sb/*"))
    used = {digest for box in boxes if (digest := _digest_of(box)) is not None}
    if needed is None or any(_digest_of(box) is None for box in boxes):
        return []
    used |= needed
    current = (home / "current").readlink().name if (home / "current").is_symlink() else ""
    removed: list[str] = []
    for tree in home.iterdir():
        is_tree = tree.is_dir() and not tree.is_symlink() and not tree.name.startswith(".")
        is_old = is_tree and time.time() - (tree / "image.json").stat().st_mtime > older_than_s
        if is_old and tree.name != current and not any(digest.startswith(tree.name) for digest in used):
            tree.rename(tree.with_name(f"{_BUILDING}old-{tree.name}"))
            removed.append(tree.name)
    sweep(home)
    return removed


def _digest_of(box: Path) -> str | None:
    try:
        return str(msgspec.json.decode((box / "box.json").read_bytes())["image_digest"])
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return None


class _Build:
    """One build of one image."""

    def __init__(self, settings: SetupSettings, runner: Runner, loaded: LoadedRecipe, extra: ExtraCa) -> None:
        self._settings = settings
        self._runner = runner
        self._loaded = loaded
        self._extra = extra
        self._home = settings.images_dir / loaded.name
        self._building = self._home / f"{_BUILDING}{os.getpid()}"
        self._rootfs = self._building / "rootfs"

    def run(self, base: ImageFacts | None) -> ImageFacts:
        """Make the tree, on a copy of the base's if there is one, and publish it."""
        self._building.mkdir(mode=0o755)
        try:
            return self._run(base)
        finally:
            shutil.rmtree(self._building, ignore_errors=True)

    def _run(self, base: ImageFacts | None) -> ImageFacts:
        loaded, recipe, rootfs = self._loaded, self._loaded.recipe, self._rootfs
        mirror = mirrors.find_mirror(self._runner, self._settings.debian_mirror)
        suite = mirror.suite if mirror.suite in recipe.suites else recipe.suites[0]
        if base is not None:
            suite = base.suite
            self._copy(base)
            leave_out(rootfs, loaded.name, recipe.without)
        npm.add_archives(self._runner, recipe.npm, self._building / "npm", self._added)
        self._runner.run(self._mmdebstrap(mirror, suite, is_copy=base is not None))
        _empty(rootfs / "dev")  # mmdebstrap leaves nodes there; the runtime mounts its own /dev
        env = self._trust(base)
        _strip_privileges(rootfs)
        tree = measure_tree(rootfs)
        if tree.special:
            raise SetupFailed(
                f"image {loaded.name} holds device nodes or sockets: {', '.join(tree.special[:3])}",
                cure=f"remove them in a hook of images/{loaded.name}",
            )
        final = self._home / tree.digest[:12]
        facts = ImageFacts(
            name=loaded.name,
            digest=tree.digest,
            rootfs=str(final / "rootfs"),
            env=env | recipe.env,
            workdir=recipe.workdir or "/",
            size_bytes=tree.size_bytes,
            created_at=time.time(),
            recipe_digest=_source_digest(loaded, self._extra),
            suite=suite,
            kernels=recipe.kernels,
        )
        _publish(self._home, self._building, final, facts)
        return facts

    @property
    def _added(self) -> Path:
        """What the recipe adds besides packages, laid out as in the image."""
        return self._building / "added"

    def _copy(self, base: ImageFacts) -> None:
        """Start from the base's tree. Copied, not linked: two images share neither files nor their page cache."""
        self._runner.run(
            Command(
                argv=["cp", "--archive", "--reflink=auto", base.rootfs, self._rootfs],
                what=f"copying image {base.name}",
                cure="is the disk full? then make room and run setup again",
            )
        )

    def _trust(self, base: ImageFacts | None) -> dict[str, str]:
        """Add the operator's certificates, unless the base has brought them. Returns the variables for them."""
        if base is not None:
            return {name: value for name, value in base.env.items() if name in VARIABLES}
        top = os.open(self._rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return add_certificates(top, self._extra)
        finally:
            os.close(top)

    def _mmdebstrap(self, mirror: Mirror, suite: str, *, is_copy: bool) -> Command:
        """The command that fills the tree. On a copy of a base it adds packages and runs the hooks again."""
        config = self._building / "apt.conf"
        config.write_text(inherited_apt_conf(_apt_config(self._runner)), encoding="utf-8")
        # dpkg would sync every file to disk; `_publish` syncs them all at once.
        options = ["--dpkgopt=force-unsafe-io"]
        options += [f"--dpkgopt=path-exclude={glob}" for glob in _UNWANTED]
        options += [f"--dpkgopt=path-include={glob}" for glob in _WANTED]
        options += ["--variant=custom", "--skip=check/empty"] if is_copy else ["--variant=apt"]
        if self._loaded.recipe.packages:
            options.append(f"--include={','.join(sorted(self._loaded.recipe.packages))}")
        hooks = [f"--customize-hook={hook}" for hook in self._loaded.hooks]
        if self._added.is_dir():
            # A shell reads this one: with a `$` in it, it is no file name.
            hooks.insert(0, f'--customize-hook=cp -a {shlex.quote(str(self._added))}/. "$1"/')
        return Command(
            argv=[
                "mmdebstrap",
                "--quiet",
                "--mode=root",
                "--format=directory",
                f"--aptopt={config}",
                *options,
                *hooks,
                suite,
                self._rootfs,
                *_sources(mirror, suite),
            ],
            what=f"building image {self._loaded.name} with mmdebstrap",
            cure="see above; it is safe to run setup again",
            env={"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH, "COVE_IMAGE": self._loaded.name},
            timeout_s=1800,
        )


def _sources(mirror: Mirror, suite: str) -> list[str]:
    """The lines of sources.list(5) that an image of `suite` is built from."""
    lines = [mirrors.source_line(mirror.uri, suite, mirror.signed_by)]
    if suite == mirror.suite:
        # The machine names them, so they exist. A mirror from the setting may lack them: then the suite alone.
        if mirror.has_updates:
            lines.append(mirrors.source_line(mirror.uri, f"{suite}-updates", mirror.signed_by))
        if mirror.security_uri is not None:
            lines.append(mirrors.source_line(mirror.security_uri, f"{suite}-security", mirror.security_signed_by))
    return lines


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
    for name in ("npm", "added"):
        shutil.rmtree(building / name, ignore_errors=True)
    os.sync()
    if final.exists():  # the same bytes again; running sandboxes may stand on it, so only the facts are renewed
        (building / "image.json").rename(final / "image.json")
    else:
        building.rename(final)
    link = home / ".current"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.rename(home / "current")
