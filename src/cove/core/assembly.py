"""What the core is made of while it is put together, and what it tells of that. No rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cove.core.access import require
from cove.core.accounts import Accounts
from cove.core.admission import Admission
from cove.core.audit import Audit
from cove.core.contexts import Contexts
from cove.core.creation import Creation
from cove.core.credentials import Credentials
from cove.core.directory import Directory
from cove.core.hostports import HostPorts
from cove.core.images import Images
from cove.core.info import CoreSettings, CoreStats, DriverInfo, ServerInfo
from cove.core.journal import StoreJournal
from cove.core.networks import Networks
from cove.core.places import Places
from cove.core.ports import Ports
from cove.core.webhooks import Webhooks
from cove.engine.clock import Clock
from cove.engine.driver import Driver
from cove.engine.pool import Pool
from cove.engine.ports import Checkpoints
from cove.engine.supervisors import Supervisors
from cove.engine.webget import Getter
from cove.model.access import Principal, Scope
from cove.model.sandbox import Source
from cove.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the core is made of, for the functions that put it together."""

    settings: CoreSettings
    drivers: Mapping[str, Driver]
    missing: Mapping[str, tuple[str, ...]]
    images: Images
    store: Store
    clock: Clock
    audit: Audit
    webhooks: Webhooks
    admission: Admission
    accounts: Accounts
    pool: Pool
    supervisors: Supervisors
    directory: Directory
    networks: Networks
    credentials: Credentials
    journal: StoreJournal
    contexts: Contexts
    ports: Ports
    host_ports: HostPorts
    checkpoints: Checkpoints
    places: Places
    getter: Getter | None


def server_info(parts: Parts, who: Principal) -> ServerInfo:
    """What a caller may know of this server. Raises: Forbidden."""
    require(who, Scope.READ)
    return ServerInfo(
        version=parts.settings.version,
        drivers=tuple(
            DriverInfo(name=name, usable=not missing, missing=missing) for name, missing in parts.missing.items()
        ),
        default_driver=parts.settings.default_driver,
        images=tuple(parts.images.list(who)),
        max_sandboxes=parts.settings.admission.max_sandboxes,
        sandboxes=len(parts.supervisors.all()),
        memory_free_bytes=parts.admission.memory().available,
        pool={
            shelf.image: shelf.ready
            for shelf in parts.pool.stats()
            if shelf.driver == parts.settings.default_driver and not shelf.origin and not shelf.purpose
        },
        isolation=parts.pool.isolation(parts.settings.default_driver),
    )


def stats(parts: Parts, creation: Creation) -> CoreStats:
    """Counts and sizes for metrics."""
    return CoreStats(
        sandboxes=dict(Counter(supervisor.sandbox.state for supervisor in parts.supervisors.all())),
        created_warm=creation.counts[Source.WARM],
        created_cold=creation.counts[Source.COLD],
        create_failures=creation.failed,
        pool=parts.pool.stats(),
        admission=parts.admission.stats(),
        store=parts.store.stats(),
        images=parts.images.stats(),
        accounts=parts.accounts.stats(),
        code_runs=dict(parts.contexts.ended),
        kernels_started=parts.contexts.started,
    )
