"""Credentials: which sandbox may use which service, by whose key. The keys are sealed here and opened for the broker.

A credential is a sandbox's own, with a key or with none: then the project's key is used, as it is at the time. Who may
change a sandbox may change its credentials; a project's keys take the scope `keys`. No operation shows a key.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from cove.core.access import may_see, require
from cove.core.audit import Audit
from cove.core.directory import Directory
from cove.core.secrets import Secrets
from cove.core.services.catalogue import Services
from cove.engine.clock import Clock
from cove.model.access import Principal, Scope
from cove.model.audit import AuditValue
from cove.model.credentials import PROJECT, Credential, CredentialWish, EndpointRule, Grant, Secret, Service
from cove.model.endpoints import check_rule
from cove.model.errors import BadRequest, NotFound, TooLarge, Unsupported
from cove.model.sandbox import Sandbox
from cove.store.store import Store

log = logging.getLogger(__name__)

MOST: Final = 32
"""Credentials of one sandbox, and of one project."""

KEY_LIMIT: Final = 8192
RULES: Final = 64
WORDS: Final = 64
TEXT: Final = 1024
_KEY: Final = re.compile(rf"[!-~](?:[ -~]{{0,{KEY_LIMIT - 2}}}[!-~])?")


class Plan(NamedTuple):
    """What a create asked for, checked."""

    wishes: Mapping[str, CredentialWish]
    env: dict[str, str]


class Held(NamedTuple):
    """A credential as it is shown, with its service (None: that is gone)."""

    credential: Credential
    service: Service | None


class Credentials:
    """Every operation on credentials. All that take `who` raise Forbidden.

    `on_change` is told a sandbox (None: any) and a service (None: any) of which requests under way must end.
    """

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        *,
        store: Store,
        secrets: Secrets,
        services: Services,
        directory: Directory,
        clock: Clock,
        audit: Audit,
        missing: Callable[[], tuple[str, ...]],
    ) -> None:
        self._store = store
        self._secrets = self.secrets = secrets
        self.services = services
        self._directory = directory
        self._clock = clock
        self._audit = audit
        self._missing = missing
        self.on_change: Callable[[str | None, str | None], None] = lambda _sandbox, _service: None
        self._changing = asyncio.Lock()  # a row is made of the one before it: nobody changes it in between
        secrets.holders.append(self._reseal)
        services.on_change = lambda name: self.on_change(None, name)

    # At a create.

    def plan(self, project: str, wishes: Mapping[str, CredentialWish], placeholder: str) -> Plan:
        """Check what a create asks for. Raises: BadRequest, NotFound (service, or the project's key), Unsupported."""
        if not wishes:
            return Plan({}, {})
        self._require_network()
        if len(wishes) > MOST:
            raise TooLarge(f"a sandbox has at most {MOST} credentials", field="credentials")
        env: dict[str, str] = {}
        for name, wish in wishes.items():
            service = self.services.get(name)
            _check_rules(wish.endpoints)
            if wish.key is None:
                self._require_shared(project, name)
            else:
                _check_key(wish.key)
            env |= service.environment(placeholder)
        return Plan(dict(wishes), env)

    def rows(
        self, sandbox: Sandbox, wishes: Mapping[str, CredentialWish], donor: Sandbox | None = None
    ) -> list[Credential]:
        """The rows of a new sandbox, sealed by the key of now: to be queued for the store without a pause.

        `donor`: it gets the credentials of that one, too, where it has no wish of its own. Raises: EngineFailure.
        """
        asked = [
            self._row(sandbox.project, sandbox.id, name, wish.key, wish.endpoints, None)
            for name, wish in wishes.items()
        ]
        inherited = [] if donor is None else self.inherited(donor, sandbox)
        return asked + [row for row in inherited if row.service not in wishes]

    def inherited(self, source: Sandbox, heir: Sandbox) -> list[Credential]:
        """The rows of a sandbox, for another one that is made of it and is to have them. Never done unasked.

        Raises: EngineFailure (a key that cannot be opened).
        """
        rows: list[Credential] = []
        for one in self._store.credentials.of_sandbox(source.id, source.project):
            key = None if one.sealed is None else self._open(one)
            rows.append(self._row(heir.project, heir.id, one.service, key, one.endpoints, None))
        return rows

    def note_inherited(self, rows: Sequence[Credential]) -> None:
        """Write down what a sandbox got because another one had it."""
        for row in rows:
            self._audit.note(
                "credential.changed", project=row.project, sandbox=row.sandbox, data=_told(row, "inherited")
            )

    def blinded(self, body_sha256: str) -> str:
        """The hash of a request that has keys in it, so that the store helps nobody to guess them."""
        return self._secrets.blind(body_sha256)

    def ended(self, sandbox_id: str) -> None:
        """A sandbox is no more: its rows go with its record, its requests now."""
        self.on_change(sandbox_id, None)

    # Of a sandbox.

    def held(self, who: Principal, ref: str) -> list[Held]:
        """A sandbox's, by service. Raises: NotFound."""
        require(who, Scope.READ)
        sandbox = self._directory.known(who, ref)
        return [self._held(one) for one in self._store.credentials.of_sandbox(sandbox.id, sandbox.project)]

    async def set(
        self,
        who: Principal,
        ref: str,
        service: str,
        *,
        key: Secret | UnsetType | None = UNSET,
        endpoints: tuple[EndpointRule, ...] | UnsetType = UNSET,
    ) -> Held:
        """Give a sandbox a credential, or change one: it holds for the next request.

        `key` None: the project's; UNSET: as it is, for a new one the project's. `endpoints` UNSET: as they are.
        Other rules end what is under way; another key lets it end by itself.
        Raises: BadRequest, NotFound (sandbox, service, the project's key), Gone, Unsupported, EngineFailure.
        """
        require(who, Scope.CREATE)
        found = self.services.get(service)
        supervisor = self._directory.live(who, ref)
        sandbox = supervisor.sandbox
        self._require_network()
        if not isinstance(endpoints, UnsetType):
            _check_rules(endpoints)
        if isinstance(key, Secret):
            _check_key(key)
        else:
            self._which(sandbox, found.name, key, self._earlier(sandbox, found.name))  # before its way is opened
        await supervisor.change(lambda now: _with_way(now, is_open=True))
        async with self._changing:
            earlier = self._earlier(sandbox, found.name)
            if not isinstance(key, Secret):
                key = self._which(sandbox, found.name, key, earlier)
            rules = (earlier.endpoints if earlier else ()) if isinstance(endpoints, UnsetType) else endpoints
            row = self._row(sandbox.project, sandbox.id, found.name, key, rules, earlier)
            is_saved = await self._store.credentials.save(row)
        if not is_saved:
            self._directory.live(who, ref)  # raises Gone where it has ended in between
            raise NotFound("no such sandbox")
        if earlier is not None and earlier.endpoints != rules:
            self.on_change(sandbox.id, found.name)
        if len(self._store.credentials.of_sandbox(sandbox.id, sandbox.project)) == 1:
            await supervisor.change(self._with_way_if_used)  # the last one beside it may just have closed the way
        await self._note(who, row, "set" if earlier is None else "changed")
        return Held(row, found)

    async def remove(self, who: Principal, ref: str, service: str) -> None:
        """Take a credential away; what is under way with it is cut. There is none: nothing. Raises: NotFound."""
        require(who, Scope.CREATE)
        sandbox = self._directory.known(who, ref)
        async with self._changing:
            row = self._store.credentials.get(sandbox.id, sandbox.project, service)
            if row is None or not await self._store.credentials.remove(sandbox.id, sandbox.project, service):
                return
        self.on_change(sandbox.id, service)
        await self._note(who, row, "removed")
        if not self._store.credentials.of_sandbox(sandbox.id, sandbox.project):
            await self._directory.live(who, sandbox.id).change(self._with_way_if_used)

    # Of a project.

    def shared(self, who: Principal, project: str | None = None) -> list[Held]:
        """What a project keeps, by service. Raises: NotFound."""
        require(who, Scope.READ)
        return [self._held(one) for one in self._store.credentials.of_project(self._project(who, project))]

    async def set_shared(
        self,
        who: Principal,
        service: str,
        *,
        key: Secret | UnsetType = UNSET,
        endpoints: tuple[EndpointRule, ...] | UnsetType = UNSET,
        project: str | None = None,
    ) -> Held:
        """Keep a key for a project's sandboxes, or change it or its rules, for the next request of each.

        Raises: BadRequest (a new one without a key), NotFound (service, project).
        """
        require(who, Scope.KEYS)
        owner = self._project(who, project)
        found = self.services.get(service)
        if not isinstance(endpoints, UnsetType):
            _check_rules(endpoints)
        if isinstance(key, Secret):
            _check_key(key)
        async with self._changing:
            earlier = self._store.credentials.get(PROJECT, owner, found.name)
            if isinstance(key, UnsetType) and earlier is None:
                raise BadRequest("a new credential needs a key", field="key")
            if earlier is None and len(self._store.credentials.of_project(owner)) >= MOST:
                raise TooLarge(f"a project has at most {MOST} credentials", field="credentials")
            rules = (earlier.endpoints if earlier else ()) if isinstance(endpoints, UnsetType) else endpoints
            row = self._row(owner, PROJECT, found.name, key, rules, earlier)
            await self._store.credentials.save(row)
        if earlier is not None and earlier.endpoints != rules:
            self._changed_for_all(found.name, owner)
        await self._note(who, row, "set" if earlier is None else "changed")
        return Held(row, found)

    async def remove_shared(self, who: Principal, service: str, *, project: str | None = None) -> None:
        """Forget a project's key; what uses it is cut. There is none: nothing. Raises: NotFound (project)."""
        require(who, Scope.KEYS)
        owner = self._project(who, project)
        async with self._changing:
            row = self._store.credentials.get(PROJECT, owner, service)
            if row is None or not await self._store.credentials.remove(PROJECT, owner, service):
                return
        self._changed_for_all(service, owner)
        await self._note(who, row, "removed")

    # For the broker.

    def grant(self, sandbox_id: str, service: str) -> Grant | None:
        """What a request of a sandbox to a service needs; None: it has no such credential. 50 µs on the loop.

        Raises: EngineFailure (the key cannot be opened).
        """
        sandbox = self._directory.by_id(sandbox_id)
        row = None if sandbox is None else self._store.credentials.get(sandbox.id, sandbox.project, service)
        found = self.services.find(service)
        if sandbox is None or row is None or found is None:
            return None
        holder = row if row.sealed is not None else self._store.credentials.get(PROJECT, sandbox.project, service)
        if holder is None:
            return None
        key = self._open(holder)
        header = found.value.replace("{key}", key.reveal())
        return Grant(
            service=found,
            sandbox=sandbox.id,
            project=sandbox.project,
            rules=(row.endpoints, () if holder is row else holder.endpoints),
            header=(found.header.lower().encode(), Secret(header)),
            key=key,
        )

    def services_of(self, sandbox_id: str) -> tuple[str, ...]:
        """The names of the services that a sandbox has credentials for."""
        sandbox = self._directory.by_id(sandbox_id)
        rows = [] if sandbox is None else self._store.credentials.of_sandbox(sandbox.id, sandbox.project)
        return tuple(one.service for one in rows)

    def note_use(self, grant: Grant, *, method: str, path: str, status: int) -> None:
        """Write down that a request was forwarded, or refused. `path` is without its query."""
        data: dict[str, AuditValue] = {
            "service": grant.service.name,
            "method": method,
            "path": path[:TEXT],
            "status": status,
        }
        self._audit.note("credential.proxied", project=grant.project, sandbox=grant.sandbox, data=data)

    # The keys that seal.

    def check(self) -> None:
        """Warn of keys that cannot be opened: secrets.key was lost or is another server's."""
        lost = [one for one in self._store.credentials.sealed() if not self._secrets.can_open(one.sealed or "")]
        if lost:
            log.warning("%d credentials cannot be read with this secrets.key: they must be set again", len(lost))

    async def rekey(self, who: Principal) -> int:
        """Put a new key into secrets.key and seal everything by it; returns how many secrets there are.

        Raises: EngineFailure.
        """
        require(who, Scope.ADMIN)
        count = await self._secrets.rotate()
        facts: dict[str, AuditValue] = {"action": "rekeyed"}
        ticket = self._audit.note("credential.changed", project=who.project, sandbox=None, data=facts, who=who)
        await self._audit.kept(ticket)
        return count

    async def _reseal(self) -> int:
        """For the ring. Alone, so that no row that was read before is written behind it."""
        async with self._changing:
            return await self._store.credentials.reseal(self._resealed)

    def _resealed(self, row: Credential) -> str | None:
        """In the writer's thread."""
        if row.sealed is None:
            return None
        return self._secrets.resealed(row.sealed, *_context(row.project, row.sandbox, row.service))

    # Parts.

    def _with_way_if_used(self, now: Sandbox) -> Sandbox:
        return _with_way(now, is_open=bool(self._store.credentials.of_sandbox(now.id, now.project)))

    def _earlier(self, sandbox: Sandbox, service: str) -> Credential | None:
        """The row that is there. Raises: TooLarge, where there is none and no room for one."""
        rows = self._store.credentials.of_sandbox(sandbox.id, sandbox.project)
        earlier = next((one for one in rows if one.service == service), None)
        if earlier is None and len(rows) >= MOST:
            raise TooLarge(f"a sandbox has at most {MOST} credentials", field="credentials")
        return earlier

    def _which(
        self, sandbox: Sandbox, service: str, key: UnsetType | None, earlier: Credential | None
    ) -> UnsetType | None:
        """UNSET: the key that the row has; None: the project's. Raises: NotFound (it keeps none)."""
        if isinstance(key, UnsetType) and earlier is not None and earlier.sealed is not None:
            return key
        self._require_shared(sandbox.project, service)
        return None

    def _row(  # noqa: PLR0913, PLR0917 - the fields of a row
        self,
        project: str,
        sandbox: str,
        service: str,
        key: Secret | UnsetType | None,
        rules: tuple[EndpointRule, ...],
        earlier: Credential | None,
    ) -> Credential:
        now = self._clock.now()
        if isinstance(key, UnsetType):
            sealed, changed_at = (None, now) if earlier is None else (earlier.sealed, earlier.changed_at)
        else:
            sealed = None if key is None else self._secrets.seal(key, *_context(project, sandbox, service))
            changed_at = now
        return Credential(
            project=project,
            sandbox=sandbox,
            service=service,
            sealed=sealed,
            endpoints=rules,
            created_at=now if earlier is None else earlier.created_at,
            changed_at=changed_at,
        )

    def _open(self, row: Credential) -> Secret:
        return self._secrets.open(row.sealed or "", *_context(row.project, row.sandbox, row.service))

    def _held(self, row: Credential) -> Held:
        return Held(row, self.services.find(row.service))

    def _project(self, who: Principal, project: str | None) -> str:
        wanted = who.project if project is None else project
        if not may_see(who, wanted) or self._store.projects.get(wanted) is None:
            raise NotFound("no such project", field="project")
        return wanted

    def _require_shared(self, project: str, service: str) -> None:
        if self._store.credentials.get(PROJECT, project, service) is None:
            raise NotFound(f"the project keeps no key for {service}: give one", field="credentials")

    def _require_network(self) -> None:
        missing = self._missing()
        if missing:
            raise Unsupported(f"this server cannot connect sandboxes: {'; '.join(missing)}", field="credentials")

    def _changed_for_all(self, service: str, project: str) -> None:
        for sandbox_id in self._store.credentials.users(service):
            sandbox = self._directory.by_id(sandbox_id)
            if sandbox is not None and sandbox.project == project:
                self.on_change(sandbox_id, service)

    async def _note(self, who: Principal, row: Credential, action: str) -> None:
        """Write it down, before the answer."""
        ticket = self._audit.note(
            "credential.changed",
            project=row.project,
            sandbox=row.sandbox or None,
            data=_told(row, action),
            who=who,
        )
        await self._audit.kept(ticket)


def _told(row: Credential, action: str) -> dict[str, AuditValue]:
    return {
        "service": row.service,
        "action": action,
        "rules": len(row.endpoints),
        "key": "project" if row.sealed is None else "own",
    }


def _context(project: str, sandbox: str, service: str) -> tuple[str, ...]:
    """What a sealed key is bound to: moved to another row it does not open."""
    return ("credential", project, sandbox, service)


def _with_way(sandbox: Sandbox, *, is_open: bool) -> Sandbox:
    if sandbox.network.broker is is_open:
        return sandbox
    return replace(sandbox, network=replace(sandbox.network, broker=is_open))


def _check_key(key: Secret) -> None:
    """Raises: BadRequest, without a word of the key."""
    if _KEY.fullmatch(key.reveal()) is None:
        raise BadRequest(
            f"a key is 1-{KEY_LIMIT} visible ASCII characters, blanks only inside: no line break", field="key"
        )


def _check_rules(rules: Sequence[EndpointRule]) -> None:
    if len(rules) > RULES:
        raise TooLarge(f"a credential has at most {RULES} rules", field="endpoints")
    for rule in rules:
        if len(rule.methods) > WORDS or len(rule.paths) > WORDS:
            raise TooLarge(f"a rule has at most {WORDS} methods and {WORDS} paths", field="endpoints")
        try:
            check_rule(rule)
        except ValueError as error:
            raise BadRequest(str(error), field="endpoints") from None
