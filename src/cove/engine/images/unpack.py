"""Layers into a tree, and a tree into a digest: by `confined/unpack.py`, which sees nothing but these files.

It has four capabilities over one directory, no network, no device, no program to run but a decompressor, a bound on
memory. What it does to hostile layers is said there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from cove.engine.confined.process import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_FOWNER,
    CAP_FSETID,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_CHROOT,
    Confinement,
    python_program,
)
from cove.engine.images.dialogue import converse
from cove.engine.images.settings import UnpackLimits

_MEMORY_BYTES: Final = 2 * 1024**3
_MOST_ERROR: Final = 4096
_OPEN_FILES: Final = 8192
_SLACK_BYTES: Final = 64 * 1024**2


class LayerFile(Struct, frozen=True, kw_only=True):
    """A tar file, plain or packed by gzip or zstd. Digests are checked where given (`sha256:...`)."""

    path: Path
    digest: str = ""
    diff_id: str = ""


class Tree(Struct, frozen=True, kw_only=True):
    """What was measured. `size_bytes` is the sum of file sizes."""

    digest: str
    size_bytes: int
    files: int


async def unpack_layers(
    layers: Sequence[LayerFile],
    target: Path,
    limits: UnpackLimits,
    *,
    timeout_s: float,
    progress: Callable[[int], None] = lambda _: None,
) -> Tree:
    """Apply `layers` in order to the empty directory `target`, whose file system then has all of it on the disk.

    On failure what is in `target` is of no use: the caller removes it. `progress` gets the packed bytes done.
    Raises: BadRequest (damaged or hostile), TooLarge (a limit), CapacityExceeded (disk full), EngineFailure.
    """
    binds = tuple((layer.path, f"/layers/{number}", False) for number, layer in enumerate(layers))
    order = {
        "layers": [
            {"path": f"/layers/{number}", "digest": layer.digest, "diff_id": layer.diff_id}
            for number, layer in enumerate(layers)
        ],
        "most_bytes": limits.most_bytes,
        "most_files": limits.most_files,
        "most_ratio": limits.most_ratio,
    }
    return await _run(order, (*binds, (target, "/target", True)), timeout_s, progress, limits.most_bytes + _SLACK_BYTES)


async def measure(rootfs: Path, *, timeout_s: float) -> Tree:
    """Digest a tree that is there. Raises: EngineFailure; BadRequest when it cannot be read."""
    return await _run({"layers": None}, ((rootfs, "/target", False),), timeout_s, lambda _: None, 0)


async def _run(
    order: dict[str, Any],
    binds: tuple[tuple[Path, str, bool], ...],
    timeout_s: float,
    progress: Callable[[int], None],
    largest_file: int,
) -> Tree:
    spec = Confinement(
        argv=python_program("unpack"),
        binds=binds,
        capabilities=(CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT),
        limits={"RLIMIT_AS": _MEMORY_BYTES, "RLIMIT_NOFILE": _OPEN_FILES, "RLIMIT_FSIZE": largest_file},
    )
    message = await converse(spec, order, progress, what="image", timeout_s=timeout_s)
    tree = message["tree"]
    return Tree(digest=tree["digest"], size_bytes=tree["size_bytes"], files=tree["files"])
