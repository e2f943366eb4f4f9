"""A layer as a tar archive, and back: by programs in a world of their own (`confined/{keep,fetch}layer.py`). Blocks.

What the archive is of was made by a sandbox, and perhaps the archive by a stranger. Nothing here walks the one or
reads the other, but for the marks of opaque directories: paths that are resolved within the layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from cove.engine import kernel
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
from cove.model.errors import BadRequest, Unsupported

MOST_FILES: Final = 2_000_000
MOST_BYTES: Final = 1024**4
TIMEOUT_S: Final = 3600.0
OPAQUE: Final = "trusted.overlay.opaque"
_CAP_DAC_READ_SEARCH: Final = 2
_CAP_SYS_ADMIN: Final = 21
_MEMORY_BYTES: Final = 2 * 1024**3
_OPEN_FILES: Final = 4096
_SLACK_BYTES: Final = 64 * 1024**2


class LayerArchive(Struct, frozen=True, kw_only=True):
    """What was written: SHA-256 of the archive, its size, how many entries."""

    digest: str
    size: int
    files: int


def keep_layer(tree: Path, file: Path) -> LayerArchive:
    """Write the tree of a layer, at which nobody writes, to a new file.

    Raises: Unsupported (something in it, named), CapacityExceeded, EngineFailure.
    """
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    spec = Confinement(
        argv=python_program("keeplayer"),
        binds=((tree, "/target", False), (file, "/archive", True)),
        # The second only to read overlay's own attributes.
        capabilities=(_CAP_DAC_READ_SEARCH, _CAP_SYS_ADMIN),
        limits={"RLIMIT_AS": _MEMORY_BYTES, "RLIMIT_NOFILE": _OPEN_FILES},
    )
    try:
        facts = _run(spec, {"most_bytes": MOST_BYTES, "most_files": MOST_FILES})
    except BadRequest as error:  # not the caller's doing: the sandbox's
        raise Unsupported("the sandbox's files cannot be kept: " + error.public.partition(": ")[2]) from error
    return LayerArchive(digest=facts["digest"], size=facts["size"], files=facts["files"])


def fetch_layer(file: Path, tree: Path, *, limit_bytes: int, digest: str = "") -> None:
    """Fill the empty directory `tree` from an archive. What is there on failure is of no use.

    Raises: BadRequest (damaged or hostile), TooLarge, CapacityExceeded, EngineFailure.
    """
    with tempfile.NamedTemporaryFile(prefix="cove-marks-") as marks:
        spec = Confinement(
            argv=python_program("fetchlayer"),
            binds=((file, "/archive", False), (tree, "/target", True), (Path(marks.name), "/marks", True)),
            capabilities=(CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT),
            limits={"RLIMIT_AS": _MEMORY_BYTES, "RLIMIT_NOFILE": _OPEN_FILES},
        )
        # The file system holds to the limit; this bounds the rest, and counts a block for each entry.
        most_bytes = 2 * limit_bytes + _SLACK_BYTES
        order = {"most_bytes": most_bytes, "most_files": MOST_FILES, "most_ratio": 2, "digest": digest}
        _run(spec, order)
        _mark_opaque(tree, Path(marks.name))


def _run(spec: Confinement, order: dict[str, Any]) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        return await converse(spec, order, lambda _: None, what="snapshot", timeout_s=TIMEOUT_S)

    return asyncio.run(run())  # this is a worker thread: it has no loop


def _mark_opaque(tree: Path, marks: Path) -> None:
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for path in marks.read_bytes().split(b"\0")[:-1]:
            with contextlib.suppress(ValueError):
                fd = kernel.open_in_root(root, os.fsdecode(path or b"."), os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.setxattr(fd, OPAQUE, b"y")
                finally:
                    os.close(fd)
    except OSError as error:
        raise BadRequest("this snapshot cannot be used: its directories are damaged", internal=str(error)) from error
    finally:
        os.close(root)
