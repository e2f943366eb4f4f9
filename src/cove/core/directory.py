"""Finds a caller's sandbox by id or name, and keeps names unique among the unended ones of a project."""

from __future__ import annotations

from typing import Final

from cove.core.access import may_see
from cove.core.journal import StoreJournal
from cove.engine.records import AT_REST, ended_error
from cove.engine.supervisor import Supervisor
from cove.engine.supervisors import Supervisors
from cove.model.access import Principal, Scope
from cove.model.errors import Conflict, EngineFailure, NotFound
from cove.model.ids import is_core_id, new_core_id, new_name
from cove.model.origin import note_sandbox
from cove.model.sandbox import Sandbox
from cove.model.state import FINAL
from cove.store.store import Store

NAME_TRIES: Final = 4


class Directory:
    """What exists for whom. Everything here is synchronous, so nothing can change between a look and a launch."""

    def __init__(self, supervisors: Supervisors, store: Store, journal: StoreJournal) -> None:
        self._supervisors = supervisors
        self._store = store
        self._journal = journal
        self._names: dict[tuple[str, str], str] = {}

    def live(self, who: Principal, ref: str) -> Supervisor:
        """The supervisor of an unended sandbox. Raises: NotFound, Gone."""
        supervisor = self._supervisor(who, ref)
        if supervisor is not None:
            return supervisor
        sandbox = self.known(who, ref)
        if sandbox.state in FINAL:
            raise ended_error(sandbox)
        raise EngineFailure(
            "this sandbox cannot be reached", internal=f"{sandbox.id}: driver {sandbox.driver} is not loaded"
        )

    def readable(self, who: Principal, ref: str) -> Supervisor:
        """The sandbox for a look at what runs in it, which resumes one at rest: more than a key for reading may do.

        Raises: NotFound, Gone, Conflict (at rest, and the key may neither run nor change anything).
        """
        supervisor = self.live(who, ref)
        may_resume = who.can(Scope.EXEC) or who.can(Scope.CREATE)
        state = supervisor.sandbox.state
        if state in AT_REST and not may_resume:
            raise Conflict(f"the sandbox is {state.value}, and this key may not resume it", field="state")
        return supervisor

    def known(self, who: Principal, ref: str) -> Sandbox:
        """A sandbox in any state; a name finds only an unended one. Raises: NotFound."""
        supervisor = self._supervisor(who, ref)
        if supervisor is not None:
            return supervisor.view()
        sandbox = (self._journal.unsaved(ref) or self._store.sandboxes.get(ref)) if is_core_id(ref) else None
        if sandbox is None or not may_see(who, sandbox.project):
            raise NotFound("no such sandbox")
        note_sandbox(sandbox.id)
        return sandbox

    def newest(self, sandbox: Sandbox) -> Sandbox:
        """What is known now about a sandbox that was read from the store."""
        supervisor = self._supervisors.get(sandbox.id)
        return supervisor.view() if supervisor is not None else self._journal.unsaved(sandbox.id) or sandbox

    def by_id(self, sandbox_id: str) -> Sandbox | None:
        """An unended sandbox by its core id, for the server's own work: no caller has asked."""
        supervisor = self._supervisors.get(sandbox_id)
        return None if supervisor is None or supervisor.sandbox.state in FINAL else supervisor.sandbox

    def check_free(self, project: str, name: str) -> None:
        """Raises: Conflict when an unended sandbox of the project has that name."""
        if (project, name) in self._names:
            raise Conflict(f"a sandbox named {name} exists", field="name")

    def free_name(self, project: str) -> str:
        """Two words that nobody has, with digits where all tries are taken: there are only 7 000 pairs."""
        for _ in range(NAME_TRIES):
            name = new_name()
            if (project, name) not in self._names:
                return name
        return f"{new_name()}-{new_core_id()[:8]}"

    def holder(self, project: str, name: str) -> str | None:
        """The id of the unended sandbox of the project that has this name."""
        return self._names.get((project, name))

    def hold_name(self, project: str, name: str, sandbox_id: str) -> None:
        """Keep a free name for a sandbox until it is released."""
        self._names[project, name] = sandbox_id

    def release_name(self, project: str, name: str, sandbox_id: str) -> None:
        """Let another sandbox have it. Harmless if it is not this one's."""
        if self._names.get((project, name)) == sandbox_id:
            del self._names[project, name]

    def _supervisor(self, who: Principal, ref: str) -> Supervisor | None:
        supervisor = self._supervisors.get(self._names.get((who.project, ref), ref))
        if supervisor is None or not may_see(who, supervisor.sandbox.project):
            return None
        note_sandbox(supervisor.sandbox.id)
        return supervisor
