"""Where the directories of checkpoints lie: below the data directory, or as subvolumes in the pool of layers.

In the pool a whole directory is flushed without waiting for anybody else's files (40 ms for 37 MB; `fsync` of 80 files
took 220-350 ms there), removed at once, and packed in the background: `memory` is written plain, because packing it on
its way to the disk took 150 ms longer (decision 0017). All calls block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from typing import Final

from cove.engine import btrfs

_PASSING: Final = "passing-"


class Shelf(ABC):
    """Directories by name, root's alone."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def open(self) -> None:
        """Make it ready. Raises: OSError."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)

    @abstractmethod
    def make(self, name: str) -> Path:
        """A fresh empty directory. Raises: OSError."""

    @abstractmethod
    def flush(self, name: str) -> None:
        """Everything in it on the disk. Raises: OSError."""

    @abstractmethod
    def publish(self, name: str, new_name: str) -> None:
        """Give it another name, on the disk when it returns. Raises: OSError."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove it with all it holds. Idempotent. Raises: OSError."""

    @abstractmethod
    def taken_bytes(self, name: str) -> int:
        """What it really takes on the disk. Raises: OSError."""

    def pack(self, name: str) -> None:
        """Make what it holds smaller, where the file system can; its content and its times stay. Raises: OSError."""
        del name

    def names(self) -> set[str]:
        """What is there. Raises: OSError."""
        return {entry.name for entry in os.scandir(self.home) if not entry.name.startswith(_PASSING)}


class DirectoryShelf(Shelf):
    """Plain directories on any file system."""

    def make(self, name: str) -> Path:
        path = self.home / name
        path.mkdir(mode=0o700)
        return path

    def flush(self, name: str) -> None:
        for folder, _, files in os.walk(self.home / name, topdown=False):
            for file in files:
                _sync(Path(folder) / file)
            _sync(Path(folder))

    def publish(self, name: str, new_name: str) -> None:
        (self.home / name).rename(self.home / new_name)
        _sync(self.home)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.home / name)

    def taken_bytes(self, name: str) -> int:
        return sum(
            (Path(folder) / file).lstat().st_blocks * 512
            for folder, _, files in os.walk(self.home / name)
            for file in files
        )


class SubvolumeShelf(Shelf):
    """A subvolume each, in a directory on btrfs."""

    def open(self) -> None:
        super().open()
        with _folder(self.home) as home:
            for entry in list(os.scandir(self.home)):
                if entry.name.startswith(_PASSING):
                    btrfs.delete_subvolume(home, entry.name)

    def make(self, name: str) -> Path:
        with _folder(self.home) as home:
            btrfs.create_subvolume(home, name)
        path = self.home / name
        path.chmod(0o700)
        return path

    def flush(self, name: str) -> None:
        # Making a snapshot writes out its source, and nothing but it.
        with _folder(self.home) as home, _folder(self.home / name) as source:
            btrfs.snapshot(source, home, _PASSING + name)
            btrfs.delete_subvolume(home, _PASSING + name)

    def publish(self, name: str, new_name: str) -> None:
        (self.home / name).rename(self.home / new_name)
        with _folder(self.home) as home:
            btrfs.commit(home)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _folder(self.home) as home:
            try:
                btrfs.delete_subvolume(home, name)
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.ENOTDIR}:
                    raise
                shutil.rmtree(name, dir_fd=home)  # no subvolume: nothing of ours, but in the way

    def taken_bytes(self, name: str) -> int:
        with _folder(self.home / name) as folder:
            return btrfs.referenced_bytes(folder)

    def pack(self, name: str) -> None:
        for folder, _, files in os.walk(self.home / name):
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    btrfs.pack_file(Path(folder) / file)
        self.flush(name)


@contextlib.contextmanager
def _folder(path: Path) -> Generator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
