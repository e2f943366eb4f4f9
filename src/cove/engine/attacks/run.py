"""Runs the attacks against one driver, one after the other, and says what came of each."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cove.engine import machine
from cove.engine.attacks import calls, escape, exhaustion, exposure, network, surface
from cove.engine.attacks.target import Broken, NotHere, Target
from cove.engine.config import EngineConfig
from cove.engine.registry import DriverStatus, Engine, open_engine

ATTACK_LIMIT_S: Final = 150.0
MODULES: Final = (escape, surface, exposure, calls, exhaustion, network)
"""Where attacks are found."""

Attack = Callable[[Target], Awaitable[str]]


class Outcome(StrEnum):
    """`held`: the defence did. `broken`: it did not. `not-here`: no ground for it. `failed`: it was not carried out."""

    HELD = "held"
    BROKEN = "broken"
    NOT_HERE = "not-here"
    FAILED = "failed"


class Verdict(Struct, frozen=True, kw_only=True, tag="verdict"):
    """What came of one attack on one driver."""

    name: str
    case: str
    driver: str
    outcome: Outcome
    tried: str
    seen: str
    ms: float

    @property
    def is_good(self) -> bool:
        """Whether nothing has to be looked into."""
        return self.outcome in {Outcome.HELD, Outcome.NOT_HERE}


class End(Struct, frozen=True, kw_only=True, tag="end"):
    """The last line of a run that came to its end: how many verdicts were before it."""

    verdicts: int


def attacks() -> dict[str, Attack]:
    """All attacks by name."""
    found = [member for module in MODULES for member in inspect.getmembers(module, inspect.iscoroutinefunction)]
    return {name: attack for name, attack in sorted(found) if name.startswith("attack_")}


def case_of(name: str) -> str:
    """`A2` of `attack_a02_new_namespaces`."""
    mark = name.split("_")[1]
    return mark[0].upper() + mark[1:].lstrip("0")


async def against(engine: Engine, driver: str, only: str = "", *, is_restored: bool = False) -> AsyncIterator[Verdict]:
    """Attack boxes of `driver` with those attacks whose name contains `only`; what they leave is freed at the end.

    `is_restored`: boxes that were kept with their memory and made again, in place of first ones.
    """
    checkpoints = engine.checkpoints if is_restored else None
    target = Target(engine.drivers[driver], engine.images.get("base"), engine.network, checkpoints)
    try:
        for name, attack in attacks().items():
            if only in name:
                yield await _carry_out(target, driver, name, attack)
    finally:
        for facts in await target.driver.remains():
            await target.driver.reap(facts)


async def _carry_out(target: Target, driver: str, name: str, attack: Attack) -> Verdict:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(ATTACK_LIMIT_S):
            outcome, seen = Outcome.HELD, await attack(target)
    except Broken as error:
        outcome, seen = Outcome.BROKEN, str(error)
    except NotHere as error:
        outcome, seen = Outcome.NOT_HERE, str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the attack was not carried out, and that is told
        outcome, seen = Outcome.FAILED, f"{type(error).__name__}: {error} {getattr(error, 'internal', '')}".strip()
    return Verdict(
        name=name,
        case=case_of(name),
        driver=driver,
        outcome=outcome,
        tried=(inspect.getdoc(attack) or "").strip(),
        seen=seen,
        ms=round((time.perf_counter() - started) * 1000, 1),
    )


async def run(config: EngineConfig, only: str, *, is_restored: bool = False) -> bool:
    """Attack the configured drivers; print a JSON line for each attack, and a last one (`End`). Whether all held."""
    is_good, count = True, 0
    async with open_engine(config) as engine:
        try:
            for status in engine.status:
                if not status.usable:
                    _tell(_unusable(status))
                    count += 1
            for driver in engine.drivers:
                async for verdict in against(engine, driver, only, is_restored=is_restored):
                    _tell(verdict)
                    count += 1
                    is_good = is_good and verdict.is_good
        finally:
            await engine.release()
    _tell(End(verdicts=count))
    return is_good


def _tell(line: Verdict | End) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def _unusable(status: DriverStatus) -> Verdict:
    return Verdict(
        name="driver",
        case="-",
        driver=status.name,
        outcome=Outcome.NOT_HERE,
        tried="Any box of this driver.",
        seen="; ".join(status.missing),
        ms=0.0,
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", action="append", required=True)
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument(
        "--setup-dir", type=Path, default=Path("/var/lib/cove"), help="the data directory of `cove setup`"
    )
    parser.add_argument("--restored", action="store_true", help="boxes that were kept with their memory and made again")
    parser.add_argument("--quota", default="auto", help="as COVE_QUOTA")
    parser.add_argument("--degrade", action="append", default=[], help="as COVE_DEGRADE")
    parser.add_argument("--network-outside", type=Path, help="as COVE_NETWORK_OUTSIDE")
    given = parser.parse_args()
    os.umask(0o022)
    given.data_dir.mkdir(parents=True, exist_ok=True)
    config = EngineConfig.for_trials(
        given.data_dir, given.setup_dir, tuple(given.driver), quota=given.quota, degrade=tuple(given.degrade)
    )
    config = replace(config, network_outside=given.network_outside)
    origin = machine.enter(config.run_dir)
    try:
        return 0 if asyncio.run(_until_told(run(config, given.only, is_restored=given.restored))) else 1
    except asyncio.CancelledError:
        return 130
    finally:
        machine.release(config.run_dir, origin)


async def _until_told(work: Coroutine[Any, Any, bool]) -> bool:
    """Run it; SIGTERM cancels it, so that what it made is freed on the way out."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work
