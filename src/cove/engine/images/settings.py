"""What the image store is told: one frozen struct, built in `server/`."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

from cove.model.reference import DEFAULT_REGISTRY

GIB: Final = 1024**3


class UnpackLimits(Struct, frozen=True, kw_only=True):
    """How large an image may become: bytes on the disk, entries, and bytes out per byte in of each layer."""

    most_bytes: int = 20 * GIB
    most_files: int = 2_000_000
    most_ratio: int = 100


class ImageSettings(Struct, frozen=True, kw_only=True):
    """Where images may come from, and how long a pull may take.

    `registries` and `insecure_registries` are the operator's lists (`addresses.RegistryRules`); `aliases` are pairs of
    a pattern and a built-in image (`aliases.py`), in order. Seconds: `pull_s` for a whole pull, `stall_s` without a
    byte, `connect_s` to reach a host, `unreachable_s` for which a registry that was not reached is not asked again.
    """

    default_registry: str = DEFAULT_REGISTRY
    registries: tuple[str, ...] = ("*",)
    insecure_registries: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    limits: UnpackLimits = field(default_factory=UnpackLimits)
    pulls: int = 3
    pull_s: float = 1800.0
    stall_s: float = 60.0
    connect_s: float = 2.0
    unreachable_s: float = 600.0
    watch_grace_s: float = 10.0
