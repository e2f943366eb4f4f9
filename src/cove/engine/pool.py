"""The warm pool: boxes that are ready before anybody asks. It is no cache of used ones: a box is claimed once.

A shelf holds the ready boxes of one (image, driver); everything else about a sandbox is applied at the claim. Shelves
are filled in the background, a few at a time, and the filling stands back while callers wait for creates of their own:
a burst gets the machine first. A dead member is noticed when it dies, not when it is claimed.

To keep another image warm: one more `PoolTarget` in the settings. Copies of a checkpoint are kept ready by `keep`, for
as long as somebody (core/templates.py) wants them; they are not taken back after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from msgspec import Struct, field

from cove.engine.checkpoints.model import Checkpoint
from cove.engine.clock import Clock, sleep
from cove.engine.driver import Box, BoxImage, BoxSpec, Driver
from cove.engine.kernels import start_ahead
from cove.engine.ports import ImageSource
from cove.model.errors import CoveError, EngineFailure, SandboxGone
from cove.model.ids import new_core_id
from cove.model.sandbox import MIB, Isolation, Limits

log = logging.getLogger(__name__)

CREATE_TIMEOUT_S: Final = 60.0
"""A box that is not ready by then is given up: a cold create takes 0.1 s, on a machine that thrashes 5 s."""

DESTROY_TIMEOUT_S: Final = 60.0
RETRY_S: Final = (1.0, 60.0)
"""First and longest wait after a create for the pool failed; doubled in between."""

NO_ROOM_WAIT_S: Final = 1.0
MEMBER_MEMORY_BYTES: Final = 16 * MIB
"""What sizing reserves per member. One costs 1-5 MiB idle (docs/benchmarks.md), and a create in progress more."""

KERNEL_MEMORY_BYTES: Final = 64 * MIB
"""What sizing reserves for a kernel that runs in a member: with IPython one has about 40 MiB of its own."""

POOL_HOSTNAME: Final = "sandbox"

_REMEMBERED: Final = 12
_FEW: Final = 0.01
_ROUNDING: Final = 0.49
"""Rounds up: one of them where any was asked for lately."""


class PoolTarget(Struct, frozen=True, kw_only=True):
    """How many boxes of one kind to keep ready: fresh ones of an image, or with `origin` copies of a checkpoint.

    Copies have the checkpoint's own limits and image (`base`), and stand still until they are claimed. With a `purpose`
    they are for those who name it, have `limits`, and are made ready by `furnish`; no restart takes them back.
    """

    image: str
    driver: str
    size: int
    origin: Checkpoint | None = None
    base: BoxImage | None = None
    purpose: str = ""
    limits: Limits | None = None
    furnish: Callable[[Box], Awaitable[None]] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What a claim asks for."""
        return (self.image, self.driver, self.purpose if self.origin is None else self.origin.id)


class PoolConfig(Struct, frozen=True, kw_only=True):
    """How the pool behaves.

    `makers` fill it at a time; `demand` cold creates of callers run at a time; `quiet_s` is how long after the last
    claim or cold create the filling starts. `agent_build`: the build of the agent that new boxes get; a box with
    another is not taken back after a restart. Empty: any.
    """

    targets: tuple[PoolTarget, ...] = ()
    limits: Limits = field(default_factory=Limits)
    makers: int = 2
    demand: int = 4
    quiet_s: float = 0.025
    agent_build: str = ""


class ShelfStats(Struct, frozen=True, kw_only=True):
    """One shelf now, and its counts since start."""

    image: str
    driver: str
    size: int
    ready: int
    making: int
    hits: int
    misses: int
    dead: int
    origin: str = ""
    purpose: str = ""


class _Shelf:
    """The ready boxes of one target, oldest first."""

    def __init__(self, target: PoolTarget) -> None:
        self.target = target
        self.members: OrderedDict[str, tuple[Box, asyncio.Task[None]]] = OrderedDict()
        self.making = self.hits = self.misses = self.dead = 0
        self.digests_in_making: Counter[str] = Counter()
        self.connected_share = 0.0
        self.is_preparing = False
        self.retry_at = 0.0
        self.retry_s = RETRY_S[0]

    def deficit(self) -> int:
        return self.target.size - len(self.members) - self.making

    def note_wish(self, *, connected: bool) -> None:
        """How many of the last sandboxes, about a dozen, were to be connected."""
        self.connected_share += ((1.0 if connected else 0.0) - self.connected_share) / _REMEMBERED

    def best(self, *, connected: bool) -> str:
        """Of the members the oldest one that fits without a change to its network, else the oldest."""
        fitting = (name for name, (box, _) in self.members.items() if box.is_joined is connected)
        return next(fitting, next(iter(self.members)))

    def unprepared(self) -> Box | None:
        """A member that should have an interface and has none: the youngest. None: there are enough that have one."""
        boxes = [box for box, _ in self.members.values()]
        wanted = round(self.connected_share * self.target.size + _ROUNDING) if self.connected_share > _FEW else 0
        without = [box for box in boxes if not box.is_joined]
        return without[-1] if without and len(boxes) - len(without) < wanted else None

    def postpone(self, now: float) -> None:
        """After a failure: not again before a while."""
        self.retry_at = now + self.retry_s
        self.retry_s = min(self.retry_s * 2, RETRY_S[1])


def pool_size(wanted: int, free_bytes: int, kernels: int = 0) -> int:
    """`wanted`, or what fits into a quarter of the free memory if that is less; `kernels`: how many run in each."""
    return max(0, min(wanted, free_bytes // 4 // (MEMBER_MEMORY_BYTES + kernels * KERNEL_MEMORY_BYTES)))


class Pool:
    """All shelves. Made only by `open_pool`."""

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        images: ImageSource,
        config: PoolConfig,
        *,
        clock: Clock,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._drivers = drivers
        self._images = images
        self._config = config
        self._clock = clock
        self._tasks = tasks
        self._shelves = {target.key: _Shelf(target) for target in config.targets}
        self._demand = asyncio.Semaphore(config.demand)
        self._foreground = 0
        self._last_demand = self._held_until = float("-inf")
        self._wanted = asyncio.Event()
        self._makers: list[asyncio.Task[None]] = []
        self._isolation: dict[str, Isolation] = {}
        self.has_room: Callable[[], bool] = lambda: True

    def take(  # noqa: PLR0913 - what a box must be like
        self,
        image: BoxImage,
        driver: str,
        limits: Limits,
        hostname: str | None,
        *,
        connected: bool = False,
        origin: str = "",
    ) -> Box | None:
        """A ready box, which is then the caller's; None is a counted miss. Never waits.

        `limits` and `hostname` are those that it will be given: not every driver can change all of them. `connected`:
        it will have a network, so one that has its interface already is preferred. `origin`: a copy of that checkpoint,
        or one for that purpose.
        """
        self._last_demand = self._clock.monotonic()
        shelf = self._shelves.get((image.name, driver, origin))
        if shelf is None:
            return None
        if not self._can_become(shelf, limits, hostname):
            shelf.misses += 1
            return None
        self._wanted.set()
        shelf.note_wish(connected=connected)
        while shelf.members:
            box, watch = shelf.members.pop(shelf.best(connected=connected))
            watch.cancel()
            if box.facts.image_digest == image.digest:
                shelf.hits += 1
                self._prepare(shelf)
                return box
            self._tasks.create_task(self._discard(box))  # the image was built anew since
        shelf.misses += 1
        return None

    def hold_back(self, seconds: float) -> None:
        """Somebody has work that must be quick: fill only shelves that are more than half empty for so long."""
        self._held_until = max(self._held_until, self._clock.monotonic() + seconds)

    def _can_become(self, shelf: _Shelf, limits: Limits, hostname: str | None) -> bool:
        driver = self._drivers[shelf.target.driver]
        has_name = hostname is None or driver.can_rename
        return has_name and (limits.pids == self._limits(shelf).pids or driver.can_change_pids)

    def _limits(self, shelf: _Shelf) -> Limits:
        origin = shelf.target.origin
        return shelf.target.limits or self._config.limits if origin is None else origin.facts.limits

    def keep(self, target: PoolTarget) -> None:
        """Keep boxes of one more kind ready from now on, or another number of them."""
        shelf = self._shelves.setdefault(target.key, _Shelf(target))
        shelf.target = target
        while len(shelf.members) > target.size:
            self._drop(shelf)
        self._wanted.set()

    def forget(self, target: PoolTarget) -> None:
        """Keep none of this kind any more; those that are ready end."""
        shelf = self._shelves.pop(target.key, None)
        while shelf is not None and shelf.members:
            self._drop(shelf)

    def _drop(self, shelf: _Shelf) -> None:
        _, (box, watch) = shelf.members.popitem()
        watch.cancel()
        self._tasks.create_task(self._discard(box))

    def give_back(self, box: Box) -> None:
        """Return a box that was taken and not touched."""
        if not self.adopt_member(box):
            self._tasks.create_task(self._discard(box))

    def adopt_member(self, box: Box) -> bool:
        """Put an unclaimed box on its shelf, if there is one with room and it is as new ones would be."""
        shelf = self._shelves.get((box.facts.image, box.facts.driver, ""))
        if shelf is None or shelf.deficit() <= 0 or not self._is_current(box):
            return False
        self._put(shelf, box)
        return True

    async def create(self, driver: Driver, spec: BoxSpec, *, timeout_s: float | None = None) -> Box:
        """A cold create for a caller who waits. At most `demand` run at a time; how many wait is bounded by admission.

        `timeout_s` None: CREATE_TIMEOUT_S. Cancelling leaves nothing. Raises: EngineFailure, Unsupported.
        """
        self._foreground += 1
        timeout_s = timeout_s or CREATE_TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s), self._demand:
                box = await driver.create(spec)
                self._isolation[driver.name] = box.isolation
                return box
        except TimeoutError as error:
            raise EngineFailure(f"the sandbox was not ready within {timeout_s:.0f} s") from error
        except OSError as error:
            raise EngineFailure("the machine refused to make a sandbox", internal=repr(error)) from error
        finally:
            self._foreground -= 1
            self._last_demand = self._clock.monotonic()

    def stats(self) -> tuple[ShelfStats, ...]:
        """Every shelf."""
        return tuple(
            ShelfStats(
                image=shelf.target.image,
                driver=shelf.target.driver,
                size=shelf.target.size,
                ready=len(shelf.members),
                making=shelf.making,
                hits=shelf.hits,
                misses=shelf.misses,
                dead=shelf.dead,
                origin=shelf.target.key[2] if shelf.target.origin is not None else "",
                purpose=shelf.target.purpose,
            )
            for shelf in self._shelves.values()
        )

    def digests(self) -> set[str]:
        """Of the images of all boxes that are ready or in the making."""
        found = {box.facts.image_digest for shelf in self._shelves.values() for box, _ in shelf.members.values()}
        for shelf in self._shelves.values():
            found |= {digest for digest, count in shelf.digests_in_making.items() if count > 0}
        return found

    def isolation(self, driver: str) -> Isolation | None:
        """The isolation that boxes of this driver get here, if one was made."""
        return self._isolation.get(driver)

    def start_filling(self) -> None:
        """Start the makers. After the adoption of what lives, or they would make boxes that are there already."""
        self._makers += (self._tasks.create_task(self._fill_forever()) for _ in range(self._config.makers))

    async def _fill_forever(self) -> None:
        while True:
            try:
                await self._fill_once()
            except Exception:  # the maker's outermost frame: a bug in one create must not end the filling
                log.exception("filling the pool failed")
                await sleep(self._clock, RETRY_S[0])

    async def _fill_once(self) -> None:
        now = self._clock.monotonic()
        needy = [shelf for shelf in self._shelves.values() if shelf.deficit() > 0]
        if not needy:
            self._wanted.clear()
            await self._wanted.wait()
            return
        shelf = min(needy, key=lambda one: (one.retry_at > now, -one.deficit()))
        is_held = now < self._held_until and len(shelf.members) * 2 >= shelf.target.size
        if is_held or self._foreground > 0 or now - self._last_demand < self._config.quiet_s:
            await sleep(self._clock, self._config.quiet_s)
        elif shelf.retry_at > now or not self.has_room():
            await sleep(self._clock, NO_ROOM_WAIT_S)
        else:
            await self._make_one(shelf)

    async def _make_one(self, shelf: _Shelf) -> None:
        shelf.making += 1
        box = None
        digest = ""
        try:
            image = shelf.target.base or self._images.get(shelf.target.image)
            digest = image.digest
            shelf.digests_in_making[digest] += 1
            spec = BoxSpec(
                id=new_core_id(),
                image=image,
                limits=self._limits(shelf),
                hostname=POOL_HOSTNAME,
                origin=shelf.target.origin,
                with_memory=shelf.target.origin is not None,
            )
            async with asyncio.timeout(CREATE_TIMEOUT_S):
                made = await self._drivers[shelf.target.driver].create(spec)
            if shelf.target.furnish is not None:
                await self._furnish(shelf.target.furnish, made)
            elif spec.origin is None and image.kernels:
                await start_ahead(made, image)
            box = made
        except (CoveError, TimeoutError) as error:
            shelf.postpone(self._clock.monotonic())
            detail = error.internal if isinstance(error, CoveError) else ""
            log.warning(
                "no %s box for the pool, next try in %.0f s: %s %s", shelf.target.image, shelf.retry_s, error, detail
            )
        finally:
            shelf.making -= 1
            shelf.digests_in_making[digest] -= 1
        if box is None:
            return
        shelf.retry_s = RETRY_S[0]
        if self._shelves.get(shelf.target.key) is shelf and shelf.deficit() > 0:
            self._put(shelf, box)
        else:  # nobody wants it any more
            await self._discard(box)

    async def _furnish(self, furnish: Callable[[Box], Awaitable[None]], box: Box) -> None:
        try:
            async with asyncio.timeout(CREATE_TIMEOUT_S):
                await furnish(box)
        except BaseException:
            self._tasks.create_task(self._discard(box))
            raise

    def _put(self, shelf: _Shelf, box: Box) -> None:
        self._isolation[shelf.target.driver] = box.isolation
        watch = self._tasks.create_task(self._watch(shelf, box))
        shelf.members[box.facts.id] = (box, watch)
        self._prepare(shelf)

    def _prepare(self, shelf: _Shelf) -> None:
        """See that as many members have an interface as connected sandboxes were asked for lately."""
        if shelf.is_preparing or shelf.target.origin is not None or shelf.unprepared() is None:
            return
        shelf.is_preparing = True
        self._tasks.create_task(self._prepare_some(shelf))

    async def _prepare_some(self, shelf: _Shelf) -> None:
        try:
            while True:
                await self._stand_back()
                if (box := shelf.unprepared()) is None:
                    return
                async with asyncio.timeout(CREATE_TIMEOUT_S):
                    await box.prepare_network()
                if not box.is_joined:
                    return  # it was taken meanwhile, or has none here
        except (CoveError, TimeoutError) as error:
            log.warning("no network for the pool's members: %s %s", error, getattr(error, "internal", ""))
        except Exception:  # this task's outermost frame
            log.exception("no network for the pool's members")
        finally:
            shelf.is_preparing = False

    async def _stand_back(self) -> None:
        """Wait while callers wait for creates of their own: what is made ahead would take their time."""
        while self._foreground > 0 or self._clock.monotonic() - self._last_demand < self._config.quiet_s:
            await sleep(self._clock, self._config.quiet_s)

    async def _watch(self, shelf: _Shelf, box: Box) -> None:
        """Until the box dies on the shelf; a claim cancels this."""
        try:
            await box.rest()
            await box.wait_dead()
        except Exception:  # this task's outermost frame
            log.exception("pool member %s cannot be watched", box.facts.id)
        if shelf.members.pop(box.facts.id, None) is not None:
            shelf.dead += 1
            shelf.postpone(self._clock.monotonic())  # boxes that die at once must not become a loop of creates
            self._wanted.set()
            await self._discard(box)

    async def _discard(self, box: Box) -> None:
        try:
            async with asyncio.timeout(DESTROY_TIMEOUT_S):
                await box.destroy()
        except (CoveError, TimeoutError) as error:
            log.warning("pool member %s left something, the next start sweeps it: %s", box.facts.id, error)
        except Exception:  # this task's outermost frame
            log.exception("pool member %s could not be destroyed", box.facts.id)

    def _is_current(self, box: Box) -> bool:
        """Whether a box is as one that is made now would be, and can be claimed at once."""
        if box.facts.origin or box.facts.scratch:
            return False  # it has somebody's files in it, or was made ready for something else
        try:
            image = self._images.get(box.facts.image)
        except CoveError:
            return False
        is_same_build = self._config.agent_build in {"", box.facts.agent_build}
        is_same_image = box.facts.image_digest == image.digest
        now = self._drivers[box.facts.driver].isolation
        if now is not None and now != box.facts.isolation:
            return False  # made when the machine gave less, or more, or by another version
        return is_same_build and is_same_image and box.facts.limits == self._config.limits and is_connected(box)

    def close(self) -> None:
        """Stop filling and watching. The members live on: the next start adopts them."""
        for maker in self._makers:
            maker.cancel()
        for shelf in self._shelves.values():
            for box, watch in shelf.members.values():
                watch.cancel()
                box.let_go()
            shelf.members.clear()


def is_connected(box: Box) -> bool:
    """Whether its agent can be called without `Box.reconnect`."""
    try:
        return not box.agent.is_closed
    except SandboxGone:
        return False


@asynccontextmanager
async def open_pool(
    drivers: Mapping[str, Driver], images: ImageSource, config: PoolConfig, *, clock: Clock
) -> AsyncGenerator[Pool]:
    """A pool that fills itself from `start_filling` on until the context ends. Its members outlive it."""
    async with asyncio.TaskGroup() as tasks:
        pool = Pool(drivers, images, config, clock=clock, tasks=tasks)
        try:
            yield pool
        finally:
            pool.close()
