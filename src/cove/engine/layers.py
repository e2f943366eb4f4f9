"""Writable layers: one directory per box with an exact size limit. Here: btrfs, and which is taken.

`btrfs` (a pool in a sparse loop file, or the data directory itself where that is btrfs; subvolume per box, quota by
ioctl: 0.1 ms), `ext4` (a sparse loop file per box: 15 ms), `tmpfs` (memory; lost with the machine's power). What the
sandbox sees at the limit: EDQUOT on btrfs, ENOSPC on the others; nothing outside notices.

All calls block and run on the mount thread. Names are core ids, made by us. `layerstore.py` is the port, the
other kinds are in `mountedlayers.py`. To add one: a class, and a row in `open_layers`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Final, NamedTuple

from cove.engine import btrfs, kernel
from cove.engine.layerarchive import fetch_layer
from cove.engine.layerstore import LayerStore, run_tool
from cove.engine.mountedlayers import LoopExt4Layers, TmpfsLayers
from cove.model.errors import EngineFailure

__all__ = ["BtrfsLayers", "LayerStore", "LoopExt4Layers", "TmpfsLayers", "open_layers"]

_FLAGS: Final = kernel.MS_NOSUID | kernel.MS_NODEV
_MIN_POOL: Final = 256 * 1024**2
_LEAST_ROOM: Final = 1024**2
_MOST_ITEMS: Final = 200_000
"""Of a tree, for measuring it: 0.15 s. A larger one counts as all that it ever held."""

_FEW_ITEMS: Final = 20_000
"""The same for one that is far from its limit: who asks waits for it."""

_MEASURE_NEAR_S: Final = 10.0
_MEASURE_EVERY_S: Final = 300.0
_GROUPS_AT_ONCE: Final = 32
_PASSING: Final = "f-"
_ATTRIBUTE: Final = "trusted.cove.inherited"


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

    @property
    def is_used(self) -> bool:
        """Whether there is something to measure in it: a kept copy does not change."""
        return self.bytes > 0 and self.limit is not None

    def is_near(self, own: int) -> bool:
        """Whether the copy may soon be told that it is full."""
        return self.limit is not None and self.bytes + own > self.limit * 0.8


class BtrfsLayers(LayerStore):
    """Subvolumes with a quota each, in a pool of `pool_bytes` (0: 75 % of the free space)."""

    def __init__(self, directory: Path, pool_bytes: int) -> None:
        self._dir = directory
        self._root = directory / "btrfs"
        self._file = directory / "pool.btrfs"
        self._bytes = pool_bytes
        self._fd = -1
        self._quota = "squota"
        self._stale_groups: deque[int] = deque(maxlen=4096)
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
        loop = run_tool("losetup", "--find", "--show", "--nooverlap", "--direct-io=on", str(self._file))
        try:
            kernel.mount(loop, self._root, "btrfs", _FLAGS | kernel.MS_NOATIME, "discard=async")
        finally:
            # With the mount in place this only sets autoclear: the device goes when the mount goes.
            run_tool("losetup", "--detach", loop)

    def _make_pool(self) -> None:
        size = self._bytes or int(shutil.disk_usage(self._dir).free * 0.75)
        if size < _MIN_POOL:
            raise EngineFailure("too little disk space for the pool of writable layers: 256 MiB are needed")
        partial = self._file.with_suffix(".partial")
        with partial.open("wb") as file:
            file.truncate(size)
        partial.chmod(0o600)
        # One copy of metadata: a second one on the same sparse file protects against nothing.
        run_tool("mkfs.btrfs", "--quiet", "--metadata", "single", "--data", "single", str(partial))
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

    def measure(self, name: str) -> None:
        with self._open(name) as fd:
            self._measure(fd)

    @contextlib.contextmanager
    def tree(self, name: str) -> Generator[Path]:
        yield self._root / name

    def fetch_archive(self, name: str, file: Path, limit_bytes: int, *, digest: str = "") -> None:
        try:
            tree = self.create(name, limit_bytes) / "u"
            tree.mkdir(mode=0o755)
            fetch_layer(file, tree, limit_bytes=limit_bytes, digest=digest)
            with self._open(name) as fd:
                btrfs.unlimit(fd)
            self.flush(name)
        except BaseException:
            self.remove(name)
            raise

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
                if inherited.is_used and self._is_due(name, is_near=inherited.is_near(own)):
                    inherited = self._measure(fd, _MOST_ITEMS if inherited.is_near(own) else _FEW_ITEMS)
                return own + inherited.bytes
        except OSError:
            return 0

    def _is_due(self, name: str, *, is_near: bool) -> bool:
        """Whether to measure it again now."""
        last, now = self._measured.get(name), time.monotonic()
        if last is not None and now < last + (_MEASURE_NEAR_S if is_near else _MEASURE_EVERY_S):
            return False
        self._measured[name] = now
        return True

    def _measure(self, fd: int, most_items: int = _MOST_ITEMS) -> _Inherited:
        """How much of what it began with a copy still has: files that it removed count no longer."""
        inherited = _Inherited.of(fd)
        if not inherited.bytes:
            return inherited
        left = btrfs.inherited_bytes(fd, most_items)
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
        # Kernels before 6.11 keep the quota group of a deleted subvolume, and remove it only after the cleaner is done;
        # any kernel keeps it while a copy shares its extents. A few are tried each time, in turn.
        self._stale_groups.append(group)
        for _ in range(min(_GROUPS_AT_ONCE, len(self._stale_groups))):
            stale = self._stale_groups.popleft()
            if not btrfs.remove_quota_group(self._fd, stale):
                self._stale_groups.append(stale)

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
