"""Where there is no place for checkpoints: nothing can be kept, and nothing ever was."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.model.errors import NotFound, Unsupported


class NoCheckpoints:
    """`Checkpoints` of a server that keeps none."""

    on_packed: Callable[[str, int], None] | None = None

    async def begin(self, checkpoint_id: str, *, expected_bytes: int = 0) -> Draft:
        """Raises: Unsupported."""
        del checkpoint_id, expected_bytes
        raise Unsupported("this server has no place for snapshots")

    async def seal(self, draft: Draft, facts: CheckpointFacts) -> Checkpoint:
        """Raises: Unsupported."""
        del draft, facts
        raise Unsupported("this server has no place for snapshots")

    async def lend(self, draft: Draft, facts: CheckpointFacts) -> Checkpoint:
        """Raises: Unsupported."""
        del draft, facts
        raise Unsupported("this server has no place for snapshots")

    async def discard(self, draft: Draft) -> None:
        """Nothing."""

    async def get(self, checkpoint_id: str, *, with_memory: bool = True) -> Checkpoint:
        """Raises: NotFound."""
        del checkpoint_id, with_memory
        raise NotFound("there is no such checkpoint")

    async def copy(self, checkpoint_id: str, new_id: str, *, with_memory: bool = True) -> Checkpoint:
        """Raises: NotFound."""
        del checkpoint_id, new_id, with_memory
        raise NotFound("there is no such checkpoint")

    async def export(self, checkpoint_id: str, about: bytes) -> AsyncGenerator[bytes]:
        """Raises: NotFound."""
        del checkpoint_id, about
        raise NotFound("there is no such checkpoint")
        yield b""

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        new_id: str,
        *,
        accept: Callable[[CheckpointFacts, bytes], None] | None = None,
    ) -> tuple[Checkpoint, bytes]:
        """Raises: Unsupported."""
        del stream, new_id, accept
        raise Unsupported("this server has no place for snapshots")

    def hold(self, checkpoint_id: str) -> AbstractAsyncContextManager[None]:
        """Raises: NotFound."""
        del checkpoint_id
        raise NotFound("there is no such checkpoint")

    async def ids(self) -> frozenset[str]:
        """None."""
        return frozenset()

    async def remove(self, checkpoint_id: str) -> None:
        """Nothing."""

    async def sweep(self, known: frozenset[str]) -> list[str]:
        """Nothing."""
        del known
        return []
