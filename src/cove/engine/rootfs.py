"""The root file system of a box: an overlay whose layers are idmapped to the box's uid range.

Overlayfs itself cannot be idmapped, its layers can. The mount must be made by a task whose fsuid is mapped in the
upper's idmap, or overlay turns read-only in silence (workdir creation fails with EOVERFLOW); so the mounting thread
takes the box's root uid for that one call and keeps its capabilities (SECBIT_NO_SETUID_FIXUP; the raw setresuid changes
only this thread). Files therefore lie on the disk with the ids they have inside (0, 1000, ...), and a snapshot can be
given to another range without a chown.

Everything here runs on one thread of its own (`MountThread`): thread-local ids and securebits never leak into the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import py_compile
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from msgspec import Struct

from cove.engine import kernel
from cove.engine.ids import Ids
from cove.engine.network.topology import ROUTER_ADDRESS
from cove.engine.userns import UserNamespaces

T = TypeVar("T")

_MOUNT_POINTS: Final = ("proc", "sys", "dev", "run/agent", ".agent")

_PYTHON_MODULES: Final = "usr/lib/python3/dist-packages"
_INSIDE: Final = Path(__file__).with_name("inside")
_COVE_FORK: Final = _INSIDE / "cove_fork.py"
_CODE: Final = "run/cove/code"

SKELETON: Final = "skeleton4"
"""The name of the skeleton's directory; its number changes with what is in it, for copies are made of it."""

_RESOLV_CONF: Final = f"""\
# Names are resolved by Cove, as the sandbox's network policy allows.
nameserver {ROUTER_ADDRESS}
options timeout:2 attempts:2
"""


class BoxDirs(Struct, frozen=True, kw_only=True):
    """The host side of one box. `home` is below /run and traversable; all in it is made by us, before it runs."""

    home: Path

    @property
    def rootfs(self) -> Path:
        """Where the overlay is mounted."""
        return self.home / "m"

    @property
    def socket_dir(self) -> Path:
        """The small tmpfs that the sandbox owns and the agent's socket lies in."""
        return self.home / "s"

    @property
    def images(self) -> Path:
        """Where the images that it is restored from are mounted meanwhile."""
        return self.home / "i"


def make_skeleton(directory: Path) -> None:
    """The top lower layer: the mount points that an image may lack, or have as something hostile (a `/dev` symlink).

    And /etc/resolv.conf, which an image may lack or have as a link: whoever is connected has one resolver. Here it
    costs no create a write; a sandbox may change it as any file. And the Python module `cove_fork`, where Debian's
    Python looks for modules whatever its version, with the directory that the agent and it use. And what runs code.
    """
    for name in _MOUNT_POINTS:
        (directory / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    (directory / ".agent" / "agent").touch(mode=0o755)
    (directory / "etc").mkdir(mode=0o755, exist_ok=True)
    resolv_conf = directory / "etc" / "resolv.conf"
    if not resolv_conf.exists() or resolv_conf.read_text() != _RESOLV_CONF:
        resolv_conf.write_text(_RESOLV_CONF)
    resolv_conf.chmod(0o644)
    modules = directory / _PYTHON_MODULES
    modules.mkdir(parents=True, exist_ok=True)
    for folder in (modules, *modules.relative_to(directory).parents[:-1]):
        (directory / folder).chmod(0o755)  # in a sandbox these modes win over those of the image
    _renew(modules / "cove_fork.py", _COVE_FORK)
    catchers = directory / "run" / "cove" / "reseed"
    catchers.mkdir(parents=True, exist_ok=True)
    catchers.chmod(0o1777)
    catchers.parent.chmod(0o755)
    _make_code(directory / _CODE)
    directory.chmod(0o755)


def _renew(copy: Path, original: Path) -> None:
    if not copy.exists() or copy.read_bytes() != original.read_bytes():
        shutil.copyfile(original, copy)
    copy.chmod(0o644)


def _make_code(directory: Path) -> None:
    """The kernels, with bytecode for Pythons of our own version: others compile it at each start of a kernel (40 ms).

    It is used unchecked, because times of files change when the skeleton is copied.
    """
    cache = directory / "__pycache__"
    for folder in (directory, cache):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    originals = [path for path in sorted((_INSIDE / "code").iterdir()) if path.suffix in {".py", ".mjs"}]
    for stale in {path.name for path in directory.iterdir() if path.is_file()} - {path.name for path in originals}:
        (directory / stale).unlink()
    for original in originals:
        copy = directory / original.name
        compiled = cache / f"{original.stem}.{sys.implementation.cache_tag}.pyc"
        if not copy.exists() or copy.read_bytes() != original.read_bytes():
            compiled.unlink(missing_ok=True)  # first: unchecked, it would stand for what it was not made of
        _renew(copy, original)
        if original.suffix == ".py" and not compiled.exists():  # a start on a full disk writes nothing
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(
                str(copy), str(compiled), f"/{_CODE}/{original.name}", doraise=True, optimize=0, invalidation_mode=mode
            )
            compiled.chmod(0o644)


def _set_apart() -> None:
    """Once, on the mount thread: keep capabilities when it changes its ids, and have a working directory of its own."""
    kernel.keep_capabilities_across_setuid()
    kernel.unshare(kernel.CLONE_FS)


class MountThread:
    """Runs mount work on a thread of its own. `close` waits for what runs."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "cove-mount", initializer=_set_apart)
        self._users: UserNamespaces | None = None

    async def run(self, work: Callable[[UserNamespaces], T]) -> T:
        """Run `work` there. Cancelling waits for it to end: a mount is never left half made and unknown."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._call, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await future
            raise

    def _call(self, work: Callable[[UserNamespaces], T]) -> T:
        if self._users is None:
            self._users = UserNamespaces()
        return work(self._users)

    def close(self) -> None:
        """End the thread and the user-namespace helper."""
        self._executor.shutdown()
        if self._users is not None:
            self._users.close()


def mount_box(  # noqa: PLR0913 (six facts of one box)
    users: UserNamespaces, dirs: BoxDirs, *, image: Path, skeleton: Path, layer: Path, base: int, ids: Ids = Ids.MAPPED
) -> None:
    """Mount the overlay and the socket directory of a box. On the mount thread. Raises: OSError.

    Args:
        users: makes the idmaps.
        dirs: where the box lies.
        image: the image's tree; for `ids` other than mapped, with owners as they shall be.
        skeleton: the layer with the mount points, likewise.
        layer: holds `u` (the files the box writes) and `w` (overlay's work directory).
        base: the host's uid of the box's root.
        ids: whether layers are idmapped.
    """
    dirs.home.mkdir(mode=0o711)
    for name in ("m", "s", "l0", "l1", "lu"):
        (dirs.home / name).mkdir(mode=0o711)
    for name in ("u", "w"):
        (layer / name).mkdir(mode=0o755, exist_ok=True)
    layers = (
        (skeleton, "l0", kernel.MOUNT_ATTR_RDONLY),
        (image, "l1", kernel.MOUNT_ATTR_RDONLY),
        (layer, "lu", 0),
    )
    with contextlib.ExitStack() as attached:
        userns = attached.enter_context(users.fd(base)) if ids is Ids.MAPPED else None
        for source, name, attributes in layers:
            if userns is None:
                kernel.mount(source, dirs.home / name, None, kernel.MS_BIND)
            else:
                _mount_mapped(source, dirs.home / name, attributes, userns)
            # The overlay holds its own clones of the layers.
            attached.callback(_unmount_layer, dirs.home / name)
        if userns is None:
            os.chown(layer / "u", base, base)
        _mount_overlay(dirs, base if userns is not None else 0)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("agent", dirs.socket_dir, "tmpfs", flags, f"size=64k,nr_inodes=16,mode=0700,uid={base},gid={base}")


def _unmount_layer(path: Path) -> None:
    kernel.umount(path, kernel.MNT_DETACH)
    path.rmdir()


def _mount_mapped(source: Path, target: Path, attributes: int, userns: int) -> None:
    fd = kernel.open_tree(source)
    try:
        wanted = attributes | kernel.MOUNT_ATTR_IDMAP | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
        kernel.mount_setattr(fd, attributes=wanted, userns_fd=userns)
        kernel.move_mount(fd, target)
    finally:
        os.close(fd)


def _mount_overlay(dirs: BoxDirs, base: int) -> None:
    # Relative, from the thread's own working directory: the options stand in the sandbox's mount table, and a path of
    # the host is none of its business.
    os.chdir(dirs.home)
    kernel.set_thread_ids(base)
    try:
        options = "lowerdir=l0:l1,upperdir=lu/u,workdir=lu/w"
        kernel.mount("cove", dirs.rootfs, "overlay", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    finally:
        kernel.set_thread_ids(0)
        os.chdir("/")


def mount_images(dirs: BoxDirs, own: Path, kept: Path) -> Path:
    """Mount the images that a box is restored from, to be read only: `own`, and below it `kept`. On the mount thread.

    Returns where. `unmount_box` takes it away as well. Raises: OSError.
    """
    with contextlib.ExitStack() as opened:
        # By descriptors: neither path may have what overlay's options give a meaning to, and they may be long.
        lowers: list[str] = []
        for path in (own, kept):
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            lowers.append(f"/proc/self/fd/{fd}")
        dirs.images.mkdir(mode=0o700)
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("cove", dirs.images, "overlay", flags, f"lowerdir={':'.join(lowers)}")
    return dirs.images


def unmount_images(dirs: BoxDirs) -> None:
    """Undo `mount_images`. On the mount thread. Raises: OSError."""
    kernel.umount(dirs.images, kernel.MNT_DETACH)
    dirs.images.rmdir()


def unmount_below(directory: Path) -> None:
    """Undo mounts that others made there, such as a criu that was killed: nobody may remove files through them.

    Reads the table of all mounts. On the mount thread.
    """
    mark = f"{directory}/"
    for line in reversed(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()):
        place = line.split(" ")[4]
        if place.startswith(mark):
            with contextlib.suppress(OSError):
                kernel.umount(Path(place), kernel.MNT_DETACH)


def unmount_box(dirs: BoxDirs) -> None:
    """Undo `mount_box`, whatever of it exists. Idempotent. On the mount thread."""
    for name in ("i", "s", "m", "lu", "l1", "l0"):
        with contextlib.suppress(OSError):
            # As often as something is stacked there: a crash may have come between two steps.
            while True:
                kernel.umount(dirs.home / name, kernel.MNT_DETACH)
    for name in ("i", "s", "m", "lu", "l1", "l0"):
        with contextlib.suppress(OSError):
            (dirs.home / name).rmdir()
