"""Public keys of projects, and who may log in to which sandbox with one. The protocol is the server's affair.

An unknown key, an unknown sandbox and another project's sandbox are one answer, and take the same two look-ups.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
from collections.abc import Mapping
from typing import Final

from cove.core.access import LOCAL, require
from cove.core.audit import Audit
from cove.core.directory import Directory
from cove.core.validation import check_label
from cove.engine.clock import Clock
from cove.model.access import Principal, Scope
from cove.model.audit import AuditValue
from cove.model.errors import Conflict, CoveError, NotFound
from cove.model.ids import new_core_id
from cove.model.sandbox import Sandbox
from cove.model.sshkey import SshKey, fingerprint_of, parse
from cove.model.state import FINAL
from cove.store.store import Store

log = logging.getLogger(__name__)

MAY: Final = frozenset({Scope.READ, Scope.EXEC, Scope.FILES})
"""What one does over SSH: commands, files, ports. Never keys, creates or ends."""

PROJECTS_PER_KEY: Final = 64
KEYS_PER_PROJECT: Final = 1000
REF_LENGTH: Final = 64


class SshKeys:
    """Every operation on public keys."""

    def __init__(
        self, store: Store, directory: Directory, clock: Clock, tasks: asyncio.TaskGroup, audit: Audit
    ) -> None:
        self._store = store
        self._audit = audit
        self._directory = directory
        self._clock = clock
        self._tasks = tasks

    async def add(
        self, who: Principal, public_key: str, *, name: str | None = None, project: str | None = None
    ) -> SshKey:
        """Let whoever has the private half work in the project's sandboxes. `name` None: the key's comment.

        Raises: Forbidden, BadRequest, NotFound (project), Conflict (the project has it).
        """
        require(who, Scope.KEYS)
        self._audit.check()
        self._may_give(who, project or who.project)
        key = parse(public_key)
        if name is not None:
            check_label(name, "name")
        of_project = project or who.project
        if len(self._store.ssh_keys.list(of_project)) >= KEYS_PER_PROJECT:
            raise Conflict(f"a project has at most {KEYS_PER_PROJECT} SSH keys")
        made = SshKey(
            id=new_core_id()[:8],
            project=of_project,
            name=name or key.comment[:63] or key.fingerprint[7:19],
            type=key.type,
            public_key=key.base64,
            fingerprint=key.fingerprint,
            created_at=self._clock.now(),
        )
        if not await self._store.ssh_keys.add(made):
            raise Conflict("the project has this key already", field="public_key")
        data = {"ssh_key": made.id, "name": made.name, "fingerprint": made.fingerprint}
        await self._noted("ssh_key.added", who, of_project, data)
        return made

    def list(self, who: Principal) -> list[SshKey]:
        """The keys of the caller's project, for an admin of all, oldest first. Raises: Forbidden."""
        require(who, Scope.KEYS)
        return self._store.ssh_keys.list(None if who.can(Scope.ADMIN) else who.project)

    async def remove(self, who: Principal, key_id: str) -> None:
        """Let nobody log in with it any more; its open connections end within seconds. Raises: Forbidden, NotFound."""
        require(who, Scope.KEYS)
        key = self._store.ssh_keys.by_id(key_id)
        if key is None or (key.project != who.project and not who.can(Scope.ADMIN)):
            raise NotFound("no such SSH key")
        await self._store.ssh_keys.remove(key.id)
        await self._noted("ssh_key.removed", who, key.project, {"ssh_key": key.id, "name": key.name})

    def admit(self, blob: bytes, ref: str) -> tuple[Principal, str] | None:
        """Who the holder of this public key is for the sandbox `ref`, and its id; None: nobody who may log in there.

        A key of several projects is that of the oldest one which has such a sandbox. What is asserted here is not
        proven yet: the caller checks the signature.
        """
        found: tuple[Principal, str] | None = None
        for key in self._store.ssh_keys.by_fingerprint(fingerprint_of(blob), limit=PROJECTS_PER_KEY):
            if not hmac.compare_digest(base64.b64decode(key.public_key), blob):
                continue
            who = Principal(key_id=f"ssh:{key.id}", name=key.name, project=key.project, scopes=MAY)
            sandbox = self._sandbox(who, ref)
            if found is None and sandbox is not None:
                found = who, sandbox.id
        if found is None:
            self._sandbox(_NOBODY, ref)
        return found

    def why_leave(self, who: Principal, sandbox_id: str) -> str | None:
        """Why the connection of somebody who was admitted may not go on; None: it may."""
        sandbox = self._sandbox(LOCAL, sandbox_id)
        if sandbox is None or sandbox.state in FINAL:
            return "the sandbox has ended"
        if self._store.ssh_keys.by_id(who.key_id.removeprefix("ssh:")) is None:
            return "the key was removed"
        return None

    async def _noted(self, event: str, who: Principal, project: str, data: Mapping[str, AuditValue]) -> None:
        await self._audit.kept(self._audit.note(event, project=project, sandbox=None, data=data, who=who))

    def used(self, who: Principal) -> None:
        """Note that the holder of the key has logged in."""
        self._tasks.create_task(self._note_use(who.key_id.removeprefix("ssh:")))

    def _sandbox(self, who: Principal, ref: str) -> Sandbox | None:
        try:
            return self._directory.known(who, ref[:REF_LENGTH])
        except NotFound:
            return None

    def _may_give(self, who: Principal, project: str) -> None:
        if project != who.project and not who.can(Scope.ADMIN):
            raise NotFound("no such project", field="project")
        if self._store.projects.get(project) is None:
            raise NotFound("no such project", field="project")
        for scope in sorted(MAY):
            require(who, scope)  # nobody gives what they do not have

    async def _note_use(self, key_id: str) -> None:
        try:
            await self._store.ssh_keys.touch(key_id, at=self._clock.now())
        except CoveError as error:
            log.warning("the use of SSH key %s was not noted: %s %s", key_id, error, error.internal)


_NOBODY: Final = Principal(key_id="ssh:", name="", project="", scopes=frozenset())
