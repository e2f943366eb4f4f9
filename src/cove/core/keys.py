"""Keys and projects: minting, looking up, revoking. A key's text is seen here only, for the time of one call.

The store has the SHA-256 of each key. That is enough: keys are 256 random bits, which no dictionary holds. A look-up
goes through the index of digests and then compares in constant time, so timing tells nothing about a stored digest.
Nothing is cached: a revoked key stops at the next request.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import hmac
import logging
import math
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from cove.core.access import require
from cove.core.audit import Audit
from cove.core.keytexts import KeyTexts
from cove.core.quotas import Quotas
from cove.core.validation import check_label, check_name, check_timeout
from cove.engine.clock import Clock
from cove.model.access import DEFAULT_PROJECT, FULL, Key, Principal, Project, Scope
from cove.model.audit import SERVER_PROJECT, AuditValue
from cove.model.errors import BadRequest, Conflict, CoveError, Forbidden, NotFound, Unauthorized
from cove.model.keyform import REGION, KeyForm
from cove.model.quota import Quota
from cove.store.store import Store

log = logging.getLogger(__name__)

TOUCH_S: Final = 60.0
"""`last_used_at` is at most so old: a write per request would cost more than the request."""

ENDED_S: Final = 3600.0
"""How long a dialect's list has keys that work no more."""

KEY_LIMIT: Final = 1024
"""Longest key that is looked at."""


class Keys:
    """Every operation on keys."""

    def __init__(self, store: Store, clock: Clock, tasks: asyncio.TaskGroup, *, quotas: Quotas, audit: Audit) -> None:
        self._store = store
        self._quotas = quotas
        self._audit = audit
        self._clock = clock
        self._tasks = tasks
        self._texts = KeyTexts({}, REGION)
        self._given: set[str] = set()
        self._touched: dict[str, float] = {}

    async def open(self, forms: Mapping[str, KeyForm], region: str) -> None:
        """Before the first key is looked at: how the keys of dialects look, by name, and where this server is."""
        self._texts = KeyTexts(forms, region)
        await self._texts.open(self._store)
        known = self._store.keys.list(None)
        self._given = {key.digest for key in known if key.name == _bootstrap_name(key.digest)}

    def authenticate(self, plaintext: str) -> Principal:
        """Who presents this key. 10 µs on the loop. Raises: Unauthorized, also for revoked and expired keys."""
        plaintext = plaintext[:KEY_LIMIT]
        digest = _digest(plaintext)
        if self._texts.is_forged(plaintext) and digest not in self._given:
            self._refused(None, "unknown")
            raise Unauthorized("this key is not known here, or was revoked")
        key = self._store.keys.by_digest(digest)
        is_known = key is not None and hmac.compare_digest(key.digest, digest)
        if key is None or not is_known or key.revoked_at is not None:
            self._refused(key, "revoked" if is_known else "unknown")
            raise Unauthorized("this key is not known here, or was revoked")
        if key.expires_at is not None and key.expires_at <= self._clock.now():
            self._refused(key, "expired")
            raise Unauthorized("this key has expired")
        self._touch(key.id)
        return Principal(
            key_id=key.id,
            name=key.name,
            project=key.project,
            scopes=key.scopes,
            dialect=key.dialect,
            expires_at=key.expires_at,
        )

    async def mint(  # noqa: PLR0913 - what a key is, the optional parts by name
        self,
        who: Principal,
        name: str,
        project: str | None = None,
        scopes: Iterable[Scope] = (),
        *,
        dialect: str | None = None,
        timeout_s: float | None = None,
        quota: Quota | None = None,
        label: str = "",
    ) -> tuple[Key, str]:
        """A new key and its text, which is nowhere else and never shown again. No scopes: those of `who`.

        The text of a key that is limited to one dialect has that dialect's form. What it does counts for the key that
        made it, too (`quotas.py`).

        Nobody gives what they do not have. Raises: Forbidden, BadRequest, NotFound (project).
        """
        require(who, Scope.KEYS)
        self._audit.check()
        check_label(name, "name")
        check_timeout(timeout_s, "timeout_s")
        if label:
            check_label(label, "label")
        if dialect is not None:
            check_label(dialect, "dialect")
        wanted = frozenset(scopes) or who.scopes
        self._may_give(who, project or who.project, wanted)
        if not who.can(Scope.ADMIN) and who.dialect is not None:
            if dialect not in {None, who.dialect}:
                raise Forbidden("a key limited to one dialect cannot give another")
            dialect = who.dialect
        key_id = secrets.token_hex(4)
        plaintext = self._texts.make(dialect, key_id)
        now = self._clock.now()
        key = Key(
            id=key_id,
            name=name,
            project=project or who.project,
            dialect=dialect,
            scopes=wanted,
            digest=_digest(plaintext),
            created_at=now,
            expires_at=_expiry(who, now, timeout_s),
            revoked_at=None,
            last_used_at=None,
            label=label,
        )
        await self._quotas.add_key(who, key_id, quota)  # first: a key must not work before its limits hold
        await self._store.keys.add(key)
        scopes_text = " ".join(sorted(wanted))
        facts: dict[str, AuditValue] = {
            "key": key.id,
            "name": key.name,
            "scopes": scopes_text,
            "expires_at": key.expires_at,
        }
        await self._noted("key.created", who, key.project, facts)
        return key, plaintext

    def list(self, who: Principal) -> list[Key]:
        """The keys of the caller's project, for an admin of all; revoked ones too, oldest first. Raises: Forbidden."""
        require(who, Scope.KEYS)
        return self._store.keys.list(None if who.can(Scope.ADMIN) else who.project)

    def for_dialect(self, who: Principal, dialect: str) -> builtins.list[Key]:
        """The keys of the caller's own project that work in one dialect only, oldest first. Raises: Forbidden.

        One that has been revoked or has expired is told of for an hour.
        """
        require(who, Scope.KEYS)
        since = self._clock.now() - ENDED_S
        found = [one for one in self._store.keys.list(who.project) if one.dialect == dialect]
        return [one for one in found if min(one.revoked_at or math.inf, one.expires_at or math.inf) > since]

    async def revoke(self, who: Principal, key_id: str) -> None:
        """End a key at once; ended already: nothing. Raises: Forbidden, NotFound."""
        require(who, Scope.KEYS)
        key = self._store.keys.by_id(key_id)
        if key is None or (key.project != who.project and not who.can(Scope.ADMIN)):
            raise NotFound("no such key")
        if not who.can(Scope.ADMIN) and not key.scopes <= who.scopes:
            raise Forbidden("that key has scopes which this one lacks")
        await self._store.keys.revoke(key.id, at=self._clock.now())
        await self._noted("key.revoked", who, key.project, {"key": key.id, "name": key.name})

    async def bootstrap(self, plaintexts: Iterable[str]) -> int:
        """Accept keys of any form as full-rights keys of the default project; known ones stay as they are.

        Returns how many were new. A revoked one stays revoked.
        """
        added = 0
        for plaintext in plaintexts:
            if not plaintext or len(plaintext) > KEY_LIMIT:
                raise BadRequest(f"a bootstrap key has 1-{KEY_LIMIT} characters")
            digest = _digest(plaintext)
            key = Key(
                id=digest[:8],
                name=_bootstrap_name(digest),
                project=DEFAULT_PROJECT,
                dialect=None,
                scopes=FULL,
                digest=digest,
                created_at=self._clock.now(),
                expires_at=None,
                revoked_at=None,
                last_used_at=None,
            )
            added += await self._store.keys.add(key)
            self._given.add(digest)
        return added

    def _may_give(self, who: Principal, project: str, scopes: frozenset[Scope]) -> None:
        if who.can(Scope.ADMIN):
            if self._store.projects.get(project) is None:
                raise NotFound("no such project", field="project")
            return
        if project != who.project:
            raise NotFound("no such project", field="project")
        if not scopes <= who.scopes:
            raise Forbidden("a key cannot give scopes that it lacks")

    async def _noted(self, event: str, who: Principal, project: str, data: Mapping[str, AuditValue]) -> None:
        await self._audit.kept(self._audit.note(event, project=project, sandbox=None, data=data, who=who))

    def _refused(self, key: Key | None, why: str) -> None:
        """Somebody tried a key that opens nothing. Of one that nobody knows, not even a part is told."""
        data = {"why": why} if key is None else {"why": why, "key": key.id, "name": key.name}
        self._audit.note("key.refused", project=SERVER_PROJECT if key is None else key.project, sandbox=None, data=data)

    def _touch(self, key_id: str) -> None:
        now = self._clock.monotonic()
        if now - self._touched.get(key_id, float("-inf")) >= TOUCH_S:
            self._touched[key_id] = now
            self._tasks.create_task(self._note_use(key_id))

    async def _note_use(self, key_id: str) -> None:
        try:
            await self._store.keys.touch(key_id, at=self._clock.now())
        except CoveError as error:
            log.warning("the use of key %s was not noted: %s %s", key_id, error, error.internal)


class Projects:
    """Every operation on projects."""

    def __init__(self, store: Store, clock: Clock, audit: Audit, drivers: Collection[str] = ()) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._drivers = drivers

    async def create(
        self, who: Principal, project_id: str, *, default_driver: str | None = None, drivers: tuple[str, ...] = ()
    ) -> Project:
        """A new project. `drivers`: what its sandboxes may use, empty: any. Raises: Forbidden, BadRequest, Conflict."""
        require(who, Scope.ADMIN)
        check_name(project_id, "id")
        project = Project(
            id=project_id, created_at=self._clock.now(), default_driver=default_driver, drivers=tuple(drivers)
        )
        self._check_drivers(project)
        if self._store.projects.get(project_id) is not None:
            raise Conflict(f"a project {project_id} exists", field="id")
        await self._store.projects.add(project)
        await self._noted("project.created", who, project)
        return project

    async def update(
        self,
        who: Principal,
        project_id: str,
        *,
        default_driver: str | UnsetType | None = UNSET,
        drivers: tuple[str, ...] | UnsetType = UNSET,
    ) -> Project:
        """Change its drivers, for sandboxes made from now on. Raises: Forbidden, NotFound, BadRequest."""
        require(who, Scope.ADMIN)
        project = self._store.projects.get(project_id)
        if project is None:
            raise NotFound("no such project", field="id")
        if default_driver is not UNSET:
            project = replace(project, default_driver=default_driver)
        if drivers is not UNSET:
            project = replace(project, drivers=tuple(drivers))
        self._check_drivers(project)
        await self._store.projects.change(project)
        await self._noted("project.changed", who, project)
        return project

    async def _noted(self, event: str, who: Principal, project: Project) -> None:
        data = {"drivers": " ".join(project.drivers), "default_driver": project.default_driver}
        await self._audit.kept(self._audit.note(event, project=project.id, sandbox=None, data=data, who=who))

    def _check_drivers(self, project: Project) -> None:
        """Names that this server knows: whether they can be used here is told at each create."""
        for field, names in (("drivers", project.drivers), ("default_driver", (project.default_driver,))):
            for name in names:
                if name is not None and name not in self._drivers:
                    raise BadRequest(f"no such driver; known are {', '.join(sorted(self._drivers))}", field=field)
        if project.default_driver is not None and project.drivers and project.default_driver not in project.drivers:
            raise BadRequest("the default driver must be one of the project's drivers", field="default_driver")

    def list(self, who: Principal) -> list[Project]:
        """All projects, oldest first. Raises: Forbidden."""
        require(who, Scope.ADMIN)
        return self._store.projects.list()

    async def ensure_default(self) -> None:
        """The project that is always there."""
        await self._store.projects.ensure(Project(id=DEFAULT_PROJECT, created_at=self._clock.now()))


def _bootstrap_name(digest: str) -> str:
    return f"bootstrap-{digest[:8]}"


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode(errors="surrogateescape")).hexdigest()


def _expiry(who: Principal, now: float, timeout_s: float | None) -> float | None:
    """When a new key ends: as asked, and not after its maker's own, unless that is an admin's."""
    wanted = None if timeout_s is None else now + timeout_s
    if who.can(Scope.ADMIN) or who.expires_at is None:
        return wanted
    return who.expires_at if wanted is None else min(wanted, who.expires_at)
