"""Getting a box for a sandbox: a warm one fitted to its wishes, else a cold one. No state, no journal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from cove.engine.checkpoints.absent import NoCheckpoints
from cove.engine.checkpoints.model import Checkpoint
from cove.engine.clock import Clock
from cove.engine.driver import Box, BoxImage, BoxSpec, Driver
from cove.engine.pool import POOL_HOSTNAME, Pool
from cove.engine.ports import Checkpoints, Journal
from cove.model.errors import CoveError, EngineFailure
from cove.model.execs import KEPT_OUTPUT_BYTES, ExecSpec
from cove.model.origin import Origin, current_origin
from cove.model.sandbox import MIB, Limits, Sandbox, Source

log = logging.getLogger(__name__)

FIT_TIMEOUT_S: Final = 3.0
"""A claim takes 1 ms. A warm box that does not answer by then is given up for a cold one."""

ENTRYPOINT_ID: Final = "entrypoint"
"""The id of the background command that an image's own program runs as."""

BOX_TIMEOUT_S: Final = 60.0
"""For any one action of a box but its creation: each takes milliseconds, so past this the machine has failed."""

T = TypeVar("T")


_SLOWEST_MEMORY: Final = 16 * MIB
_SLOWEST_DISK: Final = 32 * MIB
"""Bytes per second that a checkpoint of a box is written, or read back, at least: past that the machine has failed."""


def no_links(_: Sandbox) -> Mapping[str, str]:
    """For where sandboxes reach no others."""
    return {}


def no_image(sandbox: Sandbox) -> BoxImage:
    """For where nothing is ever made again."""
    raise EngineFailure("this server does not know its images", internal=f"of sandbox {sandbox.id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a supervisor needs from outside. `on_end` is told once, when its task stops.

    `links`: the addresses, by name, of the sandboxes that one may reach now.
    `may_resume` raises what keeps a paused or hibernated sandbox as it is; for a hibernated one it takes the place on
    this machine that `rests` gives back, which is told each time that one has come to rest. `moves` is told of one that
    may have another address, `stills` of one of which a checkpoint is to be taken now.
    `image_of`: the very version of the image that a sandbox was made of; raises NotFound.
    `driver_of`: None, where it is not loaded.
    """

    journal: Journal
    pool: Pool
    clock: Clock
    tasks: asyncio.TaskGroup
    on_end: Callable[[Sandbox], None]
    links: Callable[[Sandbox], Mapping[str, str]] = no_links
    may_resume: Callable[[Sandbox], None] = lambda _: None
    rests: Callable[[Sandbox], None] = lambda _: None
    moves: Callable[[Sandbox], None] = lambda _: None
    stills: Callable[[Sandbox], None] = lambda _: None
    image_of: Callable[[Sandbox], BoxImage] = no_image
    driver_of: Callable[[Sandbox], Driver | None] = lambda _: None
    checkpoints: Checkpoints = field(default_factory=NoCheckpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What a new sandbox needs beyond its record. `box` is a warm one whose id the sandbox has taken over.

    `env` goes into the box and nowhere else: it may hold secrets, so no store or log ever sees it. `asked_at` is
    the monotonic moment of the request; `intent` writes the pending record;
    `run_entrypoint`: start the image's program. `asked_by`: whose request it is.

    `origin`: it begins as that checkpoint was, `with_memory` or with its files only; `env` is then added to what the
    checkpoint has. `is_copy`: of another sandbox, or of an earlier time: nothing may be the same twice.
    """

    image: BoxImage
    driver: Driver
    env: dict[str, str]
    hostname: str | None
    box: Box | None
    run_entrypoint: bool
    asked_at: float
    intent: Callable[[Sandbox], Awaitable[None]]
    asked_by: Origin = field(default_factory=current_origin)
    origin: Checkpoint | None = None
    with_memory: bool = False
    is_copy: bool = True


async def give_birth(sandbox: Sandbox, birth: Birth, ports: Ports) -> tuple[Box, Source]:
    """A claimed box for `sandbox`. A warm one that fails at the claim is replaced by a cold one.

    Its network policy holds before anything of the caller's runs in it.

    On failure nothing is left. Raises: EngineFailure, Unsupported, SandboxError.
    """
    if birth.box is not None:
        try:
            await bounded(_fit(birth.box, sandbox, birth, ports), FIT_TIMEOUT_S)
        except CoveError as error:
            log.warning("warm box %s could not be claimed: %s %s", sandbox.id, error, error.internal)
            await bounded(birth.box.destroy())
        else:
            return birth.box, Source.WARM
    origin = birth.origin
    spec = BoxSpec(
        id=sandbox.id,
        image=birth.image,
        limits=sandbox.limits,
        hostname=birth.hostname or (POOL_HOSTNAME if origin is None else origin.facts.hostname),
        origin=origin,
        with_memory=birth.with_memory,
    )
    timeout_s = None if origin is None else checkpoint_timeout_s(sandbox.limits)
    box = await ports.pool.create(birth.driver, spec, timeout_s=timeout_s)
    try:
        await bounded(_connect(box, sandbox, ports))
        await bounded(_claim(box, birth))
    except CoveError:
        await bounded(box.destroy())
        raise
    return box, Source.COLD


async def _fit(box: Box, sandbox: Sandbox, birth: Birth, ports: Ports) -> None:
    """Make a pool member what this sandbox asked for."""
    await box.wake()
    if box.facts.limits != sandbox.limits:
        await box.set_limits(sandbox.limits)
    if birth.hostname is not None:
        # Only where asked for: the agent then writes two files of the image, whose copies up cost 2 ms of a claim.
        await box.set_hostname(birth.hostname)
    await _connect(box, sandbox, ports)
    await _claim(box, birth)


async def _connect(box: Box, sandbox: Sandbox, ports: Ports) -> None:
    # Without network too: a pool member may have an interface.
    if sandbox.network.is_connected or box.is_joined:
        await box.set_network(sandbox.network, ports.links(sandbox))


async def _claim(box: Box, birth: Birth) -> None:
    image, origin = birth.image, birth.origin
    if origin is not None and birth.with_memory:
        await box.agent.revive(hostname=birth.hostname, env=birth.env, is_copy=birth.is_copy)
        return
    if origin is None:
        await box.agent.claim({**image.env, **birth.env}, image.workdir, birth.hostname, image.user)
    else:
        facts = origin.facts
        await box.agent.claim({**facts.env, **birth.env}, facts.workdir, birth.hostname, facts.user)
    if birth.run_entrypoint:
        spec = ExecSpec(argv=image.entrypoint + image.command)
        await box.agent.start(ENTRYPOINT_ID, spec, keep_bytes=KEPT_OUTPUT_BYTES, stdin_open=False)


def checkpoint_timeout_s(limits: Limits) -> float:
    """How long taking a checkpoint of a box with these limits may take, or making a box of one."""
    return BOX_TIMEOUT_S + limits.memory_bytes / _SLOWEST_MEMORY + limits.disk_bytes / _SLOWEST_DISK


async def bounded(action: Awaitable[T], timeout_s: float = BOX_TIMEOUT_S) -> T:
    """Await one action of a box, for `timeout_s` at most. Raises: EngineFailure beyond it, and for an OSError."""
    try:
        async with asyncio.timeout(timeout_s):
            return await action
    except TimeoutError as error:
        raise EngineFailure("the machine did not answer in time", internal="a box action timed out") from error
    except OSError as error:
        raise EngineFailure("the machine refused", internal=repr(error)) from error
