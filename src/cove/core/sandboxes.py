"""Creating, finding, changing and ending sandboxes. What a supervisor does, and how, is not decided here.

Keep this file small: rules about values are in `validation.py`, about room in `admission.py`, about names in
`directory.py`, and what a create decides in `creation.py`.
"""

from __future__ import annotations

import asyncio
import builtins
from dataclasses import replace as replace_order
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cove.core.access import require
from cove.core.admission import Admission
from cove.core.creation import Creation, Order, expiry
from cove.core.directory import Directory
from cove.core.images import Images
from cove.core.networks import Networks
from cove.core.quotas import Quotas
from cove.core.validation import check_change, check_metadata, check_page
from cove.engine.clock import Clock
from cove.model.access import Principal, Scope
from cove.model.errors import CoveError
from cove.model.network import NO_NETWORK, OPEN_NETWORK
from cove.model.request import PAGE_LIMIT, Idempotency, SandboxChange, SandboxFilter, SandboxPage
from cove.model.sandbox import Limits, Sandbox, SandboxSpec
from cove.model.spans import span
from cove.model.state import FINAL, EndReason, State
from cove.store.store import Store

MOST_LISTED: Final = 10_000
"""Sandboxes of one list that has no pages."""


class Sandboxes:
    """Every operation on sandboxes as such. `ref` is a core id, or the name of an unended sandbox of the project."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        creation: Creation,
        *,
        images: Images,
        directory: Directory,
        networks: Networks,
        admission: Admission,
        quotas: Quotas,
        store: Store,
        clock: Clock,
    ) -> None:
        self._creation = creation
        self._images = images
        self._directory = directory
        self._networks = networks
        self._admission = admission
        self._quotas = quotas
        self._store = store
        self._clock = clock

    async def create(
        self,
        who: Principal,
        spec: SandboxSpec,
        *,
        dialect: str = "native",
        idempotency: Idempotency | None = None,
        purpose: str = "",
    ) -> Sandbox:
        """A running sandbox, its image pulled first where it is not here. `purpose`: boxes that wait for it go first.

        Cancelling ends it, unless an idempotency key lets the caller come back for it. Raises: Forbidden, BadRequest,
        NotFound (image), RegistryError, Conflict (name), IdempotencyConflict, QuotaExceeded, CapacityExceeded,
        Unsupported, EngineFailure.
        """
        require(who, Scope.CREATE)
        idempotency = self._creation.blinded(spec.credentials, idempotency)
        now = self._clock.monotonic()
        order = Order(who=who, spec=spec, dialect=dialect, idempotency=idempotency, asked_at=now, purpose=purpose)
        supervisor = self._creation.find_earlier(order)
        if supervisor is None:
            unasked = OPEN_NETWORK if spec.open_network else NO_NETWORK
            network = await self._networks.resolve(who.project, spec.network, otherwise=unasked)
            order = replace_order(order, network=network)
            await self._quotas.prepare(who.project, who.key_id)
            # The launch follows without a pause, so an image that was found cannot be removed in between.
            with span("image.ensure"):
                resolved = await self._images.ensure(who, spec.image)
            supervisor = self._creation.launch(order, resolved)
        return await self._creation.outcome(supervisor, is_kept=idempotency is not None)

    def get(self, who: Principal, ref: str) -> Sandbox:
        """One sandbox, ended ones for 30 days. Its usage is of its last change; see `measure`. Raises: NotFound."""
        require(who, Scope.READ)
        return self._directory.known(who, ref)

    async def measure(self, who: Principal, ref: str) -> Sandbox:
        """One sandbox with what it uses now. Raises: Forbidden, NotFound."""
        sandbox = self.get(who, ref)
        if sandbox.state in FINAL:
            return sandbox
        try:
            return await self._directory.live(who, ref).measure()
        except CoveError:
            return self._directory.known(who, ref)  # it ended meanwhile

    def list(
        self, who: Principal, wanted: SandboxFilter | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> SandboxPage:
        """One page of the project's sandboxes, newest first. Raises: Forbidden, BadRequest."""
        require(who, Scope.READ)
        check_page(limit)
        wanted = wanted or SandboxFilter()
        check_metadata(wanted.metadata)
        page = self._store.sandboxes.page(who.project, wanted, limit=limit, cursor=cursor)
        return SandboxPage(sandboxes=tuple(self._directory.newest(one) for one in page.sandboxes), cursor=page.cursor)

    async def every(self, who: Principal, wanted: SandboxFilter, *, most: int = MOST_LISTED) -> builtins.list[Sandbox]:
        """The project's sandboxes, newest first, without pages; older ones than the `most` newest are left out.

        Raises: Forbidden, BadRequest.
        """
        found: builtins.list[Sandbox] = []
        cursor: str | None = None
        while len(found) < most:
            page = self.list(who, wanted, limit=min(PAGE_LIMIT, most - len(found)), cursor=cursor)
            found += page.sandboxes
            cursor = page.cursor
            if cursor is None:
                break
            await asyncio.sleep(0)  # a page of rows takes the loop some 20 ms
        return found

    async def update(self, who: Principal, ref: str, change: SandboxChange) -> Sandbox:
        """Change timers, name, metadata or limits of a live sandbox. A new idle time counts from now on.

        Raises: Forbidden, BadRequest, NotFound, Gone, Conflict (name), QuotaExceeded, CapacityExceeded, Unsupported,
        EngineFailure.
        """
        require(who, Scope.CREATE)
        check_change(change)
        supervisor = self._directory.live(who, ref)
        await self._quotas.prepare(supervisor.sandbox.project, supervisor.sandbox.key)
        before = supervisor.sandbox
        name = before.name if change.name is UNSET else change.name
        if name != before.name:
            self._directory.check_free(before.project, name)
            self._directory.hold_name(before.project, name, before.id)
        held = {name}

        def edit(sandbox: Sandbox) -> Sandbox:
            held.add(sandbox.name)  # the name that it has by now: another rename may have come first
            return _changed(sandbox, change, self._clock.now())

        try:
            wanted = _changed_limits(before.limits, change)
            with self._quotas.changing(before, wanted, lambda: supervisor.sandbox):
                if change.memory_bytes is not UNSET and before.state is not State.HIBERNATED:
                    self._admission.change(before.id, change.memory_bytes)
                return await supervisor.change(edit, is_use=change.idle_timeout_s is not UNSET)
        finally:
            # Whatever came of it, what is true now is what is reserved.
            self._admission.correct(before.id, supervisor.sandbox.limits.memory_bytes)
            for unused in held - {supervisor.sandbox.name}:
                self._directory.release_name(before.project, unused, before.id)
            if supervisor.sandbox.name != before.name:
                self._networks.links.moved(before.project, before.name, supervisor.sandbox.name)

    async def destroy(self, who: Principal, ref: str) -> Sandbox:
        """End it; the answer is its last record with the final usage. Ended already: the same answer.

        Cancelling does not stop it. Raises: Forbidden, NotFound.
        """
        require(who, Scope.DESTROY)
        sandbox = self._directory.known(who, ref)
        if sandbox.state in FINAL:
            return sandbox
        return await self._directory.live(who, ref).end(EndReason.REQUESTED)

    async def pause(self, who: Principal, ref: str) -> Sandbox:
        """Stop its processes, memory kept; paused already: the same. Raises: Forbidden, NotFound, Gone, Conflict."""
        require(who, Scope.CREATE)
        return await self._directory.live(who, ref).pause()

    async def hibernate(self, who: Principal, ref: str, *, memory: bool | None = None) -> Sandbox:
        """Bring it to the disk, so that it takes no memory; hibernated already: the same.

        `memory` None: with its processes where that can be had, else `kept.reason` says why not; True: or not at all;
        False: its files only. Raises: Forbidden, NotFound, Gone, Conflict, Unsupported, CapacityExceeded,
        EngineFailure; it is then as it was.
        """
        require(who, Scope.CREATE)
        return await self._directory.live(who, ref).hibernate(memory=memory)

    async def resume(self, who: Principal, ref: str, *, memory: bool | None = None) -> Sandbox:
        """Let it go on; running already: the same. `memory` False: a hibernated one begins anew, with its files only.

        Raises: Forbidden, NotFound, Gone, Conflict, CapacityExceeded, QuotaExceeded, EngineFailure (its checkpoint is
        damaged); it then stays as it was.
        """
        require(who, Scope.CREATE)
        supervisor = self._directory.live(who, ref)
        await self._quotas.prepare(supervisor.sandbox.project, supervisor.sandbox.key)
        return await supervisor.resume(memory=memory)


def _changed(sandbox: Sandbox, change: SandboxChange, now: float) -> Sandbox:
    """The sandbox after the change. Pure."""
    metadata = dict(sandbox.metadata)
    for key, value in ({} if change.metadata is UNSET else change.metadata).items():
        if value is None:
            metadata.pop(key, None)
        else:
            metadata[key] = value
    check_metadata(metadata)
    return replace(
        sandbox,
        limits=_changed_limits(sandbox.limits, change),
        metadata=metadata,
        name=sandbox.name if change.name is UNSET else change.name,
        idle_timeout_s=sandbox.idle_timeout_s if change.idle_timeout_s is UNSET else change.idle_timeout_s,
        idle_action=sandbox.idle_action if change.idle_action is UNSET else change.idle_action,
        auto_resume=sandbox.auto_resume if change.auto_resume is UNSET else change.auto_resume,
        expires_at=sandbox.expires_at if change.timeout_s is UNSET else expiry(now, change.timeout_s),
        time_left_s=sandbox.time_left_s if change.timeout_s is UNSET else None,
    )


def _changed_limits(limits: Limits, change: SandboxChange) -> Limits:
    if change.cpus is not UNSET:
        limits = replace(limits, cpus=change.cpus)
    if change.memory_bytes is not UNSET:
        limits = replace(limits, memory_bytes=change.memory_bytes)
    if change.pids is not UNSET:
        limits = replace(limits, pids=change.pids)
    return limits
