"""What a create decides: the image, the driver, room, the name, a warm box or none. Making it is the engine's work.

`launch` is synchronous as a whole, so whatever it checked still holds when the sandbox exists, and two requests can
neither take one last place nor make two sandboxes for one idempotency key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_order
from typing import Final

from msgspec.structs import replace

from cove.core.admission import Admission
from cove.core.credentials import Credentials
from cove.core.directory import Directory
from cove.core.images import Resolved
from cove.core.placement import Placement
from cove.core.quotas import Quotas
from cove.core.validation import check_idempotency, check_spec
from cove.engine.birth import Birth
from cove.engine.checkpoints.model import Checkpoint
from cove.engine.clock import Clock
from cove.engine.driver import Box, BoxImage, Driver
from cove.engine.pool import Pool
from cove.engine.ports import Journal
from cove.engine.supervisor import Supervisor
from cove.engine.supervisors import Supervisors
from cove.model.access import Principal
from cove.model.credentials import CredentialWish
from cove.model.errors import BadRequest, Conflict, IdempotencyConflict, Unsupported
from cove.model.ids import new_core_id
from cove.model.network import NO_NETWORK, OPEN_NETWORK, NetworkPolicy
from cove.model.policy import PATTERN
from cove.model.request import Idempotency
from cove.model.sandbox import Lineage, Sandbox, SandboxSpec, Source, TimeoutCounts
from cove.model.spans import span
from cove.model.state import EndReason, State
from cove.store.store import Store

IDEMPOTENCY_S: Final = 24 * 3600.0
"""How long a key is remembered."""

PROXY_URL: Final = "http://169.254.1.1:3128"
"""The explicit proxy, as every connected sandbox reaches it."""


class Brood:
    """The children of one fork: a few are made at a time, and none any more once one has failed."""

    def __init__(self, at_once: int) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self.doom = Conflict("another child of this fork failed")
        self.is_doomed = False

    async def wait_turn(self) -> None:
        """Until there is a place, which `over` gives back. Raises: Conflict (`doom`)."""
        await self._slots.acquire()
        if self.is_doomed:
            raise self.doom

    def over(self, child: Sandbox) -> None:
        """One is made, or has failed."""
        self.is_doomed = self.is_doomed or child.source is None
        self._slots.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heritage:
    """What a sandbox is made of, where that is not its image alone. `donor`: whose credentials it gets, too."""

    checkpoint: Checkpoint
    lineage: Lineage
    donor: Sandbox | None = None
    brood: Brood | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request for a sandbox. `asked_at` is its monotonic moment, `network` what came of `spec.network`.

    `id`: the one that it is to get; None: any. `purpose`: of the boxes that wait, those for it are taken first.
    """

    who: Principal
    spec: SandboxSpec
    dialect: str
    idempotency: Idempotency | None
    asked_at: float
    network: NetworkPolicy = NO_NETWORK
    heritage: Heritage | None = None
    id: str | None = None
    purpose: str = ""


class Creation:
    """Turns orders into supervisors."""

    def __init__(  # noqa: PLR0913 - made once, by the facade: this is where the core's parts meet
        self,
        *,
        placement: Placement,
        pool: Pool,
        supervisors: Supervisors,
        directory: Directory,
        admission: Admission,
        quotas: Quotas,
        journal: Journal,
        credentials: Credentials,
        store: Store,
        clock: Clock,
    ) -> None:
        self._placement = placement
        self._pool = pool
        self._supervisors = supervisors
        self._directory = directory
        self._admission = admission
        self._quotas = quotas
        self._journal = journal
        self._credentials = credentials
        self._store = store
        self._clock = clock
        self._creating: dict[tuple[str, str], tuple[str, Supervisor]] = {}
        self.counts = {Source.WARM: 0, Source.COLD: 0}
        self.failed = 0
        self.timeout_counts = TimeoutCounts.ALWAYS
        self.on_started: Callable[[Sandbox], None] = lambda _: None

    def find_earlier(self, order: Order) -> Supervisor | Sandbox | None:
        """What an earlier request with this idempotency key made. Raises: BadRequest, IdempotencyConflict."""
        check_spec(order.spec)
        return self.earlier(order.who.project, order.idempotency)

    def earlier(self, project: str, idempotency: Idempotency | None) -> Supervisor | Sandbox | None:
        """What an earlier request of this key made. One that failed counts as none: the caller may try again.

        Raises: BadRequest, IdempotencyConflict.
        """
        if idempotency is None:
            return None
        check_idempotency(idempotency)
        creating = self._creating.get((project, idempotency.key))
        if creating is not None:
            must_equal(creating[0], idempotency)
            return creating[1]
        since = self._clock.now() - IDEMPOTENCY_S
        row = self._store.idempotency.get(project, idempotency.key, since=since)
        sandbox = None if row is None else self._store.sandboxes.get(row.made[0])
        if row is None or (sandbox and self._directory.newest(sandbox).end_reason is EndReason.CREATE_FAILED):
            return None
        must_equal(row.body_sha256, idempotency)
        return None if sandbox is None else self._supervisors.get(sandbox.id) or sandbox

    def blinded(self, wishes: Mapping[str, CredentialWish], idempotency: Idempotency | None) -> Idempotency | None:
        """As given, but where the request has keys in it the store gets no hash to try guesses on."""
        if idempotency is None or not wishes:
            return idempotency
        return replace(idempotency, body_sha256=self._credentials.blinded(idempotency.body_sha256))

    def launch(self, order: Order, resolved: Resolved) -> Supervisor | Sandbox:
        """Start a sandbox on an image, or find the one that an earlier request with this idempotency key made.

        Raises: BadRequest, Forbidden (driver), Conflict (name), IdempotencyConflict, QuotaExceeded, CapacityExceeded,
        Unsupported (network).
        """
        earlier = self.find_earlier(order)
        return self.launch_all((order,), resolved)[0] if earlier is None else earlier

    def launch_all(self, orders: Sequence[Order], resolved: Resolved) -> list[Supervisor]:
        """Start sandboxes that differ in id and name alone: all, or none where there is no room for all.

        Raises: as `launch`.
        """
        first, image = orders[0], resolved.image
        who, spec = first.who, first.spec
        for order in orders:
            check_spec(order.spec)
        driver = self._placement.choose(self._store.projects.get(who.project), spec.driver, image)
        if spec.run_entrypoint and not image.entrypoint + image.command:
            raise BadRequest("this image names no program to run", field="run_entrypoint")
        plan = self._credentials.plan(who.project, spec.credentials, spec.placeholder)
        orders = [_connectable(order, driver) for order in orders]
        first = orders[0]
        for order in orders:
            if order.spec.name is not None:
                self._directory.check_free(who.project, order.spec.name)
        _check_network(_network(first), driver)
        self.check_room(first, len(orders))
        return [self._start(order, resolved, driver, plan.env) for order in orders]

    def check_room(self, order: Order, count: int = 1) -> None:
        """Whether `count` such sandboxes fit now. Raises: QuotaExceeded, CapacityExceeded."""
        limits = order.spec.limits
        self._quotas.check(order.who.project, order.who.key_id, limits, count)
        self._admission.check(limits, count, at_once=_taken_at_once(order.heritage))

    def has_credentials(self, sandbox: Sandbox) -> bool:
        """Whether it has any that another one could get, too."""
        return bool(self._store.credentials.of_sandbox(sandbox.id, sandbox.project))

    async def outcome(self, made: Supervisor | Sandbox, *, is_kept: bool) -> Sandbox:
        """What came of a launch, once it runs. Cancelling ends it unless `is_kept`.

        Raises: what its creation raised.
        """
        if isinstance(made, Sandbox):
            return self._directory.newest(made)
        try:
            with span("sandbox.start"):
                return await made.wait_started()
        except asyncio.CancelledError:
            if not is_kept:
                made.end_soon(EndReason.REQUESTED, "its creator went away before it was ready")
            raise

    def _start(self, order: Order, resolved: Resolved, driver: Driver, placeholders: dict[str, str]) -> Supervisor:
        """All was checked; what is held here is held until its end."""
        image = resolved.image
        name = order.spec.name or self._directory.free_name(order.who.project)
        box = None if order.id else self._warm(order, name, image, driver)
        sandbox_id = order.id or (new_core_id() if box is None else box.facts.id)
        sandbox = replace(
            _pending(order, sandbox_id=sandbox_id, name=name, driver=driver.name, now=self._clock.now()),
            image_used=image.name,
            image_digest=image.digest,
            image_note=resolved.note,
            timeout_counts=order.spec.timeout_counts or self.timeout_counts,
        )
        self._admission.admit(sandbox.id, sandbox.limits)
        self._quotas.hold(sandbox)
        self._directory.hold_name(sandbox.project, sandbox.name, sandbox.id)
        supervisor = self._supervisors.launch(sandbox, self._birth(order, name, image, driver, box, placeholders))
        self._follow(order, supervisor)
        return supervisor

    def _warm(self, order: Order, name: str, image: BoxImage, driver: Driver) -> Box | None:
        """A box that is ready: a fresh one, or a copy of the very checkpoint that a template keeps ready."""
        limits, connected = order.spec.limits, _network(order).is_connected
        heritage = order.heritage
        if heritage is None:
            hostname = order.spec.hostname
            for purpose in dict.fromkeys((order.purpose, "")):
                box = self._pool.take(image, driver.name, limits, hostname, connected=connected, origin=purpose)
                if box is not None:
                    return box
            return None
        if not heritage.lineage.kept.memory:
            return None
        origin = heritage.checkpoint.id
        return self._pool.take(image, driver.name, limits, name, connected=connected, origin=origin)

    def _birth(  # noqa: PLR0913, PLR0917 - what it is made of
        self,
        order: Order,
        name: str,
        image: BoxImage,
        driver: Driver,
        box: Box | None,
        placeholders: dict[str, str],
    ) -> Birth:
        heritage = order.heritage
        # A copy must not have its source's name: nobody asked for one, so it gets its own.
        hostname = order.spec.hostname if heritage is None else name
        return Birth(
            image=image,
            driver=driver,
            env={**proxy_env(order.network), **placeholders, **order.spec.env},
            hostname=hostname,
            box=box,
            run_entrypoint=order.spec.run_entrypoint,
            asked_at=order.asked_at,
            intent=self._intent(order),
            origin=None if heritage is None else heritage.checkpoint,
            with_memory=heritage is not None and heritage.lineage.kept.memory,
        )

    def _intent(self, order: Order) -> Callable[[Sandbox], Awaitable[None]]:
        """How the pending record is written: in one transaction with the key that asked for it and its credentials."""
        brood = None if order.heritage is None else order.heritage.brood
        write = self._writing(order)
        if brood is None:
            return write

        async def in_turn(sandbox: Sandbox) -> None:
            await brood.wait_turn()
            await write(sandbox)

        return in_turn

    def _writing(self, order: Order) -> Callable[[Sandbox], Awaitable[None]]:
        idempotency, wishes = order.idempotency, order.spec.credentials
        donor = None if order.heritage is None else order.heritage.donor
        if wishes or donor is not None:

            async def with_credentials(sandbox: Sandbox) -> None:
                rows = self._credentials.rows(sandbox, wishes, donor)
                await self._store.credentials.save_with(sandbox, rows, idempotency)
                self._credentials.note_inherited([row for row in rows if row.service not in wishes])

            return with_credentials
        if idempotency is None:
            return self._journal.write
        return lambda sandbox: self._store.idempotency.save_with(sandbox, idempotency)

    def _follow(self, order: Order, supervisor: Supervisor) -> None:
        """Until the creation is over: it counts as one in progress, and repeated requests share it."""
        key = None
        if order.idempotency is not None:
            key = (order.who.project, order.idempotency.key)
            self._creating[key] = (order.idempotency.body_sha256, supervisor)

        brood = None if order.heritage is None else order.heritage.brood

        def over() -> None:
            source = supervisor.sandbox.source
            if brood is not None:
                brood.over(supervisor.sandbox)
            if source is None:
                self.failed += 1
            else:
                self.counts[source] += 1
                self.on_started(supervisor.sandbox)
            self._admission.settle(supervisor.sandbox.id)
            if key is not None:
                del self._creating[key]

        supervisor.call_when_started(over)


def expiry(now: float, timeout_s: float | None) -> float | None:
    """The moment of expiry of a sandbox that may live for `timeout_s` from now."""
    return None if timeout_s is None else now + timeout_s


def must_equal(body_sha256: str, idempotency: Idempotency) -> None:
    """Raises: IdempotencyConflict."""
    if body_sha256 != idempotency.body_sha256:
        raise IdempotencyConflict("this idempotency key was used for another request", field="idempotency_key")


def _pending(order: Order, *, sandbox_id: str, name: str, driver: str, now: float) -> Sandbox:
    """The record of the intent. The environment is not in it: it may hold secrets."""
    spec, who = order.spec, order.who
    return Sandbox(
        id=sandbox_id,
        project=who.project,
        name=name,
        state=State.PENDING,
        image=spec.image,
        driver=driver,
        limits=spec.limits,
        metadata=spec.metadata,
        isolation=None,
        dialect=order.dialect,
        key=who.key_id,
        created_by="local" if who.key_id == "local" else f"key:{who.name}",
        created_at=now,
        expires_at=expiry(now, spec.timeout_s),
        idle_timeout_s=spec.idle_timeout_s,
        idle_action=spec.idle_action,
        auto_resume=spec.auto_resume,
        last_active_at=now,
        network=_network(order),
        came_from=None if order.heritage is None else order.heritage.lineage,
    )


def _network(order: Order) -> NetworkPolicy:
    inherits = order.heritage is not None and order.heritage.donor is not None
    return replace(order.network, broker=bool(order.spec.credentials) or inherits)


def _taken_at_once(heritage: Heritage | None) -> int:
    """The memory that a sandbox has from its first moment on, beyond what any new one has."""
    if heritage is None or not heritage.lineage.kept.memory:
        return 0
    return heritage.checkpoint.facts.memory_bytes


def _connectable(order: Order, driver: Driver) -> Order:
    """The order, without the internet that nobody asked for where this machine has none to give."""
    is_unasked = order.spec.open_network and order.spec.network is None and order.network == OPEN_NETWORK
    return replace_order(order, network=NO_NETWORK) if is_unasked and driver.network_gaps else order


def _check_network(network: NetworkPolicy, driver: Driver) -> None:
    """Raises: Unsupported, before a box is made in vain."""
    gaps = driver.network_gaps if network.is_connected else ()
    if gaps:
        raise Unsupported(f"this machine cannot connect sandboxes of {driver.name}: {gaps[0]}", field="network")


def proxy_env(network: NetworkPolicy) -> dict[str, str]:
    """Variables that make programs use the explicit proxy: only where patterns are rules, which need whole names."""
    if not any(rule.target.startswith(PATTERN) for rule in network.rules):
        return {}
    local = "localhost,127.0.0.1,169.254.1.1,.cove.internal"
    names = {"http_proxy": PROXY_URL, "https_proxy": PROXY_URL, "no_proxy": local}
    return {**names, **{name.upper(): value for name, value in names.items()}}
