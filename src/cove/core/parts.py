"""Parts of the core that need nothing but what they are given: `facade.py` puts them in place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from cove.core.admission import Admission
from cove.core.audit import Audit
from cove.core.creation import IDEMPOTENCY_S
from cove.core.credentials import Credentials
from cove.core.directory import Directory
from cove.core.executionpolicy import ExecutionPolicy
from cove.core.executionsessions import ExecutionSessions
from cove.core.images import Images, ImageUse
from cove.core.info import CoreSettings
from cove.core.pulls import ImageNote
from cove.core.sandboxes import Sandboxes
from cove.core.secrets import Secrets, new_master_key
from cove.core.services.catalogue import Services
from cove.core.webhooks import Webhooks
from cove.engine.agentbin import agent_build
from cove.engine.clock import Clock, sleep
from cove.engine.driver import Driver
from cove.engine.images.store import ImageStore
from cove.engine.network.port import Network
from cove.engine.pool import Pool, PoolConfig, pool_size
from cove.engine.ports import ImageSource
from cove.engine.supervisors import Supervisors
from cove.engine.webpost import Poster
from cove.model.closed import ClosedRanges
from cove.model.errors import CoveError
from cove.store.store import Store

log = logging.getLogger(__name__)

_NO_NETWORK: Final = ("it has no network for them",)

PURGE_S: Final = 600.0
"""How often ended sandboxes and idempotency keys that are past their time are forgotten."""


def project_images(  # noqa: PLR0913, PLR0917 - what they stand on
    images: ImageSource,
    image_store: ImageStore | None,
    settings: CoreSettings,
    clock: Clock,
    tasks: asyncio.TaskGroup,
    use: ImageUse,
    audit: Audit,
) -> Images:
    """The images of this server, whose coming and going is a line of the audit trail."""
    return Images(
        images,
        store=image_store,
        settings=settings.images,
        clock=clock,
        tasks=tasks,
        use=use,
        note=_image_note(audit),
    )


def _image_note(audit: Audit) -> ImageNote:
    return lambda event, project, data: audit.note(event, project=project, sandbox=None, data=data)


def project_webhooks(  # noqa: PLR0913, PLR0917 - what they stand on
    settings: CoreSettings,
    store: Store,
    clock: Clock,
    audit: Audit,
    secrets_at_rest: Secrets,
    post: tuple[Poster | None, Callable[[], ClosedRanges]],
) -> Webhooks:
    """Who is told of projects' events. `post`: how that leaves this machine, and what is closed to it."""
    return Webhooks(
        store=store,
        secrets_at_rest=secrets_at_rest,
        audit=audit,
        clock=clock,
        post=post[0],
        closed=post[1],
        plain=settings.webhook_plain,
    )


def make_credentials(  # noqa: PLR0913, PLR0917 - what they stand on
    directory: Directory,
    store: Store,
    clock: Clock,
    audit: Audit,
    secrets_at_rest: Secrets | None,
    network: Network | None,
) -> Credentials:
    """What sandboxes use and never get. `secrets_at_rest` None: sealed by a key of this process only."""
    return Credentials(
        store=store,
        secrets=secrets_at_rest or Secrets((new_master_key(),), lambda _ring: None),
        services=Services(store.services, audit),
        directory=directory,
        clock=clock,
        audit=audit,
        missing=lambda: _NO_NETWORK if network is None else network.missing,
    )


def execution_sessions(  # noqa: PLR0913, PLR0917 - what they stand on
    sandboxes: Sandboxes,
    directory: Directory,
    store: Store,
    secrets_at_rest: Secrets,
    clock: Clock,
    policy: ExecutionPolicy,
) -> ExecutionSessions:
    """Sessions of executions, which end as the operator says."""
    return ExecutionSessions(
        store.execution_sessions,
        sandboxes=sandboxes,
        directory=directory,
        secrets=secrets_at_rest,
        clock=clock,
        idle_s=policy.session_idle_s,
    )


def image_use(supervisors: Supervisors, pool: Pool, store: Store) -> ImageUse:
    """What says which images are in use."""

    def digests() -> set[str]:
        # Rows too: a sandbox whose driver is not loaded now has no supervisor, and may live.
        rows = {sandbox.image_digest for sandbox in store.sandboxes.unended()}
        running = {one.sandbox.image_digest for one in supervisors.all()}
        return rows | running | pool.digests() | store.snapshots.digests()

    return ImageUse(
        sandboxes=lambda: [one.sandbox for one in supervisors.all()],
        digests=digests,
        snapshots=store.snapshots.names_on,
        names=store.sandboxes.images,
    )


def sized_pool(
    pool: PoolConfig, drivers: Mapping[str, Driver], admission: Admission, images: ImageSource
) -> PoolConfig:
    """The pool that this machine can keep: only drivers that work, and no more boxes than fit into its memory."""
    free = max(admission.memory().available - admission.keep_free_bytes(), 0)
    targets = tuple(
        replace(target, size=pool_size(target.size, free, _kernels(images, target.image)))
        for target in pool.targets
        if target.driver in drivers
    )
    return replace(pool, targets=targets, agent_build=pool.agent_build or _agent_build())


def _kernels(images: ImageSource, name: str) -> int:
    try:
        return len(images.get(name).kernels)
    except CoveError:
        return 0  # no such image: nothing is made of it


def _agent_build() -> str:
    try:
        return agent_build()
    except CoveError:
        return ""  # not built here; the driver says so where it matters


async def purge_forever(store: Store, clock: Clock, history_s: float) -> None:
    """Forget what is past its time, until cancelled."""
    while True:
        await sleep(clock, PURGE_S)
        try:
            while await store.sandboxes.purge(ended_before=clock.now() - history_s):
                await sleep(clock, 1.0)
            await store.idempotency.purge(before=clock.now() - IDEMPOTENCY_S)
        except CoveError as error:
            log.warning("old records could not be purged: %s %s", error, error.internal)
