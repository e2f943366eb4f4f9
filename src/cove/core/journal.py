"""Writes what supervisors tell into the store.

What has happened and cannot be written now is kept and tried again, so that a full disk stops neither a destroy nor
the server.
"""

from __future__ import annotations

import logging
from typing import Final

from cove.engine.clock import Clock, sleep
from cove.model.errors import CoveError
from cove.model.sandbox import Sandbox
from cove.store.store import Store

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0


class StoreJournal:
    """The engine's `Journal` over the store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._unsaved: dict[str, Sandbox] = {}  # at most one per sandbox, the newest

    async def write(self, sandbox: Sandbox) -> None:
        """Write it now or not at all. Raises: CapacityExceeded, EngineFailure, Conflict."""
        older = self._unsaved.pop(sandbox.id, None)  # before it waits: a retry must not queue the older one behind it
        try:
            await self._store.sandboxes.save(sandbox)
        except CoveError:
            if older is not None:
                self._unsaved.setdefault(sandbox.id, older)
            raise

    async def write_surely(self, sandbox: Sandbox) -> None:
        """Write it now, or from `retry_forever` once the store takes it again."""
        try:
            await self.write(sandbox)
        except CoveError as error:
            self._unsaved[sandbox.id] = sandbox
            log.warning("sandbox %s is %s, written later: %s %s", sandbox.id, sandbox.state, error, error.internal)

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
