"""Writes what supervisors tell into the store.

What has happened and cannot be written now is kept and tried again, so that a full disk stops neither a destroy nor
the server. What a record says that the one before did not is a line of the audit trail, and what it changes in the bill
is written to the meter: all in the same transaction.
"""

from __future__ import annotations

import logging
from typing import Final

from cove.core.audit import Audit
from cove.core.auditevents import LifecycleEvent, lifecycle_event
from cove.core.metering import Metering, Turn
from cove.engine.clock import Clock, sleep
from cove.model.errors import CoveError
from cove.model.sandbox import Sandbox
from cove.model.state import State
from cove.store.store import Store
from cove.store.usage import flushing

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0


class StoreJournal:
    """The engine's `Journal` over the store."""

    def __init__(self, store: Store, clock: Clock, audit: Audit, metering: Metering) -> None:
        self._store = store
        self._metering = metering
        self._clock = clock
        self._audit = audit
        self._unsaved: dict[str, Sandbox] = {}  # at most one per sandbox, the newest

    async def write(self, sandbox: Sandbox) -> None:
        """Write it now or not at all. Raises: CapacityExceeded, EngineFailure, Conflict."""
        turn = self._metering.turn(sandbox)
        try:
            await self._write(sandbox, self._event(sandbox), turn)
        except CoveError:
            if turn is not None:
                self._metering.take_back(turn)
            raise

    async def write_surely(self, sandbox: Sandbox) -> None:
        """Write it now, or from `retry_forever` once the store takes it again."""
        event, turn = self._event(sandbox), self._metering.turn(sandbox)
        try:
            await self._write(sandbox, event, turn)
        except CoveError as error:
            if turn is not None:
                self._metering.keep(turn)
            self._unsaved[sandbox.id] = sandbox
            if event is not None:
                # It has happened, now and because of this caller: the line waits on its own, the row follows.
                self._audit.note(event[0], project=sandbox.project, sandbox=sandbox.id, data=event[1])
            log.warning("sandbox %s is %s, written later: %s %s", sandbox.id, sandbox.state, error, error.internal)

    def _event(self, sandbox: Sandbox) -> LifecycleEvent | None:
        return lifecycle_event(self._before(sandbox), sandbox)

    def _before(self, sandbox: Sandbox) -> Sandbox | None:
        try:
            return self._unsaved.get(sandbox.id) or self._store.sandboxes.get(sandbox.id)
        except CoveError:
            return None  # the store cannot be read: the write says so

    async def _write(self, sandbox: Sandbox, event: LifecycleEvent | None, turn: Turn | None) -> None:
        is_durable = self._must_last(sandbox)
        older = self._unsaved.pop(sandbox.id, None)  # before it waits: a retry must not queue the older one behind it
        try:
            also = None if turn is None else flushing(turn.flush)
            if event is not None:
                await self._audit.save(sandbox, *event, also, durable=is_durable)
            else:
                await self._store.sandboxes.save(sandbox, also, durable=is_durable)
        except CoveError:
            if older is not None:
                self._unsaved.setdefault(sandbox.id, older)
            raise

    def _must_last(self, sandbox: Sandbox) -> bool:
        """Whether a power failure must not take it back: what it replaces is destroyed once it is written."""
        if sandbox.state is State.HIBERNATED:
            return True
        before = self._before(sandbox)
        return before is not None and before.state is State.HIBERNATED

    def unsaved(self, sandbox_id: str) -> Sandbox | None:
        """What the store does not know yet about a sandbox."""
        return self._unsaved.get(sandbox_id)

    async def retry_forever(self) -> None:
        """Write what is left over, until cancelled."""
        while True:
            await sleep(self._clock, RETRY_S)
            await self.retry()

    async def retry(self) -> None:
        """Try once to write all that is left over; stops at the first that fails."""
        for sandbox in tuple(self._unsaved.values()):
            try:
                await self._store.sandboxes.save(sandbox)
            except CoveError:
                return
            if self._unsaved.get(sandbox.id) is sandbox:
                del self._unsaved[sandbox.id]
