"""What every kind of writable layer offers: the port. The kinds are in `layers.py` and `mountedlayers.py`."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from cove.engine.layerarchive import LayerArchive, keep_layer
from cove.model.errors import EngineFailure

TOOL_LIMIT_S: Final = 60.0


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
        """Have a kept copy on the disk for good, where `copy` did not wait for that. On any thread. Raises: OSError."""
        del name

    def measure(self, name: str) -> None:
        """Count exactly what a kept copy holds, which `copy` left for later. On any thread. Raises: OSError."""
        del name

    def tree(self, name: str) -> AbstractContextManager[Path]:
        """The directory of a layer, kept or used, with its files in `u`, for the context's time. Raises: OSError."""
        raise NotImplementedError(name)

    def keep_archive(self, name: str, file: Path) -> LayerArchive:
        """Write the files of a kept layer to a tar `file` (made, 0600). On any thread. Raises: CoveError, OSError."""
        with self.tree(name) as tree:
            return keep_layer(tree / "u", file)

    def fetch_archive(self, name: str, file: Path, limit_bytes: int, *, digest: str = "") -> None:
        """Make a kept layer of a tar, whoever wrote it. On any thread.

        Raises: BadRequest (damaged or hostile), TooLarge, CapacityExceeded (more than `limit_bytes`, or disk full),
        EngineFailure, OSError; then nothing is left.
        """
        raise NotImplementedError(name, file, limit_bytes, digest)

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


def run_tool(*argv: str, fine: tuple[int, ...] = (0,)) -> str:
    """Run a program of the machine to its end. Returns what it said. Raises: EngineFailure (its code is not `fine`)."""
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=TOOL_LIMIT_S, input="")
    except FileNotFoundError as error:
        raise EngineFailure(f"{argv[0]} is not installed: run `cove setup`") from error
    except subprocess.TimeoutExpired as error:
        raise EngineFailure(f"{argv[0]} did not end within {TOOL_LIMIT_S:.0f} s") from error
    if done.returncode not in fine:
        raise EngineFailure(f"{argv[0]} failed", internal=f"{argv}: {done.stderr[-2000:]}")
    return done.stdout.strip()
