"""Layers that are a mount each: an ext4 file, or memory. See `layers.py`.

A kept copy is no mount but a file beside: of ext4 the image, of memory a tar archive, because memory does not survive
the machine. Making one takes as long as its files are big, unless the data directory's file system shares blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Final

from cove.engine import kernel
from cove.engine.layerarchive import LayerArchive, fetch_layer, keep_layer
from cove.engine.layerstore import LayerStore, run_tool
from cove.engine.reflink import copy_file
from cove.model.errors import CapacityExceeded, EngineFailure

_FLAGS: Final = kernel.MS_NOSUID | kernel.MS_NODEV
_VIEW: Final = ".view-"
_PARTIAL: Final = ".partial"
_E2FSCK_FINE: Final = (0, 1)  # e2fsck(8): 1 is "errors corrected", and a mounted image was never marked clean


class _MountedLayers(LayerStore):
    """Layers that are a mount each; `_suffix` is that of the file of a kept one."""

    _suffix = ""

    def __init__(self, directory: Path) -> None:
        self._root = directory / self.kind

    def open(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for partial in (*self._root.glob(f"*{_PARTIAL}"), *self._root.glob(f"{_VIEW}*{self._suffix}")):
            partial.unlink()

    def used_bytes(self, name: str) -> int:
        try:
            if not os.path.ismount(self._root / name):
                return self._file(name).stat().st_blocks * 512
            info = os.statvfs(self._root / name)
        except OSError:
            return 0
        return (info.f_blocks - info.f_bfree) * info.f_frsize

    def remove(self, name: str) -> None:
        self._unmount(self._root / name)
        self._file(name).unlink(missing_ok=True)

    def names(self) -> set[str]:
        found = [entry for entry in self._root.iterdir() if not entry.name.startswith(_VIEW)]
        kept = {entry.stem for entry in found if entry.suffix == self._suffix}
        return kept | {entry.name for entry in found if entry.is_dir()}

    def settle(self, name: str) -> None:
        for path in (self._file(name), self._root):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        for entry in list(self._root.iterdir()):
            if entry.is_dir():
                self._unmount(entry)

    def _file(self, name: str) -> Path:
        return self._root / f"{name}{self._suffix}"

    def _copy_file(self, source: str, name: str) -> None:
        """The file of a layer; whole or not there. Raises: OSError."""
        partial = self._file(name).with_suffix(_PARTIAL)
        partial.unlink(missing_ok=True)
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy_file(folder, folder, self._file(source).name, partial.name)
        finally:
            os.close(folder)
        partial.rename(self._file(name))

    def _unmount(self, directory: Path) -> None:
        with contextlib.suppress(OSError):
            kernel.umount(directory, kernel.MNT_DETACH)
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()


class LoopExt4Layers(_MountedLayers):
    """A sparse ext4 file per box."""

    _suffix = ".img"

    @property
    def kind(self) -> str:
        return "ext4"

    def open(self) -> None:
        super().open()
        # Only asks for a free device: without any, every layer would fail later, and `auto` takes memory instead.
        run_tool("losetup", "--find")

    def create(self, name: str, limit_bytes: int) -> Path:
        file = self._file(name)
        with file.open("wb") as handle:
            handle.truncate(limit_bytes)
        run_tool("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", str(file))
        directory = self._mount(name, self._root / name)
        (directory / "lost+found").rmdir()
        return directory

    def copy(self, source: str, name: str, limit_bytes: int | None) -> Path:
        self.flush(source)
        self._copy_file(source, name)
        if limit_bytes is None:
            return self._file(name)
        try:
            if limit_bytes != self._file(name).stat().st_size:
                self._fit(self._file(name), limit_bytes)
            directory = self._mount(name, self._root / name)
            # Overlay wants its work directory empty, and may have been in the middle of something.
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory / "w")
        except BaseException:
            self.remove(name)
            raise
        return directory

    def flush(self, name: str) -> None:
        # It has no journal: on the disk it is whole only when all of it was written out.
        if os.path.ismount(self._root / name):
            fd = os.open(self._root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                kernel.syncfs(fd)
            finally:
                os.close(fd)

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
        run_tool("losetup", "--set-capacity", loop)
        run_tool("resize2fs", loop)

    @contextlib.contextmanager
    def tree(self, name: str) -> Generator[Path]:
        if os.path.ismount(self._root / name):
            yield self._root / name
            return
        view = self._root / f"{_VIEW}{name}"
        try:
            yield self._mount(name, view, kernel.MS_RDONLY)
        finally:
            self._unmount(view)

    def fetch_archive(self, name: str, file: Path, limit_bytes: int, *, digest: str = "") -> None:
        try:
            tree = self.create(name, limit_bytes) / "u"
            tree.mkdir(mode=0o755)
            fetch_layer(file, tree, limit_bytes=limit_bytes, digest=digest)
            self.flush(name)
            self._unmount(self._root / name)
            self.settle(name)
        except BaseException:
            self.remove(name)
            raise

    def _mount(self, name: str, directory: Path, flags: int = 0) -> Path:
        directory.mkdir(mode=0o700, exist_ok=True)
        only_read = ("--read-only",) if flags & kernel.MS_RDONLY else ()
        loop = run_tool("losetup", "--find", "--show", *only_read, str(self._file(name)))
        try:
            kernel.mount(loop, directory, "ext4", _FLAGS | flags, "discard")
        finally:
            run_tool("losetup", "--detach", loop)
        return directory

    def _fit(self, file: Path, limit_bytes: int) -> None:
        """Another size for an image that is not mounted: a mounted one could not shrink."""
        run_tool("e2fsck", "-fy", str(file), fine=_E2FSCK_FINE)
        if limit_bytes > file.stat().st_size:
            os.truncate(file, limit_bytes)
        try:
            run_tool("resize2fs", str(file), f"{limit_bytes // 1024}K")
        except EngineFailure as error:
            raise CapacityExceeded(
                "the files take more than this disk limit", internal=error.internal, retry_after_s=60
            ) from error
        os.truncate(file, limit_bytes)


class TmpfsLayers(_MountedLayers):
    """A tmpfs per box: what the sandbox writes counts as its memory."""

    _suffix = ".tar"

    @property
    def kind(self) -> str:
        return "tmpfs"

    def create(self, name: str, limit_bytes: int) -> Path:
        directory = self._root / name
        directory.mkdir(mode=0o700)
        kernel.mount("cove", directory, "tmpfs", _FLAGS, f"size={limit_bytes},mode=0700")
        return directory

    def copy(self, source: str, name: str, limit_bytes: int | None) -> Path:
        is_kept = self._file(source).exists()
        if limit_bytes is None:
            if is_kept:
                self._copy_file(source, name)
            else:
                self._keep(source, name)
            return self._file(name)
        passing = source if is_kept else f"{_VIEW}{name}"
        try:
            if not is_kept:
                self._keep(source, passing)
            directory = self.create(name, limit_bytes)
            (directory / "u").mkdir(mode=0o755)
            fetch_layer(self._file(passing), directory / "u", limit_bytes=limit_bytes)
        except BaseException:
            self.remove(name)
            raise
        finally:
            if not is_kept:
                self._file(passing).unlink(missing_ok=True)
        return directory

    def _keep(self, source: str, name: str) -> None:
        partial = self._file(name).with_suffix(_PARTIAL)
        partial.unlink(missing_ok=True)
        try:
            keep_layer(self._root / source / "u", partial)
            partial.rename(self._file(name))
        finally:
            partial.unlink(missing_ok=True)

    def resize(self, name: str, limit_bytes: int) -> None:
        kernel.mount("cove", self._root / name, None, kernel.MS_REMOUNT | _FLAGS, f"size={limit_bytes}")

    def keep_archive(self, name: str, file: Path) -> LayerArchive:
        if not self._file(name).exists():
            return keep_layer(self._root / name / "u", file)
        ours = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        theirs = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy_file(ours, theirs, self._file(name).name, file.name)
        finally:
            os.close(ours)
            os.close(theirs)
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return LayerArchive(digest=digest, size=file.stat().st_size, files=0)

    def fetch_archive(self, name: str, file: Path, limit_bytes: int, *, digest: str = "") -> None:
        # Once into memory, so that what cannot be unpacked is refused now; then packed as we pack.
        passing = f"{_VIEW}{name}"
        try:
            tree = self.create(passing, limit_bytes) / "u"
            tree.mkdir(mode=0o755)
            fetch_layer(file, tree, limit_bytes=limit_bytes, digest=digest)
            self._keep(passing, name)
            self.settle(name)
        except BaseException:
            self._file(name).unlink(missing_ok=True)
            raise
        finally:
            self._unmount(self._root / passing)
