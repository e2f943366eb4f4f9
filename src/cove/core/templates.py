"""Templates: names for snapshots that sandboxes are made of, with copies kept ready.

A copy that is ready has its programs started and its imports done: it is claimed, not started. It stands still, has no
network, belongs to nobody yet and is billed to nobody; what it takes of the machine's memory is the operator's to give,
so only an operator's key sets how many there are.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from cove.core.access import require
from cove.core.audit import Audit
from cove.core.snapshots import Snapshots
from cove.core.validation import check_count, check_name
from cove.engine.clock import Clock
from cove.engine.driver import BoxImage, Driver
from cove.engine.pool import Pool, PoolTarget
from cove.model.access import Principal, Scope
from cove.model.audit import AuditValue
from cove.model.errors import CapacityExceeded, Conflict, CoveError, NotFound, Unsupported
from cove.model.request import Idempotency
from cove.model.sandbox import Sandbox
from cove.model.snapshot import RestoreSpec, Snapshot, SnapshotState
from cove.model.template import Template, TemplateState
from cove.store.templates import TemplateRows

log = logging.getLogger(__name__)

TEMPLATES: Final = 1000
"""Most templates of a project."""


class TemplateSpec(Struct, frozen=True, kw_only=True):
    """What a template shall be. `snapshot`: an id or a name, UNSET: as it is; `ready` likewise."""

    snapshot: str | UnsetType = UNSET
    ready: int | UnsetType = UNSET


class Templates:
    """Every operation on templates. `known`: a snapshot by its id, for the server's own work."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        rows: TemplateRows,
        snapshots: Snapshots,
        *,
        known: Callable[[str], Snapshot | None],
        image_of: Callable[[Snapshot], BoxImage],
        drivers: Mapping[str, Driver],
        pool: Pool,
        audit: Audit,
        clock: Clock,
        most_ready: int,
    ) -> None:
        self._rows = rows
        self._snapshots = snapshots
        self._known = known
        self._image_of = image_of
        self._drivers = drivers
        self._pool = pool
        self._audit = audit
        self._clock = clock
        self._most_ready = most_ready
        self._kept: dict[str, PoolTarget] = {}
        self._reasons: dict[str, str] = {}

    def list(self, who: Principal) -> list[TemplateState]:
        """The project's, by name. Raises: Forbidden."""
        require(who, Scope.READ)
        return [self._state(one) for one in self._rows.of_project(who.project)]

    def get(self, who: Principal, name: str) -> TemplateState:
        """One. Raises: Forbidden, NotFound."""
        require(who, Scope.READ)
        return self._state(self._row(who, name))

    async def set(self, who: Principal, name: str, spec: TemplateSpec) -> TemplateState:
        """Make or change one; what is ready of another snapshot ends.

        Raises: Forbidden, BadRequest, NotFound (snapshot), Conflict (it is not ready), CapacityExceeded.
        """
        require(who, Scope.ADMIN)
        check_name(name, "name")
        before = self._rows.get(who.project, name)
        if before is None and spec.snapshot is UNSET:
            raise NotFound("no such template; to make it, name a snapshot", field="snapshot")
        if before is None and len(self._rows.of_project(who.project)) >= TEMPLATES:
            raise CapacityExceeded(f"the project has {TEMPLATES} templates, the limit")
        template = self._wanted(who, name, before, spec)
        await self._rows.save(template)
        await self._settle({template.snapshot, template.snapshot if before is None else before.snapshot})
        await self._note(who, template, "set")
        return self._state(template)

    async def remove(self, who: Principal, name: str) -> None:
        """Forget one; what is ready of it ends, what was made of it goes on. Raises: Forbidden, NotFound."""
        require(who, Scope.ADMIN)
        template = self._row(who, name)
        await self._rows.remove(template.project, template.name)
        await self._settle({template.snapshot})
        await self._note(who, template, "removed")

    async def create(
        self,
        who: Principal,
        name: str,
        spec: RestoreSpec,
        *,
        dialect: str = "native",
        idempotency: Idempotency | None = None,
    ) -> Sandbox:
        """A sandbox made of the template's snapshot, claimed if a copy is ready. Raises: as `Snapshots.restore`."""
        require(who, Scope.CREATE)
        template = self._row(who, name)
        return await self._snapshots.restore(who, template.snapshot, spec, dialect=dialect, idempotency=idempotency)

    def users_of(self, snapshot: Snapshot) -> builtins.list[str]:
        """What keeps a snapshot from being deleted, in words."""
        return [f"template {one.name}" for one in self._rows.of_snapshot(snapshot.id)]

    async def start(self) -> None:
        """Keep ready what was kept before the start. Never fails: a template says why it has no copies."""
        await self._settle({one.snapshot for one in self._rows.all()})

    def _wanted(self, who: Principal, name: str, before: Template | None, spec: TemplateSpec) -> Template:
        snapshot_id = "" if before is None else before.snapshot
        if spec.snapshot is not UNSET:
            snapshot = self._snapshots.get(who, spec.snapshot)
            if snapshot.state is not SnapshotState.READY:
                raise Conflict(f"the snapshot is {snapshot.state.value}", field="snapshot")
            snapshot_id = snapshot.id
        ready = 0 if before is None else before.ready
        if spec.ready is not UNSET:
            check_count(spec.ready, (0, self._most_ready), "ready")
            ready = spec.ready
        others = sum(one.ready for one in self._rows.all() if (one.project, one.name) != (who.project, name))
        if ready and others + ready > self._most_ready:
            raise CapacityExceeded(
                f"this server keeps at most {self._most_ready} copies of templates ready, {others} are spoken for"
            )
        created_at = self._clock.now() if before is None else before.created_at
        created_by = before.created_by if before is not None else f"key:{who.name}"
        return Template(
            project=who.project, name=name, snapshot=snapshot_id, ready=ready, created_at=created_at,
            created_by=created_by,
        )  # fmt: skip

    async def _settle(self, snapshot_ids: Collection[str]) -> None:
        """Have the pool keep what the rows say of these snapshots: all templates of one share its copies."""
        for snapshot_id in snapshot_ids:
            size = sum(one.ready for one in self._rows.of_snapshot(snapshot_id))
            old = self._kept.pop(snapshot_id, None)
            self._reasons.pop(snapshot_id, None)
            target = await self._target(snapshot_id, size) if size else None
            if target is not None:
                self._kept[snapshot_id] = target
                self._pool.keep(target)
            elif old is not None:
                self._pool.forget(old)

    async def _target(self, snapshot_id: str, size: int) -> PoolTarget | None:
        try:
            snapshot = self._usable(snapshot_id)
            driver, image = self._drivers.get(snapshot.driver), self._image_of(snapshot)
            if driver is None:
                raise Unsupported(f"the driver {snapshot.driver} is not loaded")
            origin = await self._snapshots.book.checkpoint(snapshot, with_memory=True)
            if gaps := driver.origin_gaps(origin):
                raise Unsupported(gaps[0])
        except CoveError as error:
            log.warning("no copies of snapshot %s can be kept ready: %s %s", snapshot_id, error, error.internal)
            self._reasons[snapshot_id] = error.public
            return None
        return PoolTarget(image=image.name, driver=snapshot.driver, size=size, origin=origin, base=image)

    def _usable(self, snapshot_id: str) -> Snapshot:
        """Raises: Conflict with why copies of it cannot be kept ready."""
        snapshot = self._known(snapshot_id)
        if snapshot is None:
            raise Conflict("its snapshot is not here any more")
        if not snapshot.kept.memory:
            raise Conflict("its snapshot has no memory: sandboxes of it are made when they are asked for")
        return snapshot

    def _state(self, template: Template) -> TemplateState:
        snapshot = self._known(template.snapshot)
        shelves = [one for one in self._pool.stats() if one.origin == template.snapshot]
        return TemplateState(
            template=template,
            snapshot_name="" if snapshot is None else snapshot.name,
            ready_now=sum(one.ready for one in shelves),
            claimed=sum(one.hits for one in shelves),
            missed=sum(one.misses for one in shelves),
            reason=self._reasons.get(template.snapshot) if template.ready else None,
        )

    def _row(self, who: Principal, name: str) -> Template:
        found = self._rows.get(who.project, name)
        if found is None:
            raise NotFound("no such template")
        return found

    async def _note(self, who: Principal, template: Template, change: str) -> None:
        data: dict[str, AuditValue] = {
            "template": template.name,
            "snapshot": template.snapshot,
            "ready": template.ready,
            "change": change,
        }
        ticket = self._audit.note("template.changed", project=who.project, sandbox=None, data=data, who=who)
        await self._audit.kept(ticket)
