"""What the core tells about itself, and what it is told. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from cove.core.accounts import AccountSettings, AccountStats
from cove.core.admission import AdmissionSettings, AdmissionStats
from cove.core.executionpolicy import ExecutionPolicy
from cove.core.hostports import HostPortSettings
from cove.core.pulls import PullStats
from cove.engine.images.settings import ImageSettings
from cove.engine.pool import PoolConfig, ShelfStats
from cove.model.code import RunStatus
from cove.model.image import ImageInfo
from cove.model.keyform import REGION, KeyForm
from cove.model.sandbox import Isolation, TimeoutCounts
from cove.model.state import State
from cove.store.writer import WriterStats


class CoreSettings(Struct, frozen=True, kw_only=True):
    """How the core decides. Built once in `server/`. Pool targets are upper bounds: memory may make them smaller.

    `key_forms`: how keys that are limited to a dialect look, by its name; `region`: what they say of where they work.
    """

    version: str = "0"
    default_driver: str = "runc"
    untrusted_drivers: tuple[str, ...] = ()
    pool: PoolConfig = field(default_factory=PoolConfig)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    timeout_counts: TimeoutCounts = TimeoutCounts.ALWAYS
    history_s: float = 30 * 86400.0
    audit_retention_s: float = 400 * 86400.0
    webhook_plain: bool = False
    template_ready: int = 16
    host_ports: HostPortSettings | None = None
    accounts: AccountSettings = AccountSettings()
    executions: ExecutionPolicy = ExecutionPolicy()
    key_forms: Mapping[str, KeyForm] = field(default_factory=dict[str, KeyForm])
    region: str = REGION


class DriverInfo(Struct, frozen=True, kw_only=True):
    """A driver that this server knows; usable when nothing is missing."""

    name: str
    usable: bool
    missing: tuple[str, ...]


class CoreStats(Struct, frozen=True, kw_only=True):
    """Counts and sizes for metrics; counters count since start."""

    sandboxes: dict[State, int]
    created_warm: int
    created_cold: int
    create_failures: int
    pool: tuple[ShelfStats, ...]
    admission: AdmissionStats
    store: WriterStats
    images: PullStats
    accounts: AccountStats
    code_runs: Mapping[RunStatus, int] = field(default_factory=dict[RunStatus, int])
    kernels_started: int = 0


class ServerInfo(Struct, frozen=True, kw_only=True):
    """What a caller may know of this server. `isolation`: what sandboxes of the default driver get, once one ran."""

    version: str
    drivers: tuple[DriverInfo, ...]
    default_driver: str
    images: tuple[ImageInfo, ...]
    max_sandboxes: int
    sandboxes: int
    memory_free_bytes: int
    pool: dict[str, int]
    isolation: Isolation | None
