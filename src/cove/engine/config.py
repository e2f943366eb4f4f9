"""What the engine is told: one frozen struct, built in `server/`. Nothing here reads the environment."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.engine.network.topology import DEFAULT_RANGE, NetworkConfig
from cove.model.closed import Opening

RUN_ROOT: Final = Path("/run/cove")
"""Machine-wide: claims and one directory per instance. Gone at a reboot, as is everything that it describes."""

_TRIAL_POOL: Final = 8 * 1024**3


def instance_of(data_dir: Path) -> str:
    """The name of the server that owns `data_dir`: 12 hex digits, so that two servers never share a name."""
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]


class EngineConfig(Struct, frozen=True, kw_only=True):
    """Where the engine keeps things and what it may use.

    `pool_bytes` 0: 75 % of the free space of the data directory's file system. `quota` picks the storage of writable
    layers: `auto` (best the machine has), `btrfs`, `ext4` (a loop file per sandbox) or `tmpfs`. `degrade`: which lesser
    kinds of `ids.Ids` may be used where the machine has no better. The last five are `network`'s (`NetworkConfig`).
    """

    data_dir: Path
    instance: str
    run_dir: Path
    runtimes_dir: Path
    images_dir: Path
    quota: str = "auto"
    pool_bytes: int = 0
    drivers: tuple[str, ...] = ("runc",)
    degrade: tuple[str, ...] = ()
    has_network: bool = True
    network_range: IPv4Network = DEFAULT_RANGE
    network_outside: Path | None = None
    network_resolvers: tuple[str, ...] = ()
    network_opened_ranges: tuple[Opening, ...] = ()

    @property
    def network(self) -> NetworkConfig:
        """What the sandboxes' network is told."""
        return NetworkConfig(
            instance=self.instance,
            run_dir=self.run_dir,
            subnet=self.network_range,
            outside=self.network_outside,
            resolvers=self.network_resolvers,
            opened=self.network_opened_ranges,
            is_off=not self.has_network,
        )

    @classmethod
    def at(
        cls, data_dir: Path, *, quota: str = "auto", pool_bytes: int = 0, drivers: tuple[str, ...] = ("runc",)
    ) -> EngineConfig:
        """The usual layout below `data_dir`."""
        instance = instance_of(data_dir)
        return cls(
            data_dir=data_dir,
            instance=instance,
            run_dir=RUN_ROOT / instance,
            runtimes_dir=data_dir / "runtimes" / "current",
            images_dir=data_dir / "images",
            quota=quota,
            pool_bytes=pool_bytes,
            drivers=drivers,
        )

    @classmethod
    def for_trials(
        cls,
        data_dir: Path,
        setup_dir: Path,
        drivers: tuple[str, ...],
        *,
        quota: str = "auto",
        degrade: tuple[str, ...] = (),
    ) -> EngineConfig:
        """An engine of its own in `data_dir`, with the runtimes and images that setup made in `setup_dir`."""
        config = cls.at(data_dir, drivers=drivers, pool_bytes=_TRIAL_POOL, quota=quota)
        runtimes, images = setup_dir / "runtimes" / "current", setup_dir / "images"
        return replace(config, runtimes_dir=runtimes, images_dir=images, degrade=degrade)
