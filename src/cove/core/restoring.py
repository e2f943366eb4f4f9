"""From a checkpoint and what a caller asks to orders for sandboxes: what is kept, which limits and policy they get.

Of a snapshot, of a sandbox that is forked, and for templates. Making them is `creation.py`, as of any other sandbox.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from msgspec import UnsetType
from msgspec.structs import replace

from cove.core.audit import Audit
from cove.core.creation import Brood, Creation, Heritage, Order
from cove.core.directory import Directory
from cove.core.images import Images, Resolved
from cove.core.jobs import Jobs
from cove.core.networks import Networks
from cove.core.quotas import Quotas
from cove.core.validation import check_spec
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts
from cove.engine.clock import Clock
from cove.engine.driver import BoxImage, Driver
from cove.engine.keeping import NOT_ASKED
from cove.engine.ports import Checkpoints
from cove.engine.supervisors import Supervisors
from cove.model.access import Principal
from cove.model.audit import AuditValue
from cove.model.errors import BadRequest, Conflict, NotFound, Unsupported
from cove.model.network import NO_NETWORK, NetworkPolicy
from cove.model.request import Idempotency
from cove.model.sandbox import MIB, Kept, Limits, Lineage, Sandbox, SandboxSpec
from cove.model.snapshot import RestoreSpec, Snapshot, SnapshotState
from cove.store.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateParts:
    """What snapshots, restores and forks stand on. Made once, by the facade."""

    creation: Creation
    drivers: Mapping[str, Driver]
    directory: Directory
    supervisors: Supervisors
    images: Images
    networks: Networks
    quotas: Quotas
    checkpoints: Checkpoints
    audit: Audit
    store: Store
    clock: Clock
    jobs: Jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One request for sandboxes that are made of what another was. `past`: that one, as a snapshot would have it.

    `snapshot`: the id of the snapshot, None: it is a fork.
    """

    who: Principal
    past: Snapshot
    spec: RestoreSpec
    snapshot: str | None
    dialect: str
    idempotency: Idempotency | None
    asked_at: float


class Restoring:
    """Turns wishes into orders."""

    def __init__(self, parts: StateParts) -> None:
        self._parts = parts
        self._creation = parts.creation

    def wish(  # noqa: PLR0913 - what a request says
        self,
        who: Principal,
        past: Snapshot,
        spec: RestoreSpec,
        *,
        snapshot: str | None,
        dialect: str,
        idempotency: Idempotency | None,
    ) -> Wish:
        """As the request came in; the sandbox lives in the project of what it is made of, whoever asks."""
        return Wish(
            who=replace(who, project=past.project),
            past=past,
            spec=spec,
            snapshot=snapshot,
            dialect=dialect,
            idempotency=self._creation.blinded(spec.credentials, idempotency),
            asked_at=self._parts.clock.monotonic(),
        )

    def check(self, wish: Wish, count: int = 1) -> None:
        """What can be refused before anything is made.

        Raises: BadRequest, Unsupported, QuotaExceeded, CapacityExceeded.
        """
        self._driver(wish.past)
        order = self._order(wish, None)
        check_spec(order.spec)
        self._creation.check_room(order, count)

    async def order(self, wish: Wish, checkpoint: Checkpoint, brood: Brood | None = None) -> Order:
        """What to launch, on `image`, without an await in between.

        Raises: BadRequest, TooLarge, Conflict, Unsupported (field `memory`: it cannot be kept; its driver is not here).
        """
        past, spec = wish.past, wish.spec
        kept = self.kept(past, checkpoint, spec.memory)
        check_needs(limits_of(past.limits, spec), checkpoint.facts, with_memory=kept.memory)
        donor = self._donor(wish) if spec.inherit_credentials else None
        if spec.network is None:
            network = await self._parts.networks.renew(past.project, past.network)
        else:
            network = await self._parts.networks.resolve(past.project, spec.network)
        await self._parts.quotas.prepare(past.project, wish.who.key_id)
        lineage = Lineage(snapshot=wish.snapshot, sandbox=past.sandbox, kept=kept)
        heritage = Heritage(checkpoint=checkpoint, lineage=lineage, donor=donor, brood=brood)
        return self._order(wish, heritage, network)

    def image(self, past: Snapshot) -> Resolved:
        """The very image that it ran on. Raises: NotFound (field `image`)."""
        return Resolved(image=self.image_of(past))

    def image_of(self, past: Snapshot) -> BoxImage:
        """As a driver needs it. Raises: NotFound (field `image`)."""
        try:
            return self._parts.images.version(past.project, past.image_used, past.image_digest)
        except NotFound as error:
            raise NotFound(
                f"the image under it is not here any more: {past.image_used} with the content {past.image_digest[:12]}",
                field="image",
            ) from error

    def kept(self, past: Snapshot, checkpoint: Checkpoint, wanted: bool | None) -> Kept:  # noqa: FBT001 - three words
        """Whether the memory comes along, and why not. Raises: Unsupported (field `memory`), where it must."""
        if wanted is False:
            return Kept(memory=False, reason=NOT_ASKED)
        if checkpoint.facts.has_memory:
            gaps = self._driver(past).origin_gaps(checkpoint)
            reason = gaps[0] if gaps else None
        else:
            reason = checkpoint.facts.why_no_memory or "its memory was not kept"
        if reason is None:
            return Kept(memory=True)
        if wanted:
            raise Unsupported(f"its memory cannot be brought back: {reason}", field="memory")
        return Kept(memory=False, reason=reason)

    def _driver(self, past: Snapshot) -> Driver:
        driver = self._parts.drivers.get(past.driver)
        if driver is None:
            # Never another one in silence: it would be another isolation than the source had.
            raise Unsupported(f"it is of a sandbox on {past.driver}, which this machine cannot use now", field="driver")
        return driver

    def _donor(self, wish: Wish) -> Sandbox | None:
        """Raises: Conflict: there is none any more."""
        donor = self._parts.directory.by_id(wish.past.sandbox)
        if donor is None or donor.project != wish.past.project or wish.past.is_imported:
            raise Conflict(
                "the sandbox whose credentials are asked for has ended, and they with it: give them anew",
                field="inherit_credentials",
            )
        return donor if self._creation.has_credentials(donor) else None

    def _order(self, wish: Wish, heritage: Heritage | None, network: NetworkPolicy = NO_NETWORK) -> Order:
        past, spec = wish.past, wish.spec
        metadata = _or(spec.metadata, past.metadata)
        sandbox = SandboxSpec(
            image=past.image,
            driver=past.driver,
            limits=limits_of(past.limits, spec),
            env=spec.env,
            name=spec.name,
            metadata=metadata,
            timeout_s=_or(spec.timeout_s, None),
            idle_timeout_s=_or(spec.idle_timeout_s, past.idle_timeout_s),
            idle_action=_or(spec.idle_action, past.idle_action),
            auto_resume=_or(spec.auto_resume, past.auto_resume),
            timeout_counts=_or(spec.timeout_counts, past.timeout_counts),
            network=spec.network,
            credentials=spec.credentials,
            placeholder=spec.placeholder,
        )
        return Order(
            who=wish.who,
            spec=sandbox,
            dialect=wish.dialect,
            idempotency=wish.idempotency,
            asked_at=wish.asked_at,
            network=network,
            heritage=heritage,
        )


def past_of(sandbox: Sandbox) -> Snapshot:
    """What a snapshot of a sandbox says of it; the rest is the snapshot's own."""
    return Snapshot(
        id=sandbox.id,
        project=sandbox.project,
        name=sandbox.name,
        state=SnapshotState.CREATING,
        tags={},
        sandbox=sandbox.id,
        sandbox_name=sandbox.name,
        parent=sandbox.rolled_back_to or (None if sandbox.came_from is None else sandbox.came_from.snapshot),
        kept=Kept(memory=False),
        driver=sandbox.driver,
        image=sandbox.image,
        image_used=sandbox.image_used or sandbox.image,
        image_digest=sandbox.image_digest,
        limits=sandbox.limits,
        network=replace(sandbox.network, broker=False),
        metadata=sandbox.metadata,
        idle_timeout_s=sandbox.idle_timeout_s,
        idle_action=sandbox.idle_action,
        auto_resume=sandbox.auto_resume,
        timeout_counts=sandbox.timeout_counts,
        created_at=sandbox.created_at,
        created_by=sandbox.created_by,
    )


def limits_of(limits: Limits, spec: RestoreSpec) -> Limits:
    """Those of the source, with what is asked for."""
    return replace(
        limits,
        cpus=_or(spec.cpus, limits.cpus),
        memory_bytes=_or(spec.memory_bytes, limits.memory_bytes),
        disk_bytes=_or(spec.disk_bytes, limits.disk_bytes),
        pids=_or(spec.pids, limits.pids),
    )


def facts_of(snapshot: Snapshot) -> dict[str, AuditValue]:
    """What lines of the audit trail say of one."""
    return {
        "snapshot": snapshot.id,
        "name": snapshot.name,
        "size_bytes": snapshot.memory_bytes + snapshot.disk_bytes,
    }


def check_needs(limits: Limits, facts: CheckpointFacts, *, with_memory: bool) -> None:
    """Whether what comes along fits into the limits. Raises: BadRequest, naming the limit.

    The source's own limits always do: beside them a box has some room of its own (for its agent), which may be in use.
    """
    had = facts.limits
    needs = [("disk_bytes", limits.disk_bytes, had.disk_bytes, facts.inherited_bytes, "its files take")]
    if with_memory:
        needs += [
            ("memory_bytes", limits.memory_bytes, had.memory_bytes, facts.memory_bytes, "its processes have"),
            ("pids", limits.pids, had.pids, facts.processes, "its processes are"),
        ]
    for field, limit, before, need, said in needs:
        if limit < min(before, need):
            told = str(need) if field == "pids" else f"{-(-need // MIB)} MiB"
            raise BadRequest(f"{field} is less than what comes along: {said} {told}", field=field)


def scoped(idempotency: Idempotency | None, *what: str) -> Idempotency | None:
    """The promise of one kind of request on one object: another with the same key and body is another request."""
    if idempotency is None:
        return None
    text = "\0".join((*what, idempotency.body_sha256))
    return replace(idempotency, body_sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def _or(value: T | UnsetType, otherwise: T) -> T:
    return otherwise if isinstance(value, UnsetType) else value
