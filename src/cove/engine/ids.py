"""How the ids inside a box relate to the machine's, and what this machine can do of it.

Best first: `mapped` (a uid range of its own per box, layers idmapped), `shared` (a user namespace too, but one range
for all boxes and copies of the images with shifted owners: a machine without idmapped overlay layers), `host` (no user
namespace: root inside has the machine's uid 0, held by capabilities, seccomp and the other namespaces alone). Anything
but the best is used only where the operator allowed it, and every box of it says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.engine import kernel
from cove.engine.claims import RANGE_SIZE
from cove.engine.userns import UserNamespaces
from cove.model.errors import EngineFailure

_COPY_LIMIT_S: Final = 600.0
_PROBE_BASE: Final = 0x7FFE0000  # above what claims.py hands out


class Ids(StrEnum):
    """See the module."""

    MAPPED = "mapped"
    SHARED = "shared"
    HOST = "host"


DEGRADED: Final = {
    Ids.SHARED: "idmapped mounts",
    Ids.HOST: "user namespaces",
}
"""What each lesser kind does without."""


class IdsChoice(Struct, frozen=True, kw_only=True):
    """What boxes get here. `refusal`: why none can be made unless the operator allows less; empty: they can."""

    ids: Ids
    missing: tuple[str, ...] = ()
    refusal: str = ""


def choose(allowed: frozenset[Ids], *, user_namespaces: str, idmapped_mounts: str) -> IdsChoice:
    """What boxes get on a machine. Pure.

    Args:
        allowed: the lesser kinds that the operator allowed (`COVE_DEGRADE`).
        user_namespaces: why this machine has none; empty: it has.
        idmapped_mounts: the same for idmapped layers of an overlay.
    """
    if user_namespaces:
        reason, ids = f"no user namespaces: {user_namespaces}", Ids.HOST
        cost = "root in a sandbox has the machine's uid 0"
    elif idmapped_mounts:
        reason, ids = f"no idmapped mounts: {idmapped_mounts}", Ids.SHARED
        cost = "all sandboxes share one range of ids"
    else:
        return IdsChoice(ids=Ids.MAPPED)
    if ids not in allowed:
        return IdsChoice(ids=ids, refusal=f"{reason}. COVE_DEGRADE={ids.value} would go on without: {cost}")
    return IdsChoice(ids=ids, missing=(f"{reason}; {cost}",))


def probe(place: Path, tree: Path) -> tuple[str, str]:
    """Why this machine has no user namespaces, and why no idmapped layers; empty: it has. 5 ms.

    Args:
        place: an empty directory of ours, in the engine's mount namespace.
        tree: a directory on the file system that images lie on.
    """
    users = UserNamespaces()
    try:
        with users.fd(_PROBE_BASE) as userns:
            return "", _try_mapping(place, tree, userns)
    except EngineFailure as error:
        return error.public, ""
    finally:
        users.close()


def _try_mapping(place: Path, tree: Path, userns: int) -> str:
    layer, merged = place / "layer", place / "merged"
    with contextlib.ExitStack() as undo:
        for directory in (layer, merged):
            directory.mkdir(mode=0o700)
            undo.callback(directory.rmdir)
        try:
            fd = kernel.open_tree(tree)
            try:
                attributes = kernel.MOUNT_ATTR_IDMAP | kernel.MOUNT_ATTR_RDONLY
                kernel.mount_setattr(fd, attributes=attributes, userns_fd=userns)
                kernel.move_mount(fd, layer)
            finally:
                os.close(fd)
            undo.callback(kernel.umount, layer, kernel.MNT_DETACH)
            # Two lower layers: overlay refuses one alone without an upper.
            kernel.mount("probe", merged, "overlay", kernel.MS_RDONLY, f"lowerdir={layer}:{place}")
            undo.callback(kernel.umount, merged, kernel.MNT_DETACH)
        except OSError as error:
            return error.strerror or str(error)
        return ""


def shifted_copy(tree: Path, target: Path, base: int) -> Path:
    """A copy of `tree` whose files belong to `base` + their owner, made once. Blocks; some seconds the first time.

    The tree may be anybody's image: links are never followed, and what is no file, directory or link is left out.
    Raises: EngineFailure.
    """
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    target.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        copy = ["cp", "--archive", "--reflink=auto", "--no-target-directory", "--", str(tree), str(partial)]
        subprocess.run(copy, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=_COPY_LIMIT_S)
        _shift(partial, base)
        partial.rename(target)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise EngineFailure("the image could not be copied for this machine's id range", internal=str(error)) from error
    return target


def _shift(root: Path, base: int) -> None:
    for _, folders, files, fd in os.fwalk(root, topdown=False, follow_symlinks=False):
        for name in (*folders, *files):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            _give(name, info, base, fd)
    _give(str(root), root.lstat(), base, None)


def _give(name: str, info: os.stat_result, base: int, dir_fd: int | None) -> None:
    uid, gid = base + info.st_uid % RANGE_SIZE, base + info.st_gid % RANGE_SIZE
    os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        # chown(2) drops the set-id bits; in a sandbox they give nothing, but the tree shall be the same.
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=dir_fd)
