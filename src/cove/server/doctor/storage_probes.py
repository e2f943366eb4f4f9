"""What the disk and memory give: room, loop devices, btrfs with quotas that really hold. Leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from cove.engine import btrfs, kernel
from cove.server.doctor.report import Line, ok, warn
from cove.server.doctor.trial import attempt
from cove.server.setup.settings import SetupSettings

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
_LOW_DISK: Final = 5 * _GIB
_LOW_MEMORY: Final = _GIB
_POOL_BYTES: Final = 128 * _MIB  # mkfs.btrfs refuses less than 109 MiB (btrfs-progs 6.2)
_QUOTA_BYTES: Final = 4 * _MIB
_LOOP_CTL_GET_FREE: Final = 0x4C82


def probe_memory(_settings: SetupSettings) -> Line:
    """Memory that is free now."""
    facts = meminfo(Path("/proc/meminfo").read_text(encoding="ascii"))
    total, free = facts.get("MemTotal", 0), facts.get("MemAvailable", 0)
    fact = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB available, {os.cpu_count()} processors"
    if free < _LOW_MEMORY:
        return warn("memory", fact, cost="few sandboxes at once: each may use 512 MiB by default", cure="free memory")
    return ok("memory", fact)


def meminfo(text: str) -> dict[str, int]:
    """The fields of /proc/meminfo in bytes."""
    rows = (line.replace(":", "").split() for line in text.splitlines())
    return {row[0]: int(row[1]) * 1024 for row in rows if len(row) > 1 and row[1].isdigit()}


def probe_disk(settings: SetupSettings) -> Line:
    """Room for images and writable layers."""
    place = existing_place(settings.data_dir)
    free = shutil.disk_usage(place).free
    fact = f"{free / _GIB:.1f} GiB free for {settings.data_dir}"
    if free < _LOW_DISK:
        return warn("disk", fact, cost="little room for what sandboxes write", cure="make room, or move COVE_DATA_DIR")
    return ok("disk", fact)


def existing_place(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.is_dir())


def probe_loop_devices(_settings: SetupSettings) -> Line:
    """Loop devices, which hold the pool of writable layers unless the data directory is btrfs itself."""
    tried = attempt(_free_loop)
    if not tried.worked:
        return warn(
            "loop devices",
            f"/dev/loop-control: {tried.text}",
            cost="writable layers lie in memory, with the sandbox's own memory limit as their size",
            cure="modprobe loop; in a container, give it /dev/loop-control and the loop devices",
        )
    return ok("loop devices", f"/dev/loop{tried.text} is free")


def _free_loop() -> str:
    fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    return str(fcntl.ioctl(fd, _LOOP_CTL_GET_FREE))


def probe_disk_limits(settings: SetupSettings) -> Line:
    """A small btrfs pool with a quota that is run into: what limits a sandbox's disk on this machine."""
    place = existing_place(settings.data_dir)
    pool = settings.data_dir / "layers" / "pool.btrfs"
    exists = f"; the pool exists ({_stored(pool) / _GIB:.1f} GiB in use)" if pool.exists() else ""
    tried = attempt(lambda: _try_quota(place), limit_s=30)
    if not tried.worked:
        return warn(
            "disk limits",
            f"no btrfs quota: {tried.text}",
            cost="a file system per sandbox instead of a pool: creating one takes 15 ms more, and no instant copies",
            cure="apt-get install btrfs-progs, and a kernel with btrfs",
        )
    if tried.text == "qgroup":
        return warn(
            "disk limits",
            f"btrfs with classic quota groups{exists}",
            cost="exact as well, but deleting snapshots costs more",
            cure="a kernel from 6.7 on has simple quotas",
        )
    return ok("disk limits", f"btrfs with simple quotas, exact to the byte{exists}")


def _stored(path: Path) -> int:
    return path.stat().st_blocks * 512


def _try_quota(place: Path) -> str:
    """Make a pool, limit a subvolume, write past the limit. Returns the kind of quota that stopped it."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as name:
        pool, point = Path(name, "pool"), Path(name, "mnt")
        point.mkdir()
        pool.touch(mode=0o600)
        os.truncate(pool, _POOL_BYTES)
        _run("mkfs.btrfs", "--quiet", str(pool))
        # The loop device frees itself with its last mount (autoclear), also when we are killed here.
        _run("mount", "-t", "btrfs", "-o", "loop", str(pool), str(point))
        try:
            return _fill(point)
        finally:
            kernel.umount(point, kernel.MNT_DETACH)


def _fill(point: Path) -> str:
    top = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        kind = btrfs.enable_quota(top)
        btrfs.create_subvolume(top, "box")
        box = os.open(point / "box", os.O_RDONLY | os.O_DIRECTORY)
        btrfs.limit(box, _QUOTA_BYTES)
        os.close(box)
    finally:
        os.close(top)
    try:
        with (point / "box" / "file").open("wb") as file:
            for _ in range(4 * _QUOTA_BYTES // _MIB):
                file.write(bytes(_MIB))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        if error.errno in (errno.EDQUOT, errno.ENOSPC):
            return kind
        raise
    raise OSError(errno.EINVAL, "a write passed the limit")


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, check=False, text=True, timeout=20)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(errno.EIO, f"{argv[0]}: {lines[-1] if lines else done.returncode}")
