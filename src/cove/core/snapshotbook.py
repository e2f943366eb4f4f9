"""What is known of snapshots: which there are for whom, who uses them, and whether what they hold is there.

Names, counts and uses are looked at and taken without an await, so two requests get neither one name nor one last
place, and none is deleted under a restore. What is done with them is in `snapshots.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from cove.core.access import may_see
from cove.core.creation import IDEMPOTENCY_S, must_equal
from cove.core.directory import NAME_TRIES
from cove.core.restoring import StateParts, past_of
from cove.core.validation import check_idempotency
from cove.engine.checkpoints.model import Checkpoint
from cove.model.access import Principal
from cove.model.errors import Conflict, CoveError, EngineFailure, NotFound
from cove.model.ids import is_core_id, new_core_id, new_name
from cove.model.request import Idempotency
from cove.model.sandbox import Kept, Sandbox
from cove.model.snapshot import Snapshot, SnapshotSpec, SnapshotState

MISSING: Final = "what it holds is not on the disk any more"


class Making:
    """A snapshot that is being made. `is_wanted` False: its caller went away, so it is removed."""

    def __init__(
        self, row: Snapshot, spec: SnapshotSpec, idempotency: Idempotency | None, *, keep_failed: bool
    ) -> None:
        self.row = row
        self.spec = spec
        self.idempotency = idempotency
        self.keep_failed = keep_failed
        self.is_wanted = True
        self.outcome: asyncio.Future[Snapshot] | None = None


class SnapshotBook:
    """All snapshots of this server. `users`: what else needs one, as words for the error that refuses its deletion."""

    def __init__(self, parts: StateParts) -> None:
        self._store = parts.store
        self._checkpoints = parts.checkpoints
        self._clock = parts.clock
        self._uses: dict[str, Counter[str]] = {}
        self.making: dict[str, Making] = {}
        self.deleting: dict[str, asyncio.Future[None]] = {}
        self.changing = asyncio.Lock()
        self.users: list[Callable[[Snapshot], list[str]]] = []
        self._jobs = parts.jobs
        parts.checkpoints.on_packed = self._was_packed

    def known(self, who: Principal, ref: str) -> Snapshot:
        """Raises: NotFound."""
        rows = self._store.snapshots
        making = self.making.get(ref)
        snapshot = rows.get(ref) if is_core_id(ref) else rows.named(who.project, ref)
        snapshot = snapshot or (None if making is None else making.row)
        if snapshot is None or not may_see(who, snapshot.project):
            raise NotFound("no such snapshot", field="snapshot")
        return snapshot

    def earlier(self, project: str, idempotency: Idempotency | None) -> Making | Snapshot | None:
        """What an earlier request of this key made. Raises: BadRequest, IdempotencyConflict."""
        if idempotency is None:
            return None
        check_idempotency(idempotency)
        for making in self.making.values():
            known = making.idempotency
            if known is not None and (making.row.project, known.key) == (project, idempotency.key):
                must_equal(known.body_sha256, idempotency)
                return making
        since = self._clock.now() - IDEMPOTENCY_S
        row = self._store.idempotency.get(project, idempotency.key, since=since)
        if row is None:
            return None
        must_equal(row.body_sha256, idempotency)
        return self._store.snapshots.get(row.made[0])

    def free_name(self, project: str, wanted: str | None) -> str:
        """`wanted` if it is free; None: a free one. Raises: Conflict."""
        if wanted is not None:
            if self.is_taken(project, wanted):
                raise Conflict(f"a snapshot named {wanted} exists", field="name")
            return wanted
        for _ in range(NAME_TRIES):
            name = new_name()
            if not self.is_taken(project, name):
                return name
        return f"{new_name()}-{new_core_id()[:8]}"

    def is_taken(self, project: str, name: str) -> bool:
        """Whether a snapshot of the project has that name, or is to have it."""
        held = any((making.row.project, making.row.name) == (project, name) for making in self.making.values())
        return held or self._store.snapshots.named(project, name) is not None

    def count(self, project: str) -> int:
        """All that are there or on their way: what a quota counts."""
        making = {row_id for row_id, making in self.making.items() if making.row.project == project}
        return len(self._store.snapshots.ids(project) | making)

    async def checkpoint(self, snapshot: Snapshot, *, with_memory: bool) -> Checkpoint:
        """What it holds, whole; if it is not, the row says so from now on. Hold it meanwhile (`hold`).

        Raises: Conflict (not ready, and why), EngineFailure (damaged: what).
        """
        if snapshot.state in {SnapshotState.CREATING, SnapshotState.DELETING}:
            raise Conflict(f"the snapshot {snapshot.name} is {snapshot.state.value}", field="snapshot")
        try:
            found = await self._checkpoints.get(snapshot.id, with_memory=with_memory)
        except NotFound as error:
            failure = snapshot.failure or MISSING
            await self.mark(snapshot, failure)
            raise Conflict(f"the snapshot {snapshot.name} cannot be used: {failure}", field="snapshot") from error
        except EngineFailure as error:
            await self.mark(snapshot, error.public)
            raise
        if with_memory or not found.facts.has_memory:
            await self.mark(snapshot, None)
        return found

    def hold(self, snapshot: Snapshot, what: str) -> Callable[[], None]:
        """Keep it from being deleted until what is returned is called. `what`: words for who wants to.

        Raises: Conflict: it is being deleted.
        """
        if snapshot.id in self.deleting or snapshot.state is SnapshotState.DELETING:
            raise Conflict(f"the snapshot {snapshot.name} is being deleted", field="snapshot")
        uses = self._uses.setdefault(snapshot.id, Counter())
        uses[what] += 1

        def done() -> None:
            uses[what] -= 1
            if not uses.total() and self._uses.get(snapshot.id) is uses:
                del self._uses[snapshot.id]

        return done

    async def mark(self, snapshot: Snapshot, failure: str | None) -> None:
        """Let the row say what was found."""
        if failure == snapshot.failure:
            return
        async with self.changing:
            now = self._store.snapshots.get(snapshot.id)
            if now is None or now.state is SnapshotState.DELETING:
                return
            state = SnapshotState.READY if failure is None else SnapshotState.FAILED
            await self._store.snapshots.save(replace(now, state=state, failure=failure))

    def _was_packed(self, row_id: str, memory_bytes: int) -> None:
        self._jobs.start(self._packed(row_id, memory_bytes))

    async def _packed(self, row_id: str, memory_bytes: int) -> None:
        """What it takes on the disk became less, some seconds after it was made."""
        async with self.changing:
            now = self._store.snapshots.get(row_id)
            if now is not None and now.state is SnapshotState.READY and now.kept.memory:
                await self._store.snapshots.save(replace(now, memory_bytes=memory_bytes))

    def require_settled(self, snapshot: Snapshot) -> None:
        """Raises: Conflict: it is being made or deleted."""
        if snapshot.id in self.making or snapshot.state is SnapshotState.CREATING:
            raise Conflict(f"the snapshot {snapshot.name} is being made", field="snapshot")
        if snapshot.id in self.deleting or snapshot.state is SnapshotState.DELETING:
            raise Conflict(f"the snapshot {snapshot.name} is being deleted", field="snapshot")

    def require_unused(self, snapshot: Snapshot) -> None:
        """Raises: Conflict, naming who needs it."""
        if snapshot.id in self.making:
            raise Conflict(f"the snapshot {snapshot.name} is being made", field="snapshot")
        now = +self._uses.get(snapshot.id, Counter[str]())
        users = [what if count == 1 else f"{what} ({count} times)" for what, count in now.items()]
        users += [word for look in self.users for word in look(snapshot)]
        if users:
            raise Conflict(f"the snapshot {snapshot.name} is in use: {', '.join(users)}", field="snapshot")

    async def settle(self) -> set[str]:
        """At the start: finish what a former server left of each row. Returns the ids of those that stay."""
        sealed = await self._checkpoints.ids()
        known: set[str] = set()
        for row in self._store.snapshots.all():
            is_there = row.id in sealed
            if row.state is SnapshotState.DELETING or (row.state is SnapshotState.CREATING and not is_there):
                await self._checkpoints.remove(row.id)
                await self._store.snapshots.remove(row.id)
                continue
            known.add(row.id)
            if row.state is SnapshotState.CREATING:
                await self._finish(row)
            elif is_there is (row.failure == MISSING):
                await self.mark(row, None if is_there else MISSING)
        return known

    async def _finish(self, row: Snapshot) -> None:
        """It was sealed, and only its row did not say so."""
        try:
            checkpoint = await self._checkpoints.get(row.id)
        except CoveError as error:
            await self.mark(row, error.public)
        else:
            await self._store.snapshots.save(filled(row, checkpoint, None))


def filled(row: Snapshot, checkpoint: Checkpoint, sandbox: Sandbox | None) -> Snapshot:
    """The row of what is there now."""
    facts = checkpoint.facts
    if sandbox is not None:  # it may have changed while the request waited for its turn
        past = past_of(sandbox)
        row = replace(row, network=past.network, metadata=past.metadata, sandbox_name=past.name)
    return replace(
        row,
        state=SnapshotState.READY,
        kept=Kept(memory=facts.has_memory, reason=None if facts.has_memory else facts.why_no_memory),
        limits=facts.limits,
        memory_bytes=checkpoint.memory_bytes,
        disk_bytes=checkpoint.disk_bytes,
        processes=facts.processes,
        stopped_ms=facts.stopped_ms,
    )
