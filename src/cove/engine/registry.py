"""The drivers by name, and the engine as a whole. The only place that names a driver.

To add one: its file in `drivers/` ending in `driver_factory = ...`, and a row here.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import Final

from msgspec import Struct

from cove.engine.checkpoints.manifest import ensure_key
from cove.engine.checkpoints.shelf import DirectoryShelf, Shelf, SubvolumeShelf
from cove.engine.checkpoints.store import CheckpointStore
from cove.engine.config import EngineConfig
from cove.engine.driver import Driver
from cove.engine.images.builtin import BuiltinImages
from cove.engine.network.service import SandboxNetwork, open_network
from cove.engine.oci.ground import Ground, open_ground
from cove.model.errors import BadRequest, EngineFailure

OCI: Final = {
    "runc": "cove.engine.drivers.runc",
    "crun": "cove.engine.drivers.crun",
    "gvisor": "cove.engine.drivers.gvisor",
}
"""Drivers that stand on `oci.ground.Ground`."""

PLAIN: Final = {"fake": "cove.engine.drivers.fake"}
"""Drivers that need only the configuration."""


def needs_mounts(config: EngineConfig) -> bool:
    """Whether `machine.enter` must come first."""
    return any(name in OCI for name in config.drivers)


class DriverStatus(Struct, frozen=True, kw_only=True):
    """Whether a driver can be used on this machine, and if not, why."""

    name: str
    usable: bool
    missing: tuple[str, ...]


class Engine:
    """The usable drivers, the images, and what could not be had. Made by `open_engine`."""

    def __init__(
        self,
        config: EngineConfig,
        drivers: Mapping[str, Driver],
        status: tuple[DriverStatus, ...],
        ground: Ground | None,
        network: SandboxNetwork | None,
    ) -> None:
        self.drivers = drivers
        self.images = BuiltinImages(config.images_dir)
        self.status = status
        self.network = network
        """None where no driver has one."""
        self._data_dir = config.data_dir
        self._ground = ground
        self.checkpoints = _checkpoints(config, ground, self.disk)

    def disk(self) -> tuple[int, int]:
        """Bytes in all and free where sandboxes write, or on the data directory's disk: of both the fuller one."""
        host = shutil.disk_usage(self._data_dir)
        known = [(host.total, host.free)]
        if self._ground is not None:
            known.append(self._ground.layers.space())
        return min((one for one in known if one[0]), key=lambda one: one[1] / one[0], default=(1, 1))

    def end_strangers(self) -> None:
        """From now on boxes of drivers that are not loaded are nobody's: the next `Driver.reap(None)` frees them."""
        if self._ground is not None:
            self._ground.loaded = None
            self._ground.live.clear()

    async def release(self) -> None:
        """Take away everything of this instance but what is kept; every box must be gone."""
        await asyncio.to_thread(self.checkpoints.close)
        if self.network is not None:
            await self.network.release()
        if self._ground is not None:
            self._ground.close(release=True)


@asynccontextmanager
async def open_engine(config: EngineConfig) -> AsyncGenerator[Engine]:
    """The engine with every configured driver that this machine can run. Leaving it leaves all boxes running.

    Raises: EngineFailure when no configured driver is usable; BadRequest for a name nobody knows.
    """
    async with AsyncExitStack() as stack:
        ground: Ground | None = None
        network: SandboxNetwork | None = None
        if needs_mounts(config):
            ground = await stack.enter_async_context(open_ground(config))
            network = await stack.enter_async_context(open_network(config.network))
            ground.network = network
        drivers: dict[str, Driver] = {}
        status: list[DriverStatus] = []
        for name in config.drivers:
            driver = _load(name, config, ground)
            missing = await driver.requirements()
            status.append(DriverStatus(name=name, usable=not missing, missing=missing))
            if not missing:
                drivers[name] = driver
        if not drivers:
            reasons = "; ".join(reason for s in status for reason in s.missing)
            raise EngineFailure(f"no isolation driver can be used on this machine: {reasons}")
        if ground is not None:
            ground.loaded = frozenset(drivers)
        engine = Engine(config, drivers, tuple(status), ground, network)
        try:
            yield engine
        finally:
            engine.checkpoints.close()


def _checkpoints(config: EngineConfig, ground: Ground | None, disk: Callable[[], tuple[int, int]]) -> CheckpointStore:
    """Where checkpoints lie. Raises: EngineFailure, OSError."""
    layers = None if ground is None else ground.layers
    beside = None if layers is None else layers.place_beside("checkpoints")
    shelf: Shelf = DirectoryShelf(config.data_dir / "checkpoints") if beside is None else SubvolumeShelf(beside)
    shelf.open()
    return CheckpointStore(shelf, layers, ensure_key(config.data_dir), disk)


def _load(name: str, config: EngineConfig, ground: Ground | None) -> Driver:
    driver: Driver
    if name in OCI:
        driver = import_module(OCI[name]).driver_factory(ground)
    elif name in PLAIN:
        driver = import_module(PLAIN[name]).driver_factory(config)
    else:
        raise BadRequest(f'no isolation driver "{name}": known are {", ".join([*OCI, *PLAIN])}', field="driver")
    return driver
