"""Writable layers: one directory per box with an exact size limit. The port and its three kinds.

`btrfs` (a pool in a sparse loop file, or the data directory itself where that is btrfs; subvolume per box, quota by
ioctl: 0.1 ms), `ext4` (a sparse loop file per box: 15 ms), `tmpfs` (memory; lost with the machine's power). What the
sandbox sees at the limit: EDQUOT on btrfs, ENOSPC on the others; nothing outside notices.

All calls block and run on the mount thread. Names are core ids, made by us. To add a kind: a class here, a row in
`open_layers`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from typing import Final, NamedTuple

from cove.engine import btrfs, kernel
from cove.model.errors import EngineFailure

_FLAGS: Final = kernel.MS_NOSUID | kernel.MS_NODEV
_TOOL_LIMIT_S: Final = 60.0
_MIN_POOL: Final = 256 * 1024**2
_LEAST_ROOM: Final = 1024**2
_MOST_ITEMS: Final = 200_000
"""Of a tree, for measuring it: 0.15 s. A larger one counts as all that it ever held."""

_MEASURE_EVERY_S: Final = 10.0
_PASSING: Final = "f-"
_ATTRIBUTE: Final = "trusted.cove.inherited"


class LayerStore(ABC):
    """Makes, limits and removes writable layers."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """Its name, as a sandbox's view shows it."""

    @abstractmethod
    def open(self) -> None:
        """Make it ready, or find what a former server left ready. Raises: EngineFailure, OSError."""

    @abstractmethod
    def create(self, name: str, limit_bytes: int) -> Path:
        """A fresh empty layer. Raises: OSError."""

    @abstractmethod
    def resize(self, name: str, limit_bytes: int) -> None:
        """Change its limit. Raises: OSError; Unsupported where the kind cannot."""

    @abstractmethod
    def used_bytes(self, name: str) -> int:
        """What it takes on the disk now; 0 where the kind does not tell."""

    def copy(self, source: str, name: str, limit_bytes: int | None) -> Path:
        """Make layer `name` a copy of what `source` is now, with another limit; None: it is only kept, not written.

        Nothing may write to the source meanwhile. The limit is for all that the copy holds; where it has more already
        it may write 1 MiB. At once where `copies_at_once` (after `flush`); otherwise it takes as long as its files are
        big. On any thread. Raises: OSError, EngineFailure.
        """
        detail = f"{source} to {name}, {limit_bytes} bytes"
        raise EngineFailure(f"writable layers of kind {self.kind} cannot be copied", internal=detail)

    @property
    def copies_at_once(self) -> bool:
        """Whether `copy` takes milliseconds whatever the size."""
        return False

    def flush(self, name: str) -> None:
        """Write out what is not on the disk yet, so that a copy soon after is quick. Raises: OSError."""
        del name

    def settle(self, name: str) -> None:
        """Measure exactly what a kept copy holds, which `copy` left for later. On any thread. Raises: OSError."""
        del name

    def place_beside(self, name: str) -> Path | None:
        """A directory `name` where the layers lie, for what belongs to kept copies; None: there is no such place."""
        del name
        return None

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove it with all it holds. Idempotent."""

    @abstractmethod
    def names(self) -> set[str]:
        """The layers that exist."""

    @abstractmethod
    def close(self) -> None:
        """Unmount everything (the layers are gone already)."""

    def space(self) -> tuple[int, int]:
        """Bytes in all and free where layers lie; (0, 0): each layer has its own."""
        return (0, 0)

    @property
    def device(self) -> str | None:
        """`major:minor` of the block device under the layers, for io limits; None: there is none to limit."""
        return None


def _run(*argv: str) -> str:
    try:
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=_TOOL_LIMIT_S, input="")
    except FileNotFoundError as error:
        raise EngineFailure(f"{argv[0]} is not installed: run `cove setup`") from error
    except subprocess.CalledProcessError as error:
        raise EngineFailure(f"{argv[0]} failed", internal=f"{argv}: {error.stderr[-2000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineFailure(f"{argv[0]} did not end within {_TOOL_LIMIT_S:.0f} s") from error
    return done.stdout.strip()


class _Inherited(NamedTuple):
    """What a copy began with, and its limit for all that it holds; kept with it, as an attribute of its directory.

    That directory is the server's: a sandbox sees only `u` below it.
    """

    bytes: int
    limit: int | None

    @classmethod
    def of(cls, fd: int) -> _Inherited:
        try:
            size, _, limit = os.getxattr(fd, _ATTRIBUTE).partition(b" ")
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return cls(0, None)
        return cls(int(size), int(limit) if limit else None)

    def write(self, fd: int) -> None:
        os.setxattr(fd, _ATTRIBUTE, f"{self.bytes} {'' if self.limit is None else self.limit}".encode())

    def is_near(self, own: int) -> bool:
        """Whether the copy may soon be told that it is full."""
        return self.bytes > 0 and self.limit is not None and self.bytes + own > self.limit * 0.8


class BtrfsLayers(LayerStore):
    """Subvolumes with a quota each, in a pool of `pool_bytes` (0: 75 % of the free space)."""

    def __init__(self, directory: Path, pool_bytes: int) -> None:
        self._dir = directory
        self._root = directory / "btrfs"
        self._file = directory / "pool.btrfs"
        self._bytes = pool_bytes
        self._fd = -1
        self._quota = "squota"
        self._stale_groups: list[int] = []
        self._others: set[str] = set()
        self._measured: dict[str, float] = {}

    @property
    def kind(self) -> str:
        return f"btrfs-{self._quota}"

    def open(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not btrfs.is_btrfs(self._root):
            self._mount_pool()
        self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._quota = btrfs.enable_quota(self._fd)
        for name in self.names():
            if name.startswith(_PASSING):
                self.remove(name)

    def _mount_pool(self) -> None:
        if not self._file.exists():
            self._make_pool()
        # Direct I/O: otherwise every page of a sandbox lies in the page cache twice, the second time charged to nobody.
        loop = _run("losetup", "--find", "--show", "--nooverlap", "--direct-io=on", str(self._file))
        try:
            kernel.mount(loop, self._root, "btrfs", _FLAGS | kernel.MS_NOATIME, "discard=async")
        finally:
            # With the mount in place this only sets autoclear: the device goes when the mount goes.
            _run("losetup", "--detach", loop)

    def _make_pool(self) -> None:
        size = self._bytes or int(shutil.disk_usage(self._dir).free * 0.75)
        if size < _MIN_POOL:
            raise EngineFailure("too little disk space for the pool of writable layers: 256 MiB are needed")
        partial = self._file.with_suffix(".partial")
        with partial.open("wb") as file:
            file.truncate(size)
        partial.chmod(0o600)
        # One copy of metadata: a second one on the same sparse file protects against nothing.
        _run("mkfs.btrfs", "--quiet", "--metadata", "single", "--data", "single", str(partial))
        partial.rename(self._file)

    def create(self, name: str, limit_bytes: int) -> Path:
        btrfs.create_subvolume(self._fd, name)
        with self._open(name) as fd:
            btrfs.limit(fd, limit_bytes)
        return self._root / name

    def copy(self, source: str, name: str, limit_bytes: int | None) -> Path:
        with self._open(source) as fd:
            # The quota charges a copy only for what it writes itself: what it begins with is subtracted from its limit.
            btrfs.snapshot(fd, self._fd, name)
            # Read afterwards: making the snapshot brings the numbers up to date.
            inherited = btrfs.referenced_bytes(fd) + _Inherited.of(fd).bytes if self._quota == "squota" else 0
        with self._open(name) as fd:
            # Overlay wants its work directory empty, and may have been in the middle of something.
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree("w", dir_fd=fd)
            self._limit(fd, _Inherited(inherited, limit_bytes))
        return self._root / name

    @property
    def copies_at_once(self) -> bool:
        return True

    def flush(self, name: str) -> None:
        # A snapshot writes out its source alone; a sync of the file system would wait for everybody's files.
        passing = _PASSING + name
        with self._open(name) as fd:
            btrfs.snapshot(fd, self._fd, passing)
        self.remove(passing)

    def settle(self, name: str) -> None:
        with self._open(name) as fd:
            self._measure(fd)

    def place_beside(self, name: str) -> Path | None:
        place = self._root / name
        place.mkdir(mode=0o700, exist_ok=True)
        self._others.add(name)
        return place

    def resize(self, name: str, limit_bytes: int) -> None:
        with self._open(name) as fd:
            inherited = self._measure(fd)
            if inherited.bytes:
                self._limit(fd, inherited._replace(limit=limit_bytes))
            else:
                btrfs.limit(fd, limit_bytes)

    def used_bytes(self, name: str) -> int:
        try:
            with self._open(name) as fd:
                inherited = _Inherited.of(fd)
                own = btrfs.referenced_bytes(fd)
                if inherited.is_near(own) and time.monotonic() > self._measured.get(name, 0.0) + _MEASURE_EVERY_S:
                    self._measured[name] = time.monotonic()
                    inherited = self._measure(fd)
                return own + inherited.bytes
        except OSError:
            return 0

    def _measure(self, fd: int) -> _Inherited:
        """How much of what it began with a copy still has: files that it removed count no longer."""
        inherited = _Inherited.of(fd)
        if not inherited.bytes:
            return inherited
        left = btrfs.inherited_bytes(fd, _MOST_ITEMS)
        if left is not None and left < inherited.bytes:
            inherited = inherited._replace(bytes=left)
            self._limit(fd, inherited)
        return inherited

    def _limit(self, fd: int, inherited: _Inherited) -> None:
        # Without a limit for this moment: a full layer could not be given an attribute.
        btrfs.unlimit(fd)
        inherited.write(fd)
        if inherited.limit is not None:
            least = btrfs.referenced_bytes(fd) + _LEAST_ROOM
            btrfs.limit(fd, max(inherited.limit - inherited.bytes, least))

    def remove(self, name: str) -> None:
        try:
            with self._open(name) as fd:
                group = btrfs.subvolume_id(fd)
        except FileNotFoundError:
            return
        btrfs.delete_subvolume(self._fd, name)
        self._measured.pop(name, None)
        # Kernels before 6.11 keep the quota group of a deleted subvolume, and remove it only after the cleaner is done.
        self._stale_groups = [g for g in [*self._stale_groups, group] if not btrfs.remove_quota_group(self._fd, g)][
            -4096:
        ]

    def names(self) -> set[str]:
        return {entry.name for entry in self._root.iterdir()} - self._others

    def space(self) -> tuple[int, int]:
        info = os.statvfs(self._root)
        return info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._file.exists():
            with contextlib.suppress(OSError):
                kernel.umount(self._root)

    @property
    def device(self) -> str | None:
        # Anonymous btrfs device numbers cannot be throttled: ask what is mounted.
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            head, _, tail = line.partition(" - ")
            if head.split()[4] == str(self._root):
                source = Path(tail.split()[1]).stat()
                return f"{os.major(source.st_rdev)}:{os.minor(source.st_rdev)}"
        return None

    @contextlib.contextmanager
    def _open(self, name: str) -> Generator[int]:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            yield fd
        finally:
            os.close(fd)


class _MountedLayers(LayerStore):
    """Layers that are a mount each."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / self.kind

    def open(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def used_bytes(self, name: str) -> int:
        try:
            info = os.statvfs(self._root / name)
        except OSError:
            return 0
        return (info.f_blocks - info.f_bfree) * info.f_frsize

    def remove(self, name: str) -> None:
        directory = self._root / name
        with contextlib.suppress(OSError):
            kernel.umount(directory, kernel.MNT_DETACH)
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()

    def names(self) -> set[str]:
        return {d.name for d in self._root.iterdir() if d.is_dir()}

    def close(self) -> None:
        for name in self.names():
            self.remove(name)


class LoopExt4Layers(_MountedLayers):
    """A sparse ext4 file per box."""

    @property
    def kind(self) -> str:
        return "ext4"

    def open(self) -> None:
        super().open()
        # Only asks for a free device: without any, every layer would fail later, and `auto` takes memory instead.
        _run("losetup", "--find")

    def create(self, name: str, limit_bytes: int) -> Path:
        file, directory = self._file(name), self._root / name
        with file.open("wb") as handle:
            handle.truncate(limit_bytes)
        _run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", str(file))
        directory.mkdir(mode=0o700)
        loop = _run("losetup", "--find", "--show", str(file))
        try:
            kernel.mount(loop, directory, "ext4", _FLAGS, "discard")
        finally:
            _run("losetup", "--detach", loop)
        (directory / "lost+found").rmdir()
        return directory

    def resize(self, name: str, limit_bytes: int) -> None:
        directory = self._root / name
        loop = next(
            line.split()[0]
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if line.split()[1] == str(directory)
        )
        if limit_bytes < self._file(name).stat().st_size:
            raise EngineFailure("this machine's disk limit (ext4) cannot shrink while the sandbox runs")
        os.truncate(self._file(name), limit_bytes)
        _run("losetup", "--set-capacity", loop)
        _run("resize2fs", loop)

    def remove(self, name: str) -> None:
        super().remove(name)
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._root / f"{name}.img"


class TmpfsLayers(_MountedLayers):
    """A tmpfs per box: what the sandbox writes counts as its memory."""

    @property
    def kind(self) -> str:
        return "tmpfs"

    def create(self, name: str, limit_bytes: int) -> Path:
        directory = self._root / name
        directory.mkdir(mode=0o700)
        kernel.mount("cove", directory, "tmpfs", _FLAGS, f"size={limit_bytes},mode=0700")
        return directory

    def resize(self, name: str, limit_bytes: int) -> None:
        kernel.mount("cove", self._root / name, None, kernel.MS_REMOUNT | _FLAGS, f"size={limit_bytes}")


def open_layers(kind: str, data_dir: Path, pool_bytes: int) -> tuple[LayerStore, tuple[str, ...]]:
    """The store asked for, or with `auto` the best that opens; and what could not be had, with the reason.

    Raises: EngineFailure when the one asked for, or every one, fails.
    """
    directory = data_dir / "layers"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    candidates: dict[str, LayerStore] = {
        "btrfs": BtrfsLayers(directory, pool_bytes),
        "ext4": LoopExt4Layers(directory),
        "tmpfs": TmpfsLayers(directory),
    }
    missing: list[str] = []
    for name in [kind] if kind != "auto" else list(candidates):
        store = candidates[name]
        try:
            store.open()
        except (OSError, EngineFailure) as error:
            missing.append(f"disk limits by {name}: {error.strerror if isinstance(error, OSError) else error}")
            continue
        return store, tuple(missing)
    raise EngineFailure("no storage for writable layers can be had", internal="; ".join(missing))
