"""One sandbox's surroundings for unit tests of its supervisor."""

# ruff: noqa: ANN001, ANN003, ANN201 - stand-ins are typed where they are defined

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from msgspec.structs import replace

from checkpoints_support import StubCheckpoints
from cove.engine.birth import Birth
from cove.engine.clock import ManualClock
from cove.engine.driver import Box, BoxSpec
from cove.engine.pool import PoolConfig, open_pool
from cove.engine.supervisor import Supervisor
from cove.engine.supervisors import Supervisors, open_supervisors
from cove.model.errors import CoveError
from cove.model.sandbox import IdleAction, Limits, Sandbox
from cove.model.state import State


@dataclass
class World:
    """One sandbox's surroundings."""

    driver: object
    images: object
    journal: object
    clock: ManualClock
    supervisors: Supervisors
    ended: list[Sandbox]
    checkpoints: StubCheckpoints = field(default_factory=StubCheckpoints)
    told: list[str] = field(default_factory=list[str])
    refusal: CoveError | None = None

    def sandbox(self, **fields) -> Sandbox:
        base = Sandbox(
            id="1" * 16,
            project="default",
            name="one",
            state=State.PENDING,
            image="base",
            driver="stub",
            limits=Limits(),
            metadata={},
            isolation=None,
            dialect="native",
            created_by="local",
            created_at=self.clock.now(),
            expires_at=None,
            idle_timeout_s=None,
            idle_action=IdleAction.PAUSE,
            last_active_at=self.clock.now(),
        )
        return replace(base, **fields)

    def launch(self, box: Box | None = None, *, env=None, hostname=None, **fields) -> Supervisor:
        sandbox = self.sandbox(**({"id": box.facts.id} if box else {}) | fields)
        birth = Birth(
            run_entrypoint=False,
            image=self.images.get("base"),
            driver=self.driver,
            env=env or {},
            hostname=hostname,
            box=box,
            asked_at=self.clock.monotonic(),
            intent=self.journal.write,
        )
        return self.supervisors.launch(sandbox, birth)

    async def warm(self, **limits) -> Box:
        spec = BoxSpec(id="2" * 16, image=self.images.get("base"), limits=Limits(**limits), hostname="sandbox")
        return await self.driver.create(spec)

    @property
    def box(self):
        return next(iter(self.driver.boxes.values()))


@asynccontextmanager
async def opened(driver, images, journal, clock, checkpoints=None) -> AsyncIterator[World]:
    """`told`: what the supervisors have asked of their surroundings, in order; `refusals` keep sandboxes at rest."""
    world = World(driver, images, journal, clock, None, [], checkpoints or StubCheckpoints())  # type: ignore[arg-type]

    def may_resume(sandbox: Sandbox) -> None:
        del sandbox
        world.told.append("may_resume")
        if world.refusal is not None:
            raise world.refusal

    async with (
        open_pool({"stub": driver}, images, PoolConfig(), clock=clock) as pool,
        open_supervisors(
            journal,
            pool,
            clock,
            world.ended.append,
            may_resume=may_resume,
            rests=lambda _: world.told.append("rests"),
            moves=lambda _: world.told.append("moves"),
            image_of=lambda one: images.get(one.image),
            driver_of=lambda _: driver,
            checkpoints=world.checkpoints,
        ) as world.supervisors,
    ):
        yield world
