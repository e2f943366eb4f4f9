"""The core as one object: opened once by the server, used by every dialect through `edge`.

`open_core` builds it in the order in which its parts need each other, makes store and machine agree, and only then
fills the pool. Leaving the context lets all sandboxes go on, for the next start to adopt.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cove.core.accounts import Accounts, make_accounts
from cove.core.admission import Admission, Disk, Memory, read_memory
from cove.core.archives import Archives
from cove.core.assembly import Parts as _Parts
from cove.core.assembly import server_info as _server_info
from cove.core.assembly import stats as _stats
from cove.core.audit import Audit
from cove.core.building import Building
from cove.core.commandnotes import CommandNotes
from cove.core.contexts import Contexts
from cove.core.creation import Creation
from cove.core.credentials import Credentials
from cove.core.directory import Directory
from cove.core.execs import Execs
from cove.core.executing import make_executions
from cove.core.executions import Executions
from cove.core.executionsessions import ExecutionSessions
from cove.core.exposures import Exposures
from cove.core.files import Files
from cove.core.hostports import HostPorts
from cove.core.images import Images
from cove.core.info import CoreSettings, CoreStats, ServerInfo
from cove.core.jobs import Jobs
from cove.core.journal import StoreJournal
from cove.core.keys import Keys, Projects
from cove.core.links import Links
from cove.core.networkprofiles import NetworkProfiles
from cove.core.networks import Networks
from cove.core.parts import (
    execution_sessions,
    image_use,
    make_credentials,
    project_images,
    project_webhooks,
    purge_forever,
    sized_pool,
)
from cove.core.placement import Placement
from cove.core.places import Places
from cove.core.ports import Ports
from cove.core.quotas import Quotas
from cove.core.ratelimits import RateLimits
from cove.core.reconcile import Machine, Reconciled, reconcile
from cove.core.refusals import Refusals
from cove.core.restoring import StateParts
from cove.core.sandboxes import Sandboxes
from cove.core.secrets import Secrets
from cove.core.services.catalogue import Services
from cove.core.shells import Shells
from cove.core.snapshots import Snapshots
from cove.core.sshkeys import SshKeys
from cove.core.templates import Templates
from cove.core.terminals import Terminals
from cove.core.trail import Trail
from cove.core.trees import Trees
from cove.core.usage import Usages
from cove.core.visits import Visits
from cove.core.watches import Watches
from cove.core.webhooks import Webhooks
from cove.core.workbench import Tools
from cove.engine.checkpoints.absent import NoCheckpoints
from cove.engine.clock import Clock, SystemClock
from cove.engine.driver import Box, Driver
from cove.engine.images.store import ImageStore
from cove.engine.network.port import Network
from cove.engine.pool import open_pool
from cove.engine.ports import Checkpoints, ImageSource
from cove.engine.supervisors import Others, Supervisors, open_supervisors
from cove.engine.webget import Getter
from cove.engine.webpost import Poster
from cove.model.access import Principal
from cove.model.auditchain import KEY_BYTES
from cove.model.closed import ClosedRanges
from cove.model.sandbox import Sandbox
from cove.store.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The parts that dialects call, each named after its noun, and what the server tells about itself."""

    sandboxes: Sandboxes
    snapshots: Snapshots
    templates: Templates
    execs: Execs
    executions: Executions
    execution_sessions: ExecutionSessions
    contexts: Contexts
    shells: Shells
    files: Files
    trees: Trees
    ports: Ports
    terminals: Terminals
    watches: Watches
    exposures: Exposures
    networks: Networks
    keys: Keys
    projects: Projects
    ssh_keys: SshKeys
    images: Images
    archives: Archives
    building: Building
    audit: Audit
    credentials: Credentials
    services: Services
    quotas: Quotas
    usage: Usages
    rate_limits: RateLimits
    trail: Trail
    webhooks: Webhooks
    reconciled: Reconciled
    server_info: Callable[[Principal], ServerInfo]
    stats: Callable[[], CoreStats]


@asynccontextmanager
async def open_core(  # noqa: PLR0913 - what the core stands on, all by name
    settings: CoreSettings,
    *,
    drivers: Mapping[str, Driver],
    images: ImageSource,
    store: Store,
    image_store: ImageStore | None = None,
    audit_key: bytes | None = None,
    secrets_at_rest: Secrets | None = None,
    network: Network | None = None,
    post: tuple[Poster | None, Callable[[], ClosedRanges]] = (None, ClosedRanges),
    getter: Getter | None = None,
    checkpoints: Checkpoints | None = None,
    unusable: Mapping[str, tuple[str, ...]] | None = None,
    clock: Clock | None = None,
    memory: Callable[[], Memory] = read_memory,
    disk: Callable[[], Disk] = lambda: Disk(1, 1),
) -> AsyncGenerator[Core]:
    """The running core over drivers that work; `unusable` are the others, with what they miss, for `server_info`.

    `image_store` (open) is where projects' images lie; None: there are only the built-in ones. `audit_key` signs the
    audit trail, `secrets_at_rest` seals what the store must not show; None: a key of this process only. `network` None:
    sandboxes have none. `post`: how webhooks leave, `getter`: how programs are fetched. `checkpoints` None: sandboxes
    can be neither hibernated nor kept as snapshots. Raises: EngineFailure when the store cannot be read or written.
    """
    clock, checkpoints = clock or SystemClock(), checkpoints or NoCheckpoints()
    admission = Admission(settings.admission, clock, memory, disk)
    audit = Audit(store, clock, audit_key or secrets.token_bytes(KEY_BYTES))
    accounts = make_accounts(settings.accounts, store, clock, audit)
    journal = StoreJournal(store, clock, audit, accounts.metering)

    def ended(sandbox: Sandbox) -> None:
        host_ports.forget(sandbox.id)
        audit.forget(sandbox.id)
        contexts.forget(sandbox.id)
        credentials.ended(sandbox.id)
        admission.release(sandbox.id)
        accounts.quotas.release(sandbox.id)
        directory.release_name(sandbox.project, sandbox.name, sandbox.id)
        networks.ended(sandbox)

    async with (
        asyncio.TaskGroup() as tasks,
        open_pool(drivers, images, sized_pool(settings.pool, drivers, admission, images), clock=clock) as pool,
        open_supervisors(journal, pool, clock, ended, **_surroundings(lambda: parts, checkpoints)) as supervisors,
    ):
        pool.has_room = admission.has_room
        directory = Directory(supervisors, store, journal)
        ports, contexts = Ports(directory, audit), Contexts(directory, CommandNotes(audit, tasks), tasks)
        host_ports = HostPorts(settings.host_ports, ports)
        networks = _networks(directory, supervisors, store, clock, audit, network, tasks)
        credentials = make_credentials(directory, store, clock, audit, secrets_at_rest, network)
        use = image_use(supervisors, pool, store)
        parts: _Parts = _Parts(
            settings=settings,
            drivers=drivers,
            missing={**dict.fromkeys(drivers, ()), **(unusable or {})},
            images=project_images(images, image_store, settings, clock, tasks, use, audit),
            store=store,
            clock=clock,
            audit=audit,
            webhooks=project_webhooks(settings, store, clock, audit, credentials.secrets, post),
            admission=admission,
            accounts=accounts,
            pool=pool,
            supervisors=supervisors,
            directory=directory,
            networks=networks,
            credentials=credentials,
            journal=journal,
            contexts=contexts,
            ports=ports,
            host_ports=host_ports,
            checkpoints=checkpoints,
            places=Places(accounts.budgets, accounts.quotas, admission),
            getter=getter,
        )
        async with _working(parts, tasks) as core:
            yield core
    await _write_the_rest(journal, accounts, audit)


def _surroundings(parts: Callable[[], _Parts], checkpoints: Checkpoints) -> Others:
    """What supervisors ask of the rest of the core, which is made after them."""
    return Others(
        links=lambda one: parts().networks.links.of(one),  # noqa: PLW0108 - it is made later
        may_resume=lambda one: parts().places.enter(one),  # noqa: PLW0108
        rests=lambda one: parts().places.leave(one),  # noqa: PLW0108
        stills=lambda one: parts().contexts.let_go(one.id),
        moves=lambda one: parts().networks.links.moved(one.project, one.name),
        image_of=lambda one: parts().images.version(one.project, one.image_used, one.image_digest),
        driver_of=lambda one: parts().drivers.get(one.driver),
        checkpoints=checkpoints,
    )


async def _write_the_rest(journal: StoreJournal, accounts: Accounts, audit: Audit) -> None:
    await journal.retry()
    await accounts.reader.flush()
    await audit.drain()


@asynccontextmanager
async def _working(parts: _Parts, tasks: asyncio.TaskGroup) -> AsyncGenerator[Core]:
    """The core with its chores."""
    core = await _started(parts, tasks)
    running = [tasks.create_task(chore) for chore in _chores(parts, core)]
    try:
        yield core
    finally:
        for task in running:
            task.cancel()
        parts.host_ports.shut()


def _networks(  # noqa: PLR0913, PLR0917 - what they stand on
    directory: Directory,
    supervisors: Supervisors,
    store: Store,
    clock: Clock,
    audit: Audit,
    network: Network | None,
    tasks: asyncio.TaskGroup,
) -> Networks:
    def closed() -> ClosedRanges:
        return ClosedRanges() if network is None else network.closed

    def find(sandbox_id: str) -> Sandbox | None:
        supervisor = supervisors.get(sandbox_id)
        return None if supervisor is None else supervisor.sandbox

    refusals, visits = Refusals(audit, clock, find), Visits(find)
    if network is not None:
        network.on_refusal = refusals.hear
        network.on_visit = visits.hear
    return Networks(
        directory,
        store=store,
        audit=audit,
        profiles=NetworkProfiles(store.networks, audit, clock, closed, tasks=tasks),
        links=Links(directory, supervisors),
        refusals=refusals,
        visits=visits,
        network=network,
        closed=closed,
    )


def _placement(settings: CoreSettings, drivers: Mapping[str, Driver]) -> Placement:
    return Placement(
        drivers=drivers, default_driver=settings.default_driver, untrusted_drivers=settings.untrusted_drivers
    )


def _creation(parts: _Parts) -> Creation:
    creation = Creation(
        placement=_placement(parts.settings, parts.drivers),
        pool=parts.pool,
        supervisors=parts.supervisors,
        directory=parts.directory,
        admission=parts.admission,
        quotas=parts.accounts.quotas,
        journal=parts.journal,
        credentials=parts.credentials,
        store=parts.store,
        clock=parts.clock,
    )
    creation.on_started = parts.networks.started
    creation.timeout_counts = parts.settings.timeout_counts
    return creation


def _state_parts(parts: _Parts, creation: Creation, tasks: asyncio.TaskGroup) -> StateParts:
    return StateParts(
        creation=creation,
        drivers=parts.drivers,
        directory=parts.directory,
        supervisors=parts.supervisors,
        images=parts.images,
        networks=parts.networks,
        quotas=parts.accounts.quotas,
        checkpoints=parts.checkpoints,
        audit=parts.audit,
        store=parts.store,
        clock=parts.clock,
        jobs=Jobs(tasks),
    )


def _execution_sessions(parts: _Parts, sandboxes: Sandboxes) -> ExecutionSessions:
    sealing, policy = parts.credentials.secrets, parts.settings.executions
    return execution_sessions(sandboxes, parts.directory, parts.store, sealing, parts.clock, policy)


def _templates(parts: _Parts, snapshots: Snapshots) -> Templates:
    templates = Templates(
        parts.store.templates,
        snapshots,
        known=parts.store.snapshots.get,
        image_of=lambda one: parts.images.version(one.project, one.image_used, one.image_digest),
        drivers=parts.drivers,
        pool=parts.pool,
        audit=parts.audit,
        clock=parts.clock,
        most_ready=parts.settings.template_ready,
    )
    snapshots.book.users.append(templates.users_of)
    return templates


async def _started(parts: _Parts, tasks: asyncio.TaskGroup) -> Core:
    """Make store and machine agree, then begin."""
    await parts.audit.adopt_key(parts.store)
    found = await _reconciled(parts)
    creation = _creation(parts)
    parts.pool.start_filling()
    core = _core(parts, creation, found, tasks)
    await core.snapshots.start()
    await core.templates.start()
    core.credentials.check()
    await core.keys.open(parts.settings.key_forms, parts.settings.region)
    await core.projects.ensure_default()
    await parts.host_ports.reopen(parts.store.exposures.with_host_port, parts.directory.by_id)
    return core


def _chores(parts: _Parts, core: Core) -> tuple[Coroutine[None, None, None], ...]:
    """What goes on for as long as the core does."""
    return (
        parts.journal.retry_forever(),
        parts.audit.retry_forever(),
        core.execution_sessions.prune_forever(),
        core.trail.retain_forever(parts.settings.audit_retention_s),
        parts.webhooks.deliver_forever(),
        purge_forever(parts.store, parts.clock, parts.settings.history_s),
        parts.admission.watch_disk(),
        parts.accounts.work(parts.supervisors),
        parts.images.collect_forever(),
        parts.host_ports.keep_open(parts.store.exposures.with_host_port, parts.directory.by_id, parts.clock),
    )


def _core(parts: _Parts, creation: Creation, found: Reconciled, tasks: asyncio.TaskGroup) -> Core:
    sandboxes = Sandboxes(
        creation,
        images=parts.images,
        directory=parts.directory,
        networks=parts.networks,
        admission=parts.admission,
        quotas=parts.accounts.quotas,
        store=parts.store,
        clock=parts.clock,
    )
    sessions = _execution_sessions(parts, sandboxes)
    notes = CommandNotes(parts.audit, tasks)
    execs, files = Execs(parts.directory, tasks, notes), Files(parts.directory, parts.audit)
    tools = Tools(sandboxes=sandboxes, execs=execs, files=files)
    slots = asyncio.Semaphore(parts.settings.images.pulls)
    snapshots = Snapshots(_state_parts(parts, creation, tasks))
    return Core(
        sandboxes=sandboxes,
        snapshots=snapshots,
        templates=_templates(parts, snapshots),
        execs=execs,
        execution_sessions=sessions,
        executions=make_executions(parts, sandboxes, execs, sessions, tasks),
        contexts=parts.contexts,
        shells=Shells(parts.directory, execs.output_share, notes),
        files=files,
        trees=Trees(parts.directory, parts.audit),
        ports=parts.ports,
        terminals=Terminals(parts.directory, notes),
        watches=Watches(parts.directory),
        exposures=Exposures(
            parts.directory,
            parts.store,
            parts.clock,
            host_ports=parts.host_ports,
            quotas=parts.accounts.quotas,
            audit=parts.audit,
        ),
        networks=parts.networks,
        keys=Keys(parts.store, parts.clock, tasks, quotas=parts.accounts.quotas, audit=parts.audit),
        projects=Projects(parts.store, parts.clock, parts.audit, parts.missing),
        ssh_keys=SshKeys(parts.store, parts.directory, parts.clock, tasks, parts.audit),
        images=parts.images,
        archives=Archives(parts.images, parts.settings.images, slots),
        building=Building(parts.images, tools, parts.settings.images, slots),
        audit=parts.audit,
        credentials=parts.credentials,
        services=parts.credentials.services,
        quotas=parts.accounts.quotas,
        usage=Usages(parts.directory, parts.accounts.metering, parts.store),
        rate_limits=parts.accounts.rate_limits,
        trail=Trail(parts.audit, parts.store, parts.directory, parts.clock),
        webhooks=parts.webhooks,
        reconciled=found,
        server_info=lambda who: _server_info(parts, who),
        stats=lambda: _stats(parts, creation),
    )


async def _reconciled(parts: _Parts) -> Reconciled:
    default = parts.settings.default_driver
    if default not in parts.drivers:
        log.warning("the default driver %s cannot be used: creates that name none are refused", default)

    def adopt(sandbox: Sandbox, box: Box | None) -> None:
        if box is not None:
            parts.admission.admit(sandbox.id, sandbox.limits, is_new=False)
        parts.accounts.adopt(sandbox)
        parts.directory.hold_name(sandbox.project, sandbox.name, sandbox.id)
        parts.supervisors.adopt(sandbox, box)

    machine = Machine(
        drivers=parts.drivers,
        pool=parts.pool,
        journal=parts.journal,
        clock=parts.clock,
        adopt=adopt,
        keep_unknown=not parts.store.is_new,
        checkpoints=parts.checkpoints,
    )
    found = await reconcile(parts.store.sandboxes.unended(), machine)
    parts.networks.links.all_moved()
    log.info("start: %s", found)
    return found
