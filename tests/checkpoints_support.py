"""Checkpoints that are only records, for unit tests of what stands on them. They outlive a core, as real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.model.errors import BadRequest, CoveError, EngineFailure, NotFound


class StubCheckpoints:
    """`refuse` names calls that fail, `calls` is what was done; `damaged` ids have a memory that cannot be read."""

    def __init__(self) -> None:
        self.on_packed: Callable[[str, int], None] | None = None
        self.sealed: dict[str, Checkpoint] = {}
        self.drafts: set[str] = set()
        self.damaged: set[str] = set()
        self.calls: list[str] = []
        self.refuse: dict[str, CoveError] = {}

    async def _do(self, call: str) -> None:
        self.calls.append(call)
        await asyncio.sleep(0)
        if call in self.refuse:
            raise self.refuse[call]

    async def begin(self, checkpoint_id: str, *, expected_bytes: int = 0) -> Draft:
        del expected_bytes
        await self._do("begin")
        self.sealed.pop(checkpoint_id, None)
        self.drafts.add(checkpoint_id)
        return Draft(id=checkpoint_id, memory=Path("/nowhere"), layer=f"s-{checkpoint_id}")

    async def seal(self, draft: Draft, facts: CheckpointFacts) -> Checkpoint:
        await self._do("seal")
        self.drafts.remove(draft.id)
        made = Checkpoint(id=draft.id, memory=draft.memory, layer=draft.layer, facts=facts)
        self.sealed[draft.id] = made
        return made

    async def lend(self, draft: Draft, facts: CheckpointFacts) -> Checkpoint:
        await self._do("lend")
        self.drafts.remove(draft.id)
        made = Checkpoint(id=draft.id, memory=draft.memory, layer=draft.layer, facts=facts)
        self.sealed[draft.id] = made
        return made

    async def discard(self, draft: Draft) -> None:
        self.calls.append("discard")
        self.drafts.discard(draft.id)
        self.sealed.pop(draft.id, None)

    async def get(self, checkpoint_id: str, *, with_memory: bool = True) -> Checkpoint:
        await self._do("get")
        if checkpoint_id not in self.sealed:
            raise NotFound("there is no such checkpoint")
        if with_memory and checkpoint_id in self.damaged:
            raise EngineFailure("the checkpoint is damaged: pages-1.img is shorter than it was")
        return self.sealed[checkpoint_id]

    async def copy(self, checkpoint_id: str, new_id: str, *, with_memory: bool = True) -> Checkpoint:
        await self._do("copy")
        facts = (await self.get(checkpoint_id)).facts
        made = replace(self.sealed[checkpoint_id], id=new_id, facts=replace(facts, has_memory=with_memory))
        self.sealed[new_id] = made
        return made

    async def export(self, checkpoint_id: str, about: bytes) -> AsyncGenerator[bytes]:
        await self._do("export")
        facts = (await self.get(checkpoint_id)).facts
        yield msgspec.json.encode((facts, about))

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        new_id: str,
        *,
        accept: Callable[[CheckpointFacts, bytes], None] | None = None,
    ) -> tuple[Checkpoint, bytes]:
        data = b"".join([piece async for piece in stream])
        try:
            facts, about = msgspec.json.decode(data, type=tuple[CheckpointFacts, bytes])
        except msgspec.MsgspecError:
            raise BadRequest("the file is no snapshot", field="file") from None
        if accept is not None:
            accept(facts, about)
        return await self.seal(await self.begin(new_id), facts), about

    @asynccontextmanager
    async def hold(self, checkpoint_id: str) -> AsyncGenerator[None]:
        del checkpoint_id
        yield

    async def ids(self) -> frozenset[str]:
        return frozenset(self.sealed)

    async def remove(self, checkpoint_id: str) -> None:
        self.calls.append("remove")
        self.sealed.pop(checkpoint_id, None)

    async def sweep(self, known: frozenset[str]) -> list[str]:
        gone = sorted((set(self.sealed) | self.drafts) - known)
        for checkpoint_id in gone:
            self.sealed.pop(checkpoint_id, None)
        self.drafts.clear()
        return gone
