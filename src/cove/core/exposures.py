"""Who may reach a port of a sandbox from outside: the rows, the tokens, and the one question the proxy asks.

A key of the project with the scope `exec` opens every port. A row can open one port to whoever has its token, or to
everybody. To someone who may not come in, a port that is closed and a sandbox that does not exist look the same.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from cove.core.access import require
from cove.core.audit import Audit
from cove.core.directory import Directory
from cove.core.filenotes import FileNotes
from cove.core.hostports import HostPorts, Wish
from cove.core.ports import PORTS
from cove.core.quotas import Quotas
from cove.core.validation import check_count
from cove.engine.clock import Clock
from cove.engine.supervisor import Supervisor
from cove.model.access import DEFAULT_PROJECT, FULL, Principal, Scope
from cove.model.errors import CoveError, Forbidden, NotFound, Unauthorized, Unsupported
from cove.model.exposures import TOKEN_PREFIX, Access, Exposure, PortState
from cove.model.state import State
from cove.store.store import Store

TOKEN_BYTES: Final = 24
TOKENS: Final = 8
"""Tokens of one request that are looked at: cookies can be added by others, who shall not make us hash for ever."""

TOKEN_LIMIT: Final = 256
_FINDER: Final = Principal(key_id="", name="", project=DEFAULT_PROJECT, scopes=FULL)
"""Finds a sandbox by id for somebody who has shown no key. It is given to nobody."""


class Exposures:
    """Every operation on how ports are reached. All raise Forbidden, NotFound (sandbox), Gone beside what they name."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        directory: Directory,
        store: Store,
        clock: Clock,
        *,
        host_ports: HostPorts,
        quotas: Quotas,
        audit: Audit,
    ) -> None:
        self._directory = directory
        self._quotas = quotas
        self._notes = FileNotes(audit)
        self._host_ports = host_ports
        self._store = store
        self._clock = clock

    def admit(self, ref: str, port: int, who: Principal | None, tokens: Sequence[str] = ()) -> Principal:
        """In whose name a request to a port goes on: `who`, or a visitor that may dial and nothing else.

        Raises: Unauthorized (nothing that was shown opens this port), Forbidden, NotFound, Gone, BadRequest.
        """
        check_count(port, PORTS, "port")
        refused: CoveError = Unauthorized(
            "this port is opened by a key of its project (X-API-Key), or by its token if it has one (X-Cove-Token)"
        )
        if who is not None:
            try:
                self._directory.live(who, ref)
                require(who, Scope.EXEC)
            except (NotFound, Forbidden) as error:
                refused = error
            else:
                return who
        visitor = self._visitor(ref, port, tokens)
        if visitor is None:
            raise refused
        return visitor

    def _visitor(self, ref: str, port: int, tokens: Sequence[str]) -> Principal | None:
        """Who comes in by a row. A name is looked for in the default project: in others it may be anybody's."""
        try:
            sandbox = self._directory.live(_FINDER, ref).sandbox
        except CoveError:
            return None
        row = self._store.exposures.get(sandbox.id, port)
        if row is None or not _opens(row, tokens):
            return None
        name = f"{row.access.value}:{sandbox.id}:{port}"
        return Principal(key_id=name, name=name, project=sandbox.project, scopes=frozenset({Scope.EXEC}))

    def is_token(self, ref: str, port: int, token: str) -> bool:
        """Whether `token` is the one of a port, for a caller that `admit` has let in."""
        sandbox = self._directory.live(_FINDER, ref).sandbox
        row = self._store.exposures.get(sandbox.id, port)
        return row is not None and row.access is Access.TOKEN and _opens(row, [token])

    async def set(
        self, who: Principal, ref: str, port: int, access: Access | UnsetType, *, host_port: Wish = UNSET
    ) -> tuple[Exposure, str | None]:
        """Choose who may reach a port. With TOKEN a new token, which is shown here and never again; an old one ends.

        `host_port`: a port of the host that leads to it for raw TCP, for whoever reaches that. UNSET: as it is.
        Raises: BadRequest, Conflict (the host's port is in use), QuotaExceeded, CapacityExceeded, Unsupported; then all
        is as before.
        """
        require(who, Scope.CREATE)
        check_count(port, PORTS, "port")
        self._notes.check()
        token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES) if access is Access.TOKEN else None
        async with self._host_ports.lock:
            sandbox = self._directory.live(who, ref).sandbox
            row = self._store.exposures.get(sandbox.id, port) or Exposure(
                sandbox=sandbox.id, port=port, created_at=self._clock.now()
            )
            if row.host_port is None and host_port is not UNSET and host_port is not False:
                self._quotas.check_count(sandbox.project, "host_ports")
            async with self._host_ports.changed(sandbox, port, row.host_port, host_port) as number:
                row = replace(row, host_port=number)
                if access is not UNSET:
                    row = replace(row, access=access, digest=None if token is None else _digest(token))
                if not await self._store.exposures.save(row):
                    self._directory.live(who, ref)  # raises Gone where it has ended in between
                    raise NotFound("no such sandbox")
        data = {"port": port, "access": row.access.value, "host_port": row.host_port}
        await self._notes.kept("port.exposed", who, sandbox, **data)
        return row, token

    async def look(self, who: Principal, ref: str, port: int) -> PortState:
        """How a port is reached, without a row by key, and whether something listens. Raises: BadRequest."""
        check_count(port, PORTS, "port")
        for state in await self.list(who, ref):
            if state.exposure.port == port:
                return state
        supervisor = self._directory.live(who, ref)
        is_listening = None if supervisor.sandbox.state is not State.RUNNING else False
        return PortState(exposure=Exposure(sandbox=supervisor.sandbox.id, port=port), listening=is_listening)

    async def remove(self, who: Principal, ref: str, port: int) -> None:
        """Back to reaching it by key alone, and by no port of the host. Idempotent. Raises: BadRequest."""
        require(who, Scope.CREATE)
        check_count(port, PORTS, "port")
        async with self._host_ports.lock:
            sandbox = self._directory.known(who, ref)
            sandbox_id = sandbox.id
            row = self._store.exposures.get(sandbox_id, port)
            await self._store.exposures.remove(sandbox_id, port)
            if row is not None and row.host_port is not None:
                self._host_ports.close(row.host_port)
        if row is not None:
            await self._notes.kept("port.closed", who, sandbox, port=port)

    async def list(self, who: Principal, ref: str) -> list[PortState]:
        """The ports with a row and those on which something listens now. A paused sandbox is not woken for it."""
        require(who, Scope.READ)
        supervisor = self._directory.live(who, ref)
        sandbox_id = supervisor.sandbox.id
        rows = {row.port: row for row in self._store.exposures.of_sandbox(sandbox_id)}
        found = await _listening(supervisor)
        states: list[PortState] = []
        for port in sorted(rows.keys() | (found or {}).keys()):
            row = rows.get(port) or Exposure(sandbox=sandbox_id, port=port)
            is_listening = None if found is None else port in found
            address = (found or {}).get(port)
            states.append(PortState(exposure=row, listening=is_listening, address=address))
        return states


async def _listening(supervisor: Supervisor) -> dict[int, str] | None:
    """The address that something listens on, by port; None: it is paused, or its agent is too old to tell."""
    if supervisor.sandbox.state is not State.RUNNING:
        return None
    async with supervisor.lease() as box:
        try:
            reply = await box.agent.ports()
        except Unsupported:
            return None
    return {one.port: one.address for one in reply.ports}


def _opens(row: Exposure, tokens: Sequence[str]) -> bool:
    if row.access is Access.PUBLIC:
        return True
    if row.access is not Access.TOKEN or row.digest is None:
        return False
    found = False
    for token in tokens[:TOKENS]:
        found |= hmac.compare_digest(_digest(token[:TOKEN_LIMIT]), row.digest)
    return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
