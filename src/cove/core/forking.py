"""Forks: one checkpoint of a sandbox, and so many children of it. All of them run in the end, or none is left.

The intent is a row with the children's ids, written before the first is made and removed when all run: a start ends
those of a fork that it finds half made. The checkpoint has no row of its own; it goes with the fork, or is swept.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import replace
from typing import Final

from msgspec.structs import replace as with_name

from cove.core.access import require
from cove.core.creation import IDEMPOTENCY_S, Brood, must_equal
from cove.core.restoring import Restoring, StateParts, Wish, past_of, scoped
from cove.core.validation import check_count, check_idempotency, check_name
from cove.engine.supervisor import Supervisor
from cove.model.access import Principal, Scope
from cove.model.errors import Conflict, CoveError
from cove.model.ids import new_core_id
from cove.model.request import Idempotency
from cove.model.sandbox import Sandbox
from cove.model.snapshot import FORK_LIMIT, RestoreSpec
from cove.model.state import EndReason
from cove.store.forks import ForkRow

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""Children of one fork that are made at a time: more only wait for the same cores, and hold up others' creates."""

NAME_STEM: Final = 56
"""Of a parent's name, so that a number has room."""

SIBLING: Final = "another child of its fork failed"
HALF_MADE: Final = "the server stopped while its fork was being made"


class _Fork:
    """One in the making."""

    def __init__(self, wish: Wish, count: int) -> None:
        self.wish = wish
        self.count = count
        self.id = new_core_id()
        self.brood = Brood(AT_ONCE)
        self.is_wanted = True
        self.outcome: asyncio.Future[tuple[Sandbox, ...]] | None = None

    def abandon(self) -> None:
        """Its caller went away and will not come back."""
        self.is_wanted = False
        self.brood.is_doomed = True


class Forking:
    """Makes forks."""

    def __init__(self, parts: StateParts, restoring: Restoring) -> None:
        self._parts = parts
        self._creation = parts.creation
        self._restoring = restoring
        self._store = parts.store
        self._making: dict[str, _Fork] = {}

    async def fork(  # noqa: PLR0913 - what a request says
        self,
        who: Principal,
        ref: str,
        spec: RestoreSpec,
        count: int = 1,
        *,
        dialect: str = "native",
        idempotency: Idempotency | None = None,
    ) -> tuple[Sandbox, ...]:
        """So many running sandboxes that begin as this one is now, which goes on. With `name`: `name-1` and so on.

        Cancelling ends them, unless an idempotency key lets the caller come back for them.
        Raises: Forbidden, BadRequest, NotFound, Gone, Conflict (name), IdempotencyConflict, QuotaExceeded,
        CapacityExceeded, Unsupported, EngineFailure; no child is left then.
        """
        require(who, Scope.CREATE)
        check_count(count, (1, FORK_LIMIT), "count")
        idempotency = self._creation.blinded(spec.credentials, scoped(idempotency, "fork", ref, str(count)))
        fork = self._earlier(who.project, idempotency)
        if isinstance(fork, tuple):
            return fork
        if fork is None:
            fork = self._begin(who, ref, spec, count, dialect, idempotency)
        assert fork.outcome is not None  # noqa: S101 - it was begun
        try:
            return await asyncio.shield(fork.outcome)
        except asyncio.CancelledError:
            if idempotency is None:
                fork.abandon()
            raise

    async def end_half_made(self) -> None:
        """At the start: the children of forks that were not done are ended. Raises: CoveError (the store)."""
        for row in self._store.forks.all():
            for child in row.children:
                supervisor = self._parts.supervisors.get(child)
                if supervisor is not None:
                    await supervisor.end(EndReason.CREATE_FAILED, HALF_MADE)
            await self._store.forks.finish(row)

    def _begin(  # noqa: PLR0913, PLR0917 - what a request says
        self,
        who: Principal,
        ref: str,
        spec: RestoreSpec,
        count: int,
        dialect: str,
        idempotency: Idempotency | None,
    ) -> _Fork:
        """What can be refused is refused here, before the source stands still for it."""
        self._parts.audit.check()
        supervisor = self._parts.directory.live(who, ref)
        past = past_of(supervisor.sandbox)
        wish = self._restoring.wish(who, past, spec, snapshot=None, dialect=dialect, idempotency=idempotency)
        for name in self._names(wish, count):
            check_name(name, "name")
            self._parts.directory.check_free(past.project, name)
        self._restoring.check(wish, count)
        self._restoring.image(past)
        fork = _Fork(wish, count)
        self._making[fork.id] = fork
        fork.outcome = self._parts.jobs.start(self._fork(fork, supervisor))
        return fork

    async def _fork(self, fork: _Fork, supervisor: Supervisor) -> tuple[Sandbox, ...]:
        try:
            return await self._made(fork, supervisor)
        finally:
            del self._making[fork.id]
            await self._parts.checkpoints.remove(fork.id)

    async def _made(self, fork: _Fork, source: Supervisor) -> tuple[Sandbox, ...]:
        wish = fork.wish
        checkpoint = await source.snapshot(fork.id, memory=wish.spec.memory, is_lasting=False)
        row = ForkRow(
            id=fork.id,
            project=wish.past.project,
            sandbox=wish.past.sandbox,
            children=tuple(new_core_id() for _ in range(fork.count)),
            created_at=self._parts.clock.now(),
        )
        await self._store.forks.add(row)
        try:
            order = await self._restoring.order(wish, checkpoint, fork.brood)
            orders = [
                replace(order, id=child, spec=with_name(order.spec, name=name), idempotency=None)
                for child, name in zip(row.children, self._names(wish, fork.count), strict=True)
            ]
            children = self._creation.launch_all(orders, self._restoring.image(wish.past))
        except CoveError:
            await self._store.forks.finish(row)
            raise
        await self._all_or_none(fork, row, children)
        return tuple(child.view() for child in children)

    async def _all_or_none(self, fork: _Fork, row: ForkRow, children: list[Supervisor]) -> None:
        """Until all run and the store knows it. Raises: what the first one raised, when all are ended."""
        failure = await _first_failure(fork, children)
        if failure is None:
            try:
                await self._store.forks.finish(row, fork.wish.idempotency)
            except CoveError as error:
                failure = error
            else:
                return
        for child in children:
            child.end_soon(EndReason.CREATE_FAILED, SIBLING)
        for child in children:
            await child.end(EndReason.CREATE_FAILED, SIBLING)
        try:
            await self._store.forks.finish(row)
        except CoveError as error:
            log.warning("the row of fork %s stays until the next start: %s %s", row.id, error, error.internal)
        raise failure

    def _names(self, wish: Wish, count: int) -> list[str]:
        """What the children are called: as asked, else as their parent with the next free numbers."""
        name = wish.spec.name
        if name is not None:
            return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
        stem = wish.past.sandbox_name[:NAME_STEM].rstrip("-")
        numbered = (f"{stem}-{number}" for number in itertools.count(1))
        is_taken = self._parts.directory.holder
        return list(itertools.islice((one for one in numbered if not is_taken(wish.past.project, one)), count))

    def _earlier(self, project: str, idempotency: Idempotency | None) -> _Fork | tuple[Sandbox, ...] | None:
        """What an earlier request of this key made, or is making. Raises: BadRequest, IdempotencyConflict."""
        if idempotency is None:
            return None
        check_idempotency(idempotency)
        for fork in self._making.values():
            known = fork.wish.idempotency
            if known is not None and (fork.wish.past.project, known.key) == (project, idempotency.key):
                must_equal(known.body_sha256, idempotency)
                return fork
        row = self._store.idempotency.get(project, idempotency.key, since=self._parts.clock.now() - IDEMPOTENCY_S)
        if row is None:
            return None
        must_equal(row.body_sha256, idempotency)
        found = [self._store.sandboxes.get(child) for child in row.made]
        return tuple(self._parts.directory.newest(one) for one in found if one is not None) or None


async def _first_failure(fork: _Fork, children: list[Supervisor]) -> CoveError | None:
    """Wait for all; why they cannot be kept."""
    failure: CoveError | None = None
    for number, child in enumerate(children, 1):
        try:
            await child.wait_started()
        except CoveError as error:
            if error is not fork.brood.doom:
                failure = failure or _told(error, number, len(children), child.sandbox.name)
    if failure is None and not fork.is_wanted:
        return Conflict("its creator went away before all children ran")
    return failure


def _told(error: CoveError, number: int, count: int, name: str) -> CoveError:
    """The failure of one child as that of the fork."""
    if count == 1:
        return error
    return type(error)(
        f"child {number} of {count} ({name}) failed, so none is kept: {error.public}",
        internal=error.internal,
        field=error.field,
        retry_after_s=error.retry_after_s,
    )
