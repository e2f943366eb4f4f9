"""Makes the store and the machine agree at the start of the server, whatever ended the last one.

======================  =======================  ===============  ==================================================
row                     box                      own checkpoint   what happens
======================  =======================  ===============  ==================================================
running, paused         lives                    none             adopted, in the state that was written
running, paused         lives, its agent too     there            adopted; the checkpoint removed: a hibernation that
                                                                  was not written yet, or a resume that was
running, paused         dead, mute or none       there            freed; hibernated, as it was kept (a reboot)
running, paused         dead                     none             freed; failed, died
running, paused         none                     none             terminated, lost (a reboot)
hibernated              any                      there            freed; hibernated
hibernated              any                      none             freed; failed, damaged
pending                 any                      none             freed; failed, create-failed: nobody was answered
stopping                any                      any              freed; terminated for the reason that was written
none                    lives, as new ones are   none             back to the warm pool
none                    any other                any              freed
======================  =======================  ===============  ==================================================

Checkpoints that are nobody's after that, half-made ones too, are swept (`core/snapshots.py`). Whether one is whole is
seen when it is used: reading all memory that is kept would hold up the start.
A row whose driver is not loaded is left as it is: its sandbox may live.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.engine.birth import bounded, checkpoint_timeout_s
from cove.engine.checkpoints.model import Checkpoint
from cove.engine.clock import Clock
from cove.engine.deadlines import NEVER
from cove.engine.driver import Box, BoxFacts, Driver
from cove.engine.keeping import kept_of
from cove.engine.pool import Pool
from cove.engine.ports import Checkpoints, Journal
from cove.engine.records import ended, moved, timed
from cove.model.errors import AgentTimeout, CoveError, EngineFailure
from cove.model.sandbox import Sandbox
from cove.model.state import LIVE, EndReason, State

log = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""Boxes adopted or freed at one time."""

TIMEOUT_TRIES: Final = 3
"""An agent that does not answer may sit in a box that uses all of its CPU, and a machine that refuses may be busy: both
are asked again before a sandbox is given up."""


AS_KEPT: Final = "the machine stopped while it was being hibernated or resumed: it is as it was when it was kept"


class Reconciled(Struct, frozen=True, kw_only=True):
    """What was found at the start."""

    adopted: int = 0
    hibernated: int = 0
    pooled: int = 0
    ended: int = 0
    reaped: int = 0
    unreachable: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is of one row: its box's directory, the box if it goes on, the addresses of its links."""

    facts: BoxFacts | None
    box: Box | None
    links: Mapping[str, str]
    is_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What reconciling works on.

    `adopt` gets no box for a hibernated sandbox. `keep_unknown` False: the store is new, so an unknown box may be
    somebody's sandbox and must not be handed to another as a fresh one.
    """

    drivers: Mapping[str, Driver]
    pool: Pool
    journal: Journal
    clock: Clock
    adopt: Callable[[Sandbox, Box | None], None]
    keep_unknown: bool
    checkpoints: Checkpoints


async def reconcile(rows: list[Sandbox], machine: Machine) -> Reconciled:
    """Account for every unended row and every box, then sweep what belongs to neither. Never fails as a whole."""
    boxes = await _boxes(machine.drivers)
    asleep = await machine.checkpoints.ids()
    tally = dict.fromkeys(Reconciled.__struct_fields__, 0)
    limit = asyncio.Semaphore(AT_ONCE)
    remains = {row.id: boxes.pop(row.id, None) for row in rows}
    living: dict[str, Box] = {}

    async def found(row: Sandbox) -> None:
        async with limit:
            box = await _living(row, remains[row.id], machine, is_kept=row.id in asleep)
        if box is not None:
            living[row.id] = box

    async def counted(work: Awaitable[str]) -> None:
        async with limit:
            tally[await work] += 1

    # First who lives: a link must not be cut because its other end comes later, nor lead to the address of one that is
    # dead, which somebody else gets.
    async with asyncio.TaskGroup() as tasks:
        for row in rows:
            tasks.create_task(found(row))
    addresses = {(row.project, row.name): living[row.id].facts.address for row in rows if row.id in living}
    named = {key: address for key, address in addresses.items() if address}
    async with asyncio.TaskGroup() as tasks:
        for row in rows:
            links = {name: named[row.project, name] for name in row.network.links if (row.project, name) in named}
            found_of = Found(facts=remains[row.id], box=living.get(row.id), links=links, is_kept=row.id in asleep)
            tasks.create_task(counted(_account(row, found_of, machine)))
        for facts in boxes.values():
            tasks.create_task(counted(_place(facts, machine)))
    for driver in machine.drivers.values():
        await _quietly(driver.reap(None), f"the sweep of driver {driver.name}")
    return Reconciled(**tally)


async def _boxes(drivers: Mapping[str, Driver]) -> dict[str, BoxFacts]:
    return {facts.id: facts for driver in drivers.values() for facts in await driver.remains()}


async def _living(row: Sandbox, facts: BoxFacts | None, machine: Machine, *, is_kept: bool) -> Box | None:
    """The box of a row that may go on, if it lives; where it is kept, too, only if its agent answers."""
    driver = machine.drivers.get(row.driver)
    if driver is None or facts is None or row.state not in LIVE:
        return None
    box = await _adopted(driver, facts)
    return None if box is not None and is_kept and not await _answers(box) else box


async def _account(row: Sandbox, found: Found, machine: Machine) -> str:
    """One unended row. Returns what it counts as."""
    driver = machine.drivers.get(row.driver)
    if driver is None:
        log.warning("sandbox %s is left as it is: its driver %s is not loaded", row.id, row.driver)
        return "unreachable"
    if found.box is not None and await _settled(row, found.box, found.links):
        if found.is_kept:
            await machine.checkpoints.remove(row.id)
        machine.adopt(row, found.box)
        return "adopted"
    if found.facts is not None:
        await _quietly(driver.reap(found.facts), f"what sandbox {row.id} left")
    asleep = await _asleep(row, machine) if found.is_kept and row.state in {*LIVE, State.HIBERNATED} else None
    if asleep is not None:
        machine.adopt(asleep, None)
        return "hibernated"
    await machine.journal.write_surely(_ended(row, machine.clock.now(), was_there=found.facts is not None))
    return "ended"


async def _asleep(row: Sandbox, machine: Machine) -> Sandbox | None:
    """The record of a sandbox that is whole in its checkpoint; None: it is not."""
    if row.state is State.HIBERNATED:
        return row
    # It says what is kept. Once in a crash, so it may take as long as reading it all.
    checkpoint = await _whole(row, machine, with_memory=True) or await _whole(row, machine, with_memory=False)
    if checkpoint is None:
        return None
    facts = checkpoint.facts
    now, left_s = machine.clock.now(), NEVER if row.expires_at is None else row.expires_at - machine.clock.now()
    has_memory = checkpoint.facts.has_memory
    asleep = moved(row, State.HIBERNATED, kept=kept_of(facts), kept_bytes=facts.memory_bytes, state_note=AS_KEPT)
    asleep = timed(asleep if has_memory else replace(asleep, kept_bytes=0), now=now, left_s=left_s)
    await machine.journal.write_surely(asleep)
    return asleep


async def _whole(row: Sandbox, machine: Machine, *, with_memory: bool) -> Checkpoint | None:
    try:
        made = machine.checkpoints.get(row.id, with_memory=with_memory)
        checkpoint = await bounded(made, checkpoint_timeout_s(row.limits))
    except CoveError as error:
        log.warning("the checkpoint of sandbox %s cannot be used: %s %s", row.id, error, error.internal)
        return None
    if with_memory or not checkpoint.facts.has_memory:
        return checkpoint
    return replace(checkpoint, facts=replace(checkpoint.facts, has_memory=False, why_no_memory="it was damaged"))


async def _place(facts: BoxFacts, machine: Machine) -> str:
    """One box that no row knows. Returns what it counts as."""
    driver = machine.drivers[facts.driver]
    if machine.keep_unknown:
        box = await _adopted(driver, facts)
        if box is not None and await _connected(box) and machine.pool.adopt_member(box):
            return "pooled"
    await _quietly(driver.reap(facts), f"box {facts.id}")
    return "reaped"


async def _connected(box: Box) -> bool:
    """Whether its agent answers. Only asked of boxes that ran nobody's code yet, so nobody makes a start wait."""
    try:
        await bounded(box.wake())
        await bounded(box.reconnect())
    except CoveError as error:
        log.info("box %s is of no use to the pool: %s %s", box.facts.id, error, error.internal)
        return False
    return True


async def _answers(box: Box) -> bool:
    """Whether a box that was cut short in a hibernation or a resume goes on."""
    try:
        await bounded(box.resume())
        await bounded(box.reconnect())
    except CoveError as error:
        log.warning("box %s does not go on: %s %s", box.facts.id, error, error.internal)
        return False
    return True


async def _adopted(driver: Driver, facts: BoxFacts) -> Box | None:
    """The box if it lives and its agent answers."""
    for left in reversed(range(TIMEOUT_TRIES)):
        try:
            return await bounded(driver.adopt(facts))
        except (AgentTimeout, EngineFailure) as error:
            log.warning("box %s cannot be adopted, %d tries left: %s %s", facts.id, left, error, error.internal)
        except CoveError as error:
            log.info("box %s cannot be adopted: %s %s", facts.id, error, error.internal)
            return None
    return None


async def _settled(row: Sandbox, box: Box, links: Mapping[str, str]) -> bool:
    """Make the box be what was written: the server may have died between the word and the deed."""
    try:
        await bounded(box.pause() if row.state is State.PAUSED else box.resume())
        if box.facts.limits != row.limits:
            await bounded(box.set_limits(row.limits))
        await bounded(box.set_network(row.network, links))
    except CoveError as error:
        log.warning("sandbox %s cannot be brought to what was written: %s %s", row.id, error, error.internal)
        return False
    return True


async def _quietly(work: Awaitable[None], what: str) -> None:
    try:
        await bounded(work)
    except CoveError as error:
        log.warning("%s could not be freed, the next start tries again: %s %s", what, error, error.internal)


def _ended(row: Sandbox, now: float, *, was_there: bool) -> Sandbox:
    """The last record of a row that is not adopted."""
    match row.state:
        case State.PENDING:
            return ended(row, EndReason.CREATE_FAILED, "the server stopped while it was being created", at=now)
        case State.HIBERNATED:
            return ended(row, EndReason.DAMAGED, "what was kept of it was not on the disk any more", at=now)
        case State.STOPPING:
            return ended(row, row.end_reason or EndReason.REQUESTED, row.end_detail, at=now)
        case _ if was_there:
            return ended(row, EndReason.DIED, "it was found dead when the server started", at=now)
        case _:
            return ended(row, EndReason.LOST, "nothing of it was left when the server started", at=now)
