"""What executions stand on, put in place: for `facade.py`."""

from __future__ import annotations

import asyncio

from cove.core.assembly import Parts
from cove.core.execs import Execs
from cove.core.executionboxes import PURPOSE, USUAL, ExecutionBoxes, furnish
from cove.core.executionnotes import ExecutionNotes
from cove.core.executions import Executions
from cove.core.executionsessions import ExecutionSessions
from cove.core.packageindexes import PackageIndexes
from cove.core.remotecode import RemoteCode
from cove.core.sandboxes import Sandboxes
from cove.engine.pool import PoolTarget, pool_size
from cove.model.sandbox import Limits


def make_executions(
    parts: Parts, sandboxes: Sandboxes, execs: Execs, sessions: ExecutionSessions, tasks: asyncio.TaskGroup
) -> Executions:
    """The executions of this server."""
    pool, driver, policy = parts.pool, parts.settings.default_driver, parts.settings.executions

    limits = Limits(cpus=USUAL.cpus, memory_bytes=USUAL.memory_bytes, pids=USUAL.pids)
    kept: set[str] = set()

    def keep_ready(image: str) -> None:
        if image not in kept and policy.ready and driver in parts.drivers:
            kept.add(image)
            free = max(parts.admission.memory().available - parts.admission.keep_free_bytes(), 0)
            size = pool_size(policy.ready, free)
            pool.keep(
                PoolTarget(image=image, driver=driver, size=size, purpose=PURPOSE, limits=limits, furnish=furnish)
            )

    return Executions(
        boxes=ExecutionBoxes(
            sandboxes,
            parts.images,
            parts.directory,
            tasks,
            parts.clock,
            keep_ready=keep_ready,
            hold_back=pool.hold_back,
        ),
        sessions=sessions,
        execs=execs,
        sandboxes=sandboxes,
        directory=parts.directory,
        policy=policy,
        fetch=RemoteCode(policy.remote, parts.getter).fetch,
        notes=ExecutionNotes(parts.audit),
        indexes=PackageIndexes(parts.clock, tasks),
        visits=parts.networks.visits_of,
    )
