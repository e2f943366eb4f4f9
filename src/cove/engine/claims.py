"""What two servers on one machine could both take, claimed machine-wide under /run/cove with a lock.

Today: blocks of uid ranges, ports of the host, and the addresses between routers and the outside. A claim is a file
named after the thing, holding the run directory of the server that owns it; it is made and freed under one flock. A
claim whose run directory is gone is free again. To claim another kind: one more directory name passed to `Claims`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cove.engine.config import RUN_ROOT
from cove.model.errors import CapacityExceeded

RANGE_SIZE: Final = 65536
_FIRST_RANGE: Final = 0x7000
_LAST_RANGE: Final = 0x7FFD
# 0x70000000-0x7FFDFFFF: below the sign bit, above every range that systemd's "Users, Groups, UIDs and GIDs" page gives
# to containers (0x80000-0x6FFFFFFF) and below its foreign range (0x7FFE0000); subuid tools start far lower.
_BLOCK: Final = 64
_WORDS: Final = {"uid": "uid ranges", "net": "networks of servers"}


class Claims:
    """Numbered things of one kind. Safe between processes; each call holds the machine's lock.

    `owner` is the run directory of the server that claims; `root` is the same for every server, whatever its settings.
    """

    def __init__(self, kind: str, owner: Path, *, count: int, root: Path = RUN_ROOT) -> None:
        self._root = root
        self._dir = root / kind
        self._owner = str(owner)
        self._count = count

    def held(self) -> list[int]:
        """What this server owns already (from before a restart)."""
        with self._locked():
            return sorted(n for n, owner in self._owners().items() if owner == self._owner)

    def take(self) -> int:
        """Claim the lowest free number. Raises: CapacityExceeded when all are taken."""
        with self._locked():
            owners = self._owners()
            for number in range(self._count):
                if number not in owners:
                    (self._dir / str(number)).write_text(self._owner)
                    return number
        what = _WORDS.get(self._dir.name, self._dir.name)
        raise CapacityExceeded(f"all {what} of this machine are in use", retry_after_s=30)

    def take_first(self, numbers: Iterable[int]) -> int | None:
        """Claim the first of `numbers` that no other server has; None if there is none. Own ones are own again."""
        with self._locked():
            owners = self._owners()
            for number in numbers:
                if owners.get(number, self._owner) == self._owner:
                    (self._dir / str(number)).write_text(self._owner)
                    return number
        return None

    def give_back(self, number: int) -> None:
        """Free one that this server owns."""
        with self._locked():
            if self._owners().get(number) == self._owner:
                (self._dir / str(number)).unlink(missing_ok=True)

    def give_back_all(self) -> None:
        """Free everything this server owns."""
        with self._locked():
            for number, owner in self._owners().items():
                if owner == self._owner:
                    (self._dir / str(number)).unlink(missing_ok=True)

    def _owners(self) -> dict[int, str]:
        owners: dict[int, str] = {}
        for entry in self._dir.iterdir():
            owner = entry.read_text()
            if owner and Path(owner).is_dir():
                owners[int(entry.name)] = owner
            else:
                entry.unlink(missing_ok=True)
        return owners

    @contextmanager
    def _locked(self) -> Generator[None]:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


class UidRanges:
    """Uid ranges of 65 536 ids, one per sandbox, handed out from blocks claimed for the machine.

    The longest unused range comes first, so that a range (and with it ids on disk and in logs) is not reused at once.
    """

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._free: list[int] = []
        self._used: set[int] = set()
        for block in claims.held():
            self._free += self._bases(block)

    @classmethod
    def of(cls, owner: Path, root: Path = RUN_ROOT) -> UidRanges:
        """The ranges of the server with run directory `owner`."""
        return cls(Claims("uid", owner, count=(_LAST_RANGE - _FIRST_RANGE + 1) // _BLOCK, root=root))

    @property
    def used(self) -> int:
        """How many ranges are in use."""
        return len(self._used)

    def take(self) -> int:
        """The first uid of a free range. Raises: CapacityExceeded."""
        if not self._free:
            self._free += self._bases(self._claims.take())
        base = self._free.pop(0)
        self._used.add(base)
        return base

    def shared(self) -> int:
        """The first uid of the one range that all boxes have on a machine without idmapped mounts."""
        if not self._free and not self._used:
            self._free += self._bases(self._claims.take())
        return min({*self._free, *self._used})

    def mark(self, base: int) -> None:
        """Note that an adopted sandbox uses `base`. The host's own ids (`ids.Ids.HOST`) are no range to hand out."""
        if base < _FIRST_RANGE * RANGE_SIZE:
            return
        self._used.add(base)
        if base in self._free:
            self._free.remove(base)

    def give_back(self, base: int) -> None:
        """Free a range. The caller has seen that no process of it lives."""
        if base in self._used:
            self._used.discard(base)
            self._free.append(base)

    def give_back_all(self) -> None:
        """Give up every block claimed for the machine; no sandbox is left."""
        self._free.clear()
        self._used.clear()
        self._claims.give_back_all()

    @staticmethod
    def _bases(block: int) -> list[int]:
        first = _FIRST_RANGE + block * _BLOCK
        return [n * RANGE_SIZE for n in range(first, first + _BLOCK)]
