"""Runs the attacks against one driver, one after the other, and says what came of each."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine import machine
from cove.engine.attacks import calls, escape, exhaustion, exposure, surface
from cove.engine.attacks.target import Broken, NotHere, Target
from cove.engine.config import EngineConfig
from cove.engine.registry import DriverStatus, Engine, open_engine
from cove.model.errors import CoveError

ATTACK_LIMIT_S: Final = 150.0
MODULES: Final = (escape, surface, exposure, calls, exhaustion)
"""Where attacks are found."""

Attack = Callable[[Target], Awaitable[str]]


class Outcome(StrEnum):
    """`held`: the defence did. `broken`: it did not. `not-here`: no ground for it. `failed`: it was not carried out."""

    HELD = "held"
    BROKEN = "broken"
    NOT_HERE = "not-here"
    FAILED = "failed"


class Verdict(Struct, frozen=True, kw_only=True):
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


def attacks() -> dict[str, Attack]:
    """All attacks by name."""
    found = [member for module in MODULES for member in inspect.getmembers(module, inspect.iscoroutinefunction)]
    return {name: attack for name, attack in sorted(found) if name.startswith("attack_")}


def case_of(name: str) -> str:
    """`A2` of `attack_a02_new_namespaces`."""
    mark = name.split("_")[1]
    return mark[0].upper() + mark[1:].lstrip("0")


async def against(engine: Engine, driver: str, only: str = "") -> AsyncIterator[Verdict]:
    """Attack boxes of `driver` with those attacks whose name contains `only`; what they leave is freed at the end."""
    target = Target(engine.drivers[driver], engine.images.get("base"))
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
    except (CoveError, TimeoutError, OSError, ValueError, ExceptionGroup) as error:
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


async def run(config: EngineConfig, only: str) -> bool:
    """Attack the configured drivers; print a JSON line for each attack. Whether everything held."""
    is_good = True
    async with open_engine(config) as engine:
        for status in engine.status:
            if not status.usable:
                _tell(_unusable(status))
        for driver in engine.drivers:
            async for verdict in against(engine, driver, only):
                _tell(verdict)
                is_good = is_good and verdict.is_good
        engine.release()
    return is_good


def _tell(verdict: Verdict) -> None:
    sys.stdout.write(msgspec.json.encode(verdict).decode() + "\n")
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
    given = parser.parse_args()
    given.data_dir.mkdir(parents=True, exist_ok=True)
    config = EngineConfig.for_trials(given.data_dir, given.setup_dir, tuple(given.driver))
    origin = machine.enter(config.run_dir)
    try:
        return 0 if asyncio.run(run(config, given.only)) else 1
    finally:
        machine.release(config.run_dir, origin)
