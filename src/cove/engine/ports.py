"""What the pool and the supervisors need from others, as protocols. Implemented above or beside; nothing here acts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.engine.driver import BoxImage
from cove.model.image import ImageInfo
from cove.model.sandbox import Sandbox


class ImageSource(Protocol):
    """Where prepared images come from."""

    def get(self, name: str) -> BoxImage:
        """A prepared image. Raises: NotFound (field `image`)."""
        ...

    def version(self, name: str, digest: str) -> BoxImage:
        """That very version of an image. Raises: NotFound (field `image`)."""
        ...

    def list(self) -> list[ImageInfo]:
        """All images this machine has or is making."""
        ...


class Journal(Protocol):
    """Where a sandbox's intents and facts are written. Implemented in `core/journal.py`."""

    async def write(self, sandbox: Sandbox) -> None:
        """Write it now or not at all. Raises: CoveError."""
        ...

    async def write_surely(self, sandbox: Sandbox) -> None:
        """Write it now, or as soon as the store takes it again. Never raises: what it tells has happened."""
        ...


class Checkpoints(Protocol):
    """Where checkpoints lie. Implemented in `engine/checkpoints/store.py`.

    An id is a core id: a snapshot's or, of a hibernated sandbox, its own.
    """

    on_packed: Callable[[str, int], None] | None
    """Is told, on the loop, the id of a sealed one that became smaller some seconds later, and its new memory_bytes."""

    async def begin(self, checkpoint_id: str, *, expected_bytes: int = 0) -> Draft:
        """Room for a new one. What an earlier one of that id left is removed.

        Raises: CapacityExceeded (too little disk space for `expected_bytes`), EngineFailure.
        """
        ...

    async def seal(self, draft: Draft, facts: CheckpointFacts) -> Checkpoint:
        """Make it durable and complete: after this a crash of the machine loses nothing of it.

        Raises: CapacityExceeded, EngineFailure; then `discard` it.
        """
        ...

    async def lend(self, draft: Draft, facts: CheckpointFacts) -> Checkpoint:
        """It as it is, for copies that are made at once: nothing is waited for, and the next start sweeps it.

        Give it back by `remove`.
        """
        ...

    async def discard(self, draft: Draft) -> None:
        """Remove what was begun. Never raises."""
        ...

    async def get(self, checkpoint_id: str, *, with_memory: bool = True) -> Checkpoint:
        """A sealed one, whole and undamaged; without `with_memory` its memory is neither read nor needed.

        Raises: NotFound, EngineFailure (damaged: what, in its public text).
        """
        ...

    async def copy(self, checkpoint_id: str, new_id: str, *, with_memory: bool = True) -> Checkpoint:
        """A second one, independent of the first; without `with_memory` of its files alone.

        Raises: NotFound, EngineFailure, CapacityExceeded.
        """
        ...

    def export(self, checkpoint_id: str, about: bytes) -> AsyncGenerator[bytes]:
        """It as one file, with the core's own words `about` it (at most 64 KiB). Not removed until the last byte.

        Raises, all but a late failure of the disk before the first byte: NotFound, EngineFailure, CapacityExceeded,
        TooLarge.
        """
        ...

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        new_id: str,
        *,
        accept: Callable[[CheckpointFacts, bytes], None] | None = None,
    ) -> tuple[Checkpoint, bytes]:
        """A new one from such a file, whoever made it, and what `about` was. On failure nothing is left.

        Args:
            stream: the bytes of the file.
            new_id: its id.
            accept: is told the facts and `about` before anything is unpacked; what it raises ends the import.

        Raises: BadRequest, TooLarge, Unsupported (field `file`), CapacityExceeded, EngineFailure.
        """
        ...

    def hold(self, checkpoint_id: str) -> AbstractAsyncContextManager[None]:
        """While it is held it is not removed: `remove` then removes it at the end of the last hold."""
        ...

    async def ids(self) -> frozenset[str]:
        """The sealed ones, without a look at whether they are whole."""
        ...

    async def remove(self, checkpoint_id: str) -> None:
        """Remove it. Idempotent. Never raises: what could not be removed is swept at the next start."""
        ...

    async def sweep(self, known: frozenset[str]) -> list[str]:
        """Remove all others, half-made ones too. Returns their ids."""
        ...
