"""What executions stand on, put in place: for `facade.py`."""

from __future__ import annotations

import asyncio

from cove.core.assembly import Parts
from cove.core.execs import Execs
from cove.core.executionboxes import ExecutionBoxes
from cove.core.executionnotes import ExecutionNotes
from cove.core.executions import Executions
from cove.core.executionsessions import ExecutionSessions
from cove.core.remotecode import RemoteCode
from cove.core.sandboxes import Sandboxes
from cove.engine.pool import PoolTarget


def make_executions(
    parts: Parts, sandboxes: Sandboxes, execs: Execs, sessions: ExecutionSessions, tasks: asyncio.TaskGroup
) -> Executions:
    """The executions of this server."""
    pool, driver, policy = parts.pool, parts.settings.default_driver, parts.settings.executions

    def keep_ready(image: str) -> None:
        if all((shelf.image, shelf.driver, shelf.origin) != (image, driver, "") for shelf in pool.stats()):
            pool.keep(PoolTarget(image=image, driver=driver, size=policy.ready))

    return Executions(
        boxes=ExecutionBoxes(sandboxes, parts.images, parts.directory, tasks, keep_ready),
        sessions=sessions,
        execs=execs,
        sandboxes=sandboxes,
        directory=parts.directory,
        policy=policy,
        fetch=RemoteCode(policy.remote, parts.getter).fetch,
        notes=ExecutionNotes(parts.audit),
        visits=parts.networks.visits_of,
    )
