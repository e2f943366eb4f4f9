"""All supervisors of this server. The only code that makes one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, ValuesView
from contextlib import asynccontextmanager
from typing import TypedDict, Unpack

from cove.engine.birth import Birth, Ports
from cove.engine.clock import Clock
from cove.engine.driver import Box, BoxImage, Driver
from cove.engine.pool import Pool
from cove.engine.ports import Checkpoints, Journal
from cove.engine.supervisor import Supervisor
from cove.model.origin import own_context
from cove.model.sandbox import Sandbox


class Others(TypedDict, total=False):
    """What `Ports` has beside what every supervisor needs."""

    links: Callable[[Sandbox], Mapping[str, str]]
    may_resume: Callable[[Sandbox], None]
    rests: Callable[[Sandbox], None]
    moves: Callable[[Sandbox], None]
    stills: Callable[[Sandbox], None]
    image_of: Callable[[Sandbox], BoxImage]
    driver_of: Callable[[Sandbox], Driver | None]
    checkpoints: Checkpoints


class Supervisors:
    """The sandboxes that have not ended, by id. `on_end` is told of each one that ends or is let go."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._by_id: dict[str, Supervisor] = {}

    def launch(self, sandbox: Sandbox, birth: Birth) -> Supervisor:
        """Start a new sandbox's life; await its `wait_started`."""
        return self._start(sandbox, birth, None)

    def adopt(self, sandbox: Sandbox, box: Box | None) -> Supervisor:
        """Go on with a sandbox that outlived the server, in the state in which it was written; None: hibernated."""
        return self._start(sandbox, None, box)

    def get(self, sandbox_id: str) -> Supervisor | None:
        """The supervisor of an unended sandbox."""
        return self._by_id.get(sandbox_id)

    def all(self) -> ValuesView[Supervisor]:
        """Every one. The view changes as sandboxes come and go: copy it before awaiting."""
        return self._by_id.values()

    def detach_all(self) -> None:
        """Ask every supervisor to let its sandbox go, running as it is."""
        for supervisor in tuple(self._by_id.values()):
            supervisor.detach()

    def forget(self, sandbox: Sandbox) -> None:
        """Called when a supervisor stops."""
        self._by_id.pop(sandbox.id, None)

    def _start(self, sandbox: Sandbox, birth: Birth | None, box: Box | None) -> Supervisor:
        supervisor = Supervisor(sandbox, self._ports)
        self._by_id[sandbox.id] = supervisor
        life = supervisor.live(birth, box)
        # A context of its own: what the sandbox does later, its maker's request has nothing to do with.
        self._ports.tasks.create_task(life, name=f"sandbox {sandbox.id}", context=own_context(sandbox.id))
        return supervisor


@asynccontextmanager
async def open_supervisors(
    journal: Journal, pool: Pool, clock: Clock, on_end: Callable[[Sandbox], None], **others: Unpack[Others]
) -> AsyncGenerator[Supervisors]:
    """Supervisors that let their sandboxes go, alive, when the context ends. `others`: see `Ports`."""
    async with asyncio.TaskGroup() as tasks:

        def ended(sandbox: Sandbox) -> None:
            supervisors.forget(sandbox)
            on_end(sandbox)

        ports = Ports(journal=journal, pool=pool, clock=clock, tasks=tasks, on_end=ended, **others)
        supervisors = Supervisors(ports)
        try:
            yield supervisors
        finally:
            supervisors.detach_all()
