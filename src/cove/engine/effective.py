"""What isolation a sandbox really gets here, driver by driver, from a box that is made for the answer and ended again.

`python -m cove.engine.effective --driver NAME... --data-dir DIR --setup-dir DIR` prints one JSON line per driver
(`Effective`). Needs root, `cove setup`, and a data directory of its own that no server uses.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from cove.engine import machine
from cove.engine.config import EngineConfig
from cove.engine.driver import BoxSpec
from cove.engine.registry import Engine, open_engine
from cove.model.errors import CoveError
from cove.model.ids import new_core_id
from cove.model.sandbox import MIB, Isolation, Limits

_LIMITS = Limits(memory_bytes=128 * MIB, disk_bytes=32 * MIB, pids=64)


class Effective(Struct, frozen=True, kw_only=True):
    """One driver. `isolation` None: it makes no boxes here, and `missing` says why."""

    driver: str
    isolation: Isolation | None
    missing: tuple[str, ...] = ()


async def effective(engine: Engine, driver: str) -> Effective:
    """Make a box of `driver`, note what it has, end it."""
    status = next(one for one in engine.status if one.name == driver)
    if not status.usable:
        return Effective(driver=driver, isolation=None, missing=status.missing)
    spec = BoxSpec(id=new_core_id(), image=engine.images.get("base"), limits=_LIMITS, hostname="doctor")
    try:
        box = await engine.drivers[driver].create(spec)
        isolation = box.isolation
        await box.destroy()
    except CoveError as error:
        return Effective(driver=driver, isolation=None, missing=(f"{error.public} ({error.internal})",))
    return Effective(driver=driver, isolation=isolation)


async def _run(config: EngineConfig) -> None:
    async with open_engine(config) as engine:
        for driver in config.drivers:
            sys.stdout.write(msgspec.json.encode(await effective(engine, driver)).decode() + "\n")
        await engine.release()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", action="append", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--setup-dir", type=Path, required=True)
    parser.add_argument("--quota", default="auto", help="as COVE_QUOTA")
    parser.add_argument("--degrade", action="append", default=[], help="as COVE_DEGRADE")
    given = parser.parse_args()
    os.umask(0o022)
    config = EngineConfig.for_trials(
        given.data_dir, given.setup_dir, tuple(given.driver), quota=given.quota, degrade=tuple(given.degrade)
    )
    origin = machine.enter(config.run_dir)
    try:
        asyncio.run(_run(config))
    except CoveError as error:
        sys.stderr.write(f"{error} {error.internal}\n")
        return 1
    finally:
        machine.release(config.run_dir, origin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
