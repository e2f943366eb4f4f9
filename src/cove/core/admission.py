"""Whether this machine has room for one more sandbox.

Explicit: past capacity a create is refused at once with a time to come back, never put into a hidden queue. It
reserves synchronously, so no two creates can take the last place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.engine.clock import Clock, sleep
from cove.model.errors import CapacityExceeded
from cove.model.sandbox import MIB, Limits

RETRY_AFTER_S: Final = 2
GIB: Final = 1024 * MIB
MEMINFO: Final = Path("/proc/meminfo")
DISK_READING_S: Final = 1.0
READING_S: Final = 0.05
"""How long one reading of the free memory serves: it costs 60 µs, and idle sandboxes take 1-5 MiB each."""


class AdmissionSettings(Struct, frozen=True, kw_only=True):
    """Where the machine is full.

    `keep_free_bytes` None: 10 % of the memory and at least 512 MiB, but never more than a quarter. `overcommit` bounds
    the sum of all memory limits, in multiples of the machine's memory. `keep_free_disk_bytes` None: 5 % of the
    storage pool and at most 1 GiB; below it writes of running sandboxes would soon fail for everybody.
    """

    keep_free_bytes: int | None = None
    keep_free_disk_bytes: int | None = None
    overcommit: float = 10.0
    max_sandboxes: int = 1000
    max_creates: int = 128


class Memory(Struct, frozen=True):
    """The machine's memory in bytes: all, and what is available without swapping."""

    total: int
    available: int


class Disk(Struct, frozen=True):
    """Where sandboxes write, in bytes: all, and what is free."""

    total: int
    free: int


class AdmissionStats(Struct, frozen=True, kw_only=True):
    """What is reserved and what is free now, and how often a create was refused."""

    sandboxes: int
    creating: int
    memory_promised_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    refused: int


def read_memory(path: Path = MEMINFO) -> Memory:
    """The kernel's numbers, proc_meminfo(5)."""
    fields = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines()[:8])
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    return Memory(kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024)


class Admission:
    """The machine's places. Every admitted sandbox holds one until it is released."""

    def __init__(
        self,
        settings: AdmissionSettings,
        clock: Clock,
        memory: Callable[[], Memory] = read_memory,
        disk: Callable[[], Disk] = lambda: Disk(1, 1),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._read = memory
        self._memory = memory()
        self._read_disk = disk
        self._disk = disk()
        self._read_at = clock.monotonic()
        self._reserved: dict[str, int] = {}
        self._creating: set[str] = set()
        self._promised = 0
        self._refused = 0

    def check(self, limits: Limits, count: int = 1, *, at_once: int = 0) -> None:
        """Raises: CapacityExceeded when there is no place for `count` more sandboxes with these limits.

        `at_once`: bytes of memory that each of them has from its first moment on.
        """
        places = self._settings.max_sandboxes - len(self._reserved)
        if count > places:
            room = "its limit" if places <= 0 else f"and has room for {places} more"
            self._refuse(f"this machine runs {len(self._reserved)} sandboxes, {room}")
        if len(self._creating) + count > self._settings.max_creates:
            most = self._settings.max_creates
            self._refuse(f"{len(self._creating)} sandboxes are being created, and at most {most} may be at a time")
        if not self.has_room():
            what = "memory" if self._has_disk() else "disk space"
            self._refuse(f"this machine has too little free {what} now")
        if at_once * count > self.memory().available - self.keep_free_bytes():
            self._refuse(f"this machine has too little free memory now for what {count} such sandboxes hold")
        self._refuse_promise(limits.memory_bytes * count)

    def admit(self, sandbox_id: str, limits: Limits, *, is_new: bool = True) -> None:
        """Give it a place. Without an await since `check`, so that nobody comes between."""
        if is_new:
            self._creating.add(sandbox_id)
        self._reserved[sandbox_id] = limits.memory_bytes
        self._promised += limits.memory_bytes

    def settle(self, sandbox_id: str) -> None:
        """Its creation is over, well or ill."""
        self._creating.discard(sandbox_id)

    def release(self, sandbox_id: str) -> None:
        """It has ended. Again: nothing."""
        self._creating.discard(sandbox_id)
        self._promised -= self._reserved.pop(sandbox_id, 0)

    def change(self, sandbox_id: str, memory_bytes: int) -> None:
        """Another memory limit for one that has a place. Raises: CapacityExceeded."""
        self._refuse_promise(memory_bytes - self._reserved.get(sandbox_id, 0))
        self.correct(sandbox_id, memory_bytes)

    def correct(self, sandbox_id: str, memory_bytes: int) -> None:
        """Count the memory limit that a sandbox has in fact. One without a place: nothing."""
        if sandbox_id in self._reserved:
            self._promised += memory_bytes - self._reserved[sandbox_id]
            self._reserved[sandbox_id] = memory_bytes

    def has_room(self) -> bool:
        """Whether free memory and free disk space are above their watermarks."""
        return self.memory().available > self.keep_free_bytes() and self._has_disk()

    def memory(self) -> Memory:
        """The machine's memory, at most READING_S old."""
        now = self._clock.monotonic()
        if now - self._read_at > READING_S:
            self._memory, self._read_at = self._read(), now
        return self._memory

    def keep_free_bytes(self) -> int:
        """The watermark."""
        total = self._memory.total
        wanted = self._settings.keep_free_bytes
        return wanted if wanted is not None else min(max(total // 10, 512 * MIB), total // 4)

    async def watch_disk(self) -> None:
        """Read the free disk space every DISK_READING_S, beside the loop: statvfs(3) of a btrfs pool takes 2 ms."""
        while True:
            self._disk = await asyncio.to_thread(self._read_disk)
            await sleep(self._clock, DISK_READING_S)

    def _has_disk(self) -> bool:
        wanted = self._settings.keep_free_disk_bytes
        return self._disk.free > (wanted if wanted is not None else min(GIB, self._disk.total // 20))

    def stats(self) -> AdmissionStats:
        """Numbers for the metrics."""
        return AdmissionStats(
            sandboxes=len(self._reserved),
            creating=len(self._creating),
            memory_promised_bytes=self._promised,
            memory_free_bytes=self.memory().available,
            disk_free_bytes=self._disk.free,
            refused=self._refused,
        )

    def _refuse_promise(self, more_bytes: int) -> None:
        if more_bytes > 0 and self._promised + more_bytes > self._memory.total * self._settings.overcommit:
            self._refuse("the memory limits of all sandboxes together pass what this machine may promise")

    def _refuse(self, public: str) -> None:
        self._refused += 1
        raise CapacityExceeded(public, retry_after_s=RETRY_AFTER_S)
