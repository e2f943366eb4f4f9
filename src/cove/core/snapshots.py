"""Snapshots: making, finding, changing and deleting them, and the sandboxes that are made of them.

A snapshot's row is written before its checkpoint is taken and says `ready` only after that is sealed; deleting writes
`deleting` first. So whatever ends the server, the next start finishes it (`start`). Work on one is a job: it goes on
when its caller goes away. What a restore decides is in `restoring.py`, forks are in `forking.py`.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cove.core.access import require
from cove.core.forking import Forking
from cove.core.restoring import Restoring, StateParts, check_needs, facts_of, past_of, scoped
from cove.core.snapshotbook import Making, SnapshotBook, filled
from cove.core.snapshotfiles import SnapshotFiles
from cove.core.validation import check_metadata, check_name, check_page, check_snapshot
from cove.engine.supervisor import Supervisor
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Conflict, CoveError
from cove.model.ids import is_core_id, new_core_id
from cove.model.request import PAGE_LIMIT, Idempotency
from cove.model.sandbox import Sandbox
from cove.model.snapshot import (
    RestoreSpec,
    Snapshot,
    SnapshotChange,
    SnapshotFilter,
    SnapshotPage,
    SnapshotSpec,
    SnapshotState,
)
from cove.model.state import State

log = logging.getLogger(__name__)

MOST_LISTED: Final = 10_000
"""Snapshots of one list that has no pages."""

MOST_ANCESTORS: Final = 1000
"""Sandboxes and snapshots that were made of each other; more are not looked at."""


class Snapshots:
    """Every operation on snapshots. `ref` is a core id, or the name of one in the caller's project.

    All that take `who` raise Forbidden.
    """

    def __init__(self, parts: StateParts) -> None:
        self._parts = parts
        self._creation = parts.creation
        self._directory = parts.directory
        self._checkpoints = parts.checkpoints
        self._audit = parts.audit
        self._store = parts.store
        self._restoring = Restoring(parts)
        self._forking = Forking(parts, self._restoring)
        self.book = SnapshotBook(parts)
        self.fork = self._forking.fork
        files = SnapshotFiles(parts, self.book)
        self.export, self.import_ = files.export, files.import_
        parts.quotas.counters["snapshots"] = self.book.count

    # Making.

    async def create(
        self,
        who: Principal,
        ref: str,
        spec: SnapshotSpec,
        *,
        dialect: str = "native",
        idempotency: Idempotency | None = None,
    ) -> Snapshot:
        """A snapshot of a sandbox, which goes on. Of a hibernated one it is what lies on the disk.

        Cancelling removes it again, unless an idempotency key lets the caller come back for it.
        Raises: BadRequest, NotFound, Gone, Conflict (name), IdempotencyConflict, QuotaExceeded, CapacityExceeded,
        Unsupported (its memory cannot be kept, and must be), EngineFailure.
        """
        making = self._begin(who, ref, spec, dialect, idempotency, keep_failed=False)
        if isinstance(making, Snapshot):
            return making
        assert making.outcome is not None  # noqa: S101 - it was begun
        try:
            return await asyncio.shield(making.outcome)
        except asyncio.CancelledError:
            making.is_wanted = making.idempotency is not None
            raise

    def begin(
        self,
        who: Principal,
        ref: str,
        spec: SnapshotSpec,
        *,
        dialect: str = "native",
        idempotency: Idempotency | None = None,
    ) -> Snapshot:
        """As `create`, without waiting: it is `creating`, and will be `ready`, or `failed` and say why."""
        making = self._begin(who, ref, spec, dialect, idempotency, keep_failed=True)
        return making if isinstance(making, Snapshot) else making.row

    def _begin(  # noqa: PLR0913 - what a request says
        self,
        who: Principal,
        ref: str,
        spec: SnapshotSpec,
        dialect: str,
        idempotency: Idempotency | None,
        *,
        keep_failed: bool,
    ) -> Making | Snapshot:
        """All is decided here, without an await: two requests get neither one name nor one last place."""
        require(who, Scope.CREATE)
        check_snapshot(spec)
        idempotency = scoped(idempotency, "snapshot", ref)
        earlier = self.book.earlier(who.project, idempotency)
        if earlier is not None:
            return earlier
        self._audit.check()
        supervisor = self._directory.live(who, ref)
        sandbox = supervisor.sandbox
        name = self.book.free_name(sandbox.project, spec.name)
        self._parts.quotas.check_count(sandbox.project, "snapshots")
        row = replace(
            past_of(sandbox),
            id=new_core_id(),
            name=name,
            state=SnapshotState.CREATING,
            tags=spec.tags,
            created_at=self._parts.clock.now(),
            created_by="local" if who.key_id == "local" else f"key:{who.name}",
            key=who.key_id,
            dialect=dialect,
        )
        making = self.book.making[row.id] = Making(row, spec, idempotency, keep_failed=keep_failed)
        making.outcome = self._parts.jobs.start(self._make(making, supervisor))
        return making

    async def _make(self, making: Making, supervisor: Supervisor) -> Snapshot:
        begun = self._parts.clock.monotonic()
        row = making.row
        try:
            await self._store.snapshots.save(row)
            checkpoint = await supervisor.snapshot(row.id, memory=making.spec.memory)
            took_ms = (self._parts.clock.monotonic() - begun) * 1000
            ready = replace(filled(row, checkpoint, supervisor.sandbox), took_ms=took_ms)
            if not making.is_wanted:
                raise Conflict("its creator went away before it was ready")
            await self._store.snapshots.save(ready, making.idempotency)
        except BaseException as error:
            await self._undo(making, error)
            raise
        finally:
            self.book.making.pop(row.id, None)
        data = {**facts_of(ready), "memory": ready.kept.memory, "reason": ready.kept.reason}
        ticket = self._audit.note("sandbox.snapshotted", project=ready.project, sandbox=ready.sandbox, data=data)
        await self._audit.kept(ticket)
        return ready

    async def _undo(self, making: Making, error: BaseException) -> None:
        """Nothing of it is left, but its row where that tells its maker why. What cannot be removed, a start does."""
        if not isinstance(error, CoveError):
            return
        row = making.row
        await self._checkpoints.remove(row.id)
        try:
            if making.keep_failed:
                await self._store.snapshots.save(replace(row, state=SnapshotState.FAILED, failure=error.public))
            else:
                await self._store.snapshots.remove(row.id)
        except CoveError as again:
            log.warning("the row of snapshot %s stays until the next start: %s %s", row.id, again, again.internal)

    def get(self, who: Principal, ref: str) -> Snapshot:
        """One snapshot. Raises: NotFound."""
        require(who, Scope.READ)
        return self.book.known(who, ref)

    def list(
        self, who: Principal, wanted: SnapshotFilter | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> SnapshotPage:
        """One page of the project's, newest first. A filter's sandbox is an id, or the name of an unended one.

        Raises: BadRequest, NotFound (no sandbox of that name).
        """
        require(who, Scope.READ)
        check_page(limit)
        wanted = wanted or SnapshotFilter()
        if wanted.sandbox is not None and not is_core_id(wanted.sandbox):
            wanted = replace(wanted, sandbox=self._directory.known(who, wanted.sandbox).id)
        check_metadata(wanted.tags, "tags")
        return self._store.snapshots.page(who.project, wanted, limit=limit, cursor=cursor)

    async def every(
        self, who: Principal, wanted: SnapshotFilter, *, most: int = MOST_LISTED
    ) -> builtins.list[Snapshot]:
        """The project's, newest first, without pages; older ones than the `most` newest are left out.

        Raises: BadRequest, NotFound (no sandbox of that name).
        """
        found: builtins.list[Snapshot] = []
        cursor: str | None = None
        while len(found) < most:
            page = self.list(who, wanted, limit=min(PAGE_LIMIT, most - len(found)), cursor=cursor)
            found += page.snapshots
            cursor = page.cursor
            if cursor is None:
                break
            await asyncio.sleep(0)  # a page of rows takes the loop some 20 ms
        return found

    async def update(self, who: Principal, ref: str, change: SnapshotChange) -> Snapshot:
        """Another name, other tags. Raises: BadRequest, NotFound, Conflict (name; being made or deleted)."""
        require(who, Scope.CREATE)
        async with self.book.changing:
            before = self.book.known(who, ref)
            self.book.require_settled(before)
            name = before.name if change.name is UNSET else change.name
            if name != before.name:
                check_name(name, "name")
                self.book.free_name(before.project, name)
            tags = dict(before.tags)
            for key, value in ({} if change.tags is UNSET else change.tags).items():
                if value is None:
                    tags.pop(key, None)
                else:
                    tags[key] = value
            check_metadata(tags, "tags")
            after = replace(before, name=name, tags=tags)
            await self._store.snapshots.save(after)
        return after

    async def delete(self, who: Principal, ref: str) -> None:
        """Remove it with all it holds. What was made of it stays.

        Raises: NotFound, Conflict (it is being made, or something needs it: what), EngineFailure.
        """
        require(who, Scope.DESTROY)
        snapshot = self.book.known(who, ref)
        under_way = self.book.deleting.get(snapshot.id)
        if under_way is None:
            self._audit.check()
            self.book.require_unused(snapshot)
            under_way = self.book.deleting[snapshot.id] = self._parts.jobs.start(self._delete(snapshot))
        await asyncio.shield(under_way)

    async def _delete(self, snapshot: Snapshot) -> None:
        try:
            async with self.book.changing:
                await self._store.snapshots.save(replace(snapshot, state=SnapshotState.DELETING))
            ticket = self._audit.note(
                "snapshot.deleted", project=snapshot.project, sandbox=None, data=facts_of(snapshot)
            )
            await self._checkpoints.remove(snapshot.id)
            await self._store.snapshots.remove(snapshot.id)
            await self._audit.kept(ticket)
        finally:
            self.book.deleting.pop(snapshot.id, None)

    async def restore(
        self,
        who: Principal,
        ref: str,
        spec: RestoreSpec,
        *,
        dialect: str = "native",
        idempotency: Idempotency | None = None,
    ) -> Sandbox:
        """A new running sandbox that begins as the snapshot was.

        Cancelling ends it, unless an idempotency key lets the caller come back for it.
        Raises: BadRequest, NotFound (also its image), Conflict (name; not ready), IdempotencyConflict, QuotaExceeded,
        CapacityExceeded, Unsupported, EngineFailure (damaged).
        """
        require(who, Scope.CREATE)
        idempotency = self._creation.blinded(spec.credentials, scoped(idempotency, "restore", ref))
        earlier = self._creation.earlier(who.project, idempotency)
        if earlier is None:
            snapshot = self.book.known(who, ref)
            done = self.book.hold(snapshot, "a restore")
            try:
                earlier = await self._launched(who, snapshot, spec, dialect, idempotency)
            except BaseException:
                done()
                raise
            if isinstance(earlier, Supervisor):
                earlier.call_when_started(done)
            else:
                done()
        return await self._creation.outcome(earlier, is_kept=idempotency is not None)

    async def _launched(
        self, who: Principal, snapshot: Snapshot, spec: RestoreSpec, dialect: str, idempotency: Idempotency | None
    ) -> Supervisor | Sandbox:
        wish = self._restoring.wish(who, snapshot, spec, snapshot=snapshot.id, dialect=dialect, idempotency=idempotency)
        self._restoring.check(wish)
        checkpoint = await self.book.checkpoint(snapshot, with_memory=spec.memory is not False)
        order = await self._restoring.order(wish, checkpoint)
        # No await from here: the image that was found is there when the sandbox is.
        return self._creation.launch(order, self._restoring.image(snapshot))

    async def roll_back(self, who: Principal, ref: str, snapshot_ref: str, *, memory: bool | None = None) -> Sandbox:
        """Make a sandbox be again what it was, in place: its own snapshots, and those of what it was made of.

        Raises: NotFound, Gone, Conflict (not of its line; not ready; its limits are too low), Unsupported,
        EngineFailure; then it is as it was before.
        """
        require(who, Scope.CREATE)
        self._audit.check()
        supervisor = self._directory.live(who, ref)
        snapshot = self.book.known(who, snapshot_ref)
        self._require_line(supervisor.sandbox, snapshot)
        done = self.book.hold(snapshot, "a rollback")
        try:
            job = self._parts.jobs.start(self._roll_back(supervisor, snapshot, memory))
        except BaseException:
            done()
            raise
        job.add_done_callback(lambda _: done())
        return await asyncio.shield(job)

    async def _roll_back(self, supervisor: Supervisor, snapshot: Snapshot, memory: bool | None) -> Sandbox:  # noqa: FBT001
        checkpoint = await self.book.checkpoint(snapshot, with_memory=memory is not False)
        kept = self._restoring.kept(snapshot, checkpoint, memory)
        try:
            check_needs(supervisor.sandbox.limits, checkpoint.facts, with_memory=kept.memory)
        except BadRequest as error:
            raise Conflict(f"the sandbox's {error.public}", field=error.field) from error
        return await supervisor.roll_back(checkpoint, self._restoring.image_of(snapshot), kept=kept)

    async def start(self) -> None:
        """Finish what a former server left: after the sandboxes were adopted, before anybody asks. Never raises."""
        try:
            known = await self.book.settle()
            await self._forking.end_half_made()
            known |= {one.id for one in self._store.sandboxes.unended() if self._lies_on_disk(one)}
            swept = await self._checkpoints.sweep(frozenset(known))
        except CoveError as error:
            log.warning("snapshots are looked through at the next start: %s %s", error, error.internal)
            return
        if swept:
            log.info("%d checkpoints that belong to nothing were removed", len(swept))

    def _lies_on_disk(self, row: Sandbox) -> bool:
        """Whether a checkpoint of its own is what it goes on from. One that runs must not go back to an older one.

        Nobody can say of a sandbox whose driver is not loaded.
        """
        supervisor = self._parts.supervisors.get(row.id)
        return supervisor is None or supervisor.sandbox.state is State.HIBERNATED

    def _require_line(self, sandbox: Sandbox, snapshot: Snapshot) -> None:
        """Raises: Conflict: it is of another sandbox than this one and those that it was made of."""
        seen: set[str] = set()
        todo = [sandbox.id]
        while todo and len(seen) < MOST_ANCESTORS:
            one = todo.pop()
            # What a file says of itself is no proof of anything.
            if one == snapshot.id or (one == snapshot.sandbox and not snapshot.is_imported):
                return
            if one not in seen:
                seen.add(one)
                todo += self._made_of(one, sandbox.project)
        raise Conflict(
            f"the snapshot {snapshot.name} is of another sandbox: restore it, which makes a new one", field="snapshot"
        )

    def _made_of(self, one: str, project: str) -> tuple[str, ...]:
        """What a sandbox or a snapshot came from, as far as it is still known: both have ids of one kind."""
        found = self._directory.by_id(one) or self._store.sandboxes.get(one)
        snapshot = self._store.snapshots.get(one)
        if found is not None and found.project == project and found.came_from is not None:
            return (found.came_from.sandbox, *filter(None, (found.came_from.snapshot,)))
        if snapshot is not None and snapshot.project == project:
            return (snapshot.sandbox, *filter(None, (snapshot.parent,)))
        return ()
