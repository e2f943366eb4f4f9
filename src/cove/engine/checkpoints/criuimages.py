"""What of criu's images is written anew for a box made of them: its range of ids, its host name. Pure but `lay`.

criu keeps all ids as they are inside, and only one file says what they are outside. An image file is two numbers that
name its kind, then messages with their length before them. The images hold what the sandbox had in its memory, so
nothing is believed of them: the files named here are made from nothing but their kind, and everything else is criu's
to read, which does so for images that this server's key has signed (`manifest.py`).
"""

from __future__ import annotations

import re
import stat
import struct
from pathlib import Path
from typing import Final

from cove.engine.checkpoints.protobuf import field

_COMMON: Final = 0x54564319
_USERNS: Final = 0x55474906
_UTSNS: Final = 0x54473203
_HEAD: Final = struct.Struct("<II")
_REWRITTEN: Final = re.compile(r"(userns|utsns)-[0-9]{1,10}\.img")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_READABLE: Final = 0o644
NO_DOMAIN: Final = "(none)"


class Damaged(Exception):
    """These are no images that this can be made of. The text says why, as a clause."""


def user_namespace(base: int, size: int) -> bytes:
    """The image of a user namespace that maps ids from 0 on to `base`.. outside."""
    extent = field(1, 0) + field(2, base) + field(3, size)
    return _image(_USERNS, field(1, extent) + field(2, extent))


def uts_namespace(hostname: str) -> bytes:
    """The image of a UTS namespace."""
    return _image(_UTSNS, field(1, hostname) + field(2, NO_DOMAIN))


def _image(kind: int, body: bytes) -> bytes:
    return _HEAD.pack(_COMMON, kind) + struct.pack("<I", len(body)) + body


def lay(source: Path, target: Path, *, base: int, size: int, hostname: str) -> None:
    """Make `target` a directory of the images in `source` that are this box's own, to be laid over `source`.

    Parts of criu open them as root of the box, so all are made readable; the directories above are closed to others.
    `base` 0: it has no user namespace. Raises: Damaged, OSError.
    """
    target.mkdir(mode=0o711)
    target.chmod(0o711)
    own = {"userns": user_namespace(base, size), "utsns": uts_namespace(hostname)}
    written: list[str] = []
    for image in sorted(source.iterdir()):
        name, mode = image.name, image.lstat().st_mode
        if _NAME.fullmatch(name) is None or not stat.S_ISREG(mode):
            raise Damaged("it holds something that is no image")
        if stat.S_IMODE(mode) != _READABLE:
            image.chmod(_READABLE)
        if found := _REWRITTEN.fullmatch(name):
            if _head(image) != own[found[1]][: _HEAD.size]:
                raise Damaged(f"the image {name} is none of its kind")
            (target / name).write_bytes(own[found[1]])
            (target / name).chmod(_READABLE)
            written.append(found[1])
    wanted = ["userns", "utsns"] if base else ["utsns"]
    if written != wanted:
        raise Damaged(f"it needs one image of each of {', '.join(wanted)}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD.size)
