"""Copies of files that share their blocks where the file system can (FICLONE, ioctl_ficlone(2)). Blocks."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

_FICLONE: Final = 0x40049409
_PIECE: Final = 64 * 1024**2
_CANNOT: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ETXTBSY)


def copy_file(source_dir: int, target_dir: int, name: str, new_name: str | None = None) -> None:
    """Copy a regular file, holes as holes, to a new one, mode 0600. Names are of descriptors of root's directories.

    Raises: OSError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    source = os.open(name, flags, dir_fd=source_dir)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(new_name or name, flags, 0o600, dir_fd=target_dir)
        try:
            clone(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def clone(source: int, target: int) -> None:
    """Make the empty file `target` a copy of `source`. Raises: OSError."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _copy_data(source, target)


def _copy_data(source: int, target: int) -> None:
    """All that is no hole."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole up to the end
            raise
        at = _copy_range(source, target, at, os.lseek(source, at, os.SEEK_HOLE))


def _copy_range(source: int, target: int, at: int, end: int) -> int:
    while at < end:
        copied = os.copy_file_range(source, target, min(_PIECE, end - at), at, at)
        if not copied:
            break  # it became shorter meanwhile
        at += copied
    return end
