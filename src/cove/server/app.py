"""Wiring: settings into the lower layers' own structs, dialects and pages into one application."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from msgspec.structs import replace

from cove import dialects
from cove.core.accounts import AccountSettings
from cove.core.admission import AdmissionSettings
from cove.core.facade import Core
from cove.core.hostports import HostPortSettings
from cove.core.info import CoreSettings
from cove.core.metering import MeteringSettings
from cove.core.prices import Prices
from cove.core.ratelimits import RateSettings
from cove.edge.front import Front
from cove.edge.limits import MIB, EdgeLimits
from cove.edge.metrics import Metrics
from cove.edge.ops import Control, ServerFacts, Services, SshFacts
from cove.edge.stopping import Stopping
from cove.engine.agentbin import agent_build
from cove.engine.config import EngineConfig
from cove.engine.images.settings import ImageSettings, UnpackLimits
from cove.engine.pool import PoolConfig, PoolTarget
from cove.model.sandbox import TimeoutCounts
from cove.model.spans import Tracer
from cove.model.usage import PausedBilling
from cove.server.config import Settings
from cove.server.execution_settings import execution_policy
from cove.web import pages


def cove_version() -> str:
    """The installed version."""
    try:
        return version("cove")
    except PackageNotFoundError:
        return "0+unknown"


def engine_config(settings: Settings) -> EngineConfig:
    """What the engine is told."""
    config = EngineConfig.at(
        settings.data_dir,
        quota=settings.quota,
        pool_bytes=settings.pool_bytes,
        drivers=settings.drivers,
    )
    return replace(
        config,
        run_dir=settings.run_dir / config.instance,
        degrade=settings.degrade,
        has_network=settings.network,
        network_range=settings.network_range,
        network_outside=settings.network_outside,
        network_resolvers=settings.network_resolvers,
        network_opened_ranges=settings.network_opened_ranges,
    )


def core_settings(settings: Settings) -> CoreSettings:
    """What the core is told."""
    driver = settings.default_driver or settings.drivers[0]
    targets = tuple(
        PoolTarget(image=image, driver=name, size=size)
        for image in settings.pool_images
        for name, size in pool_sizes(settings, driver).items()
        if size
    )
    admission = AdmissionSettings(
        keep_free_bytes=settings.keep_free_mib * MIB or None,
        keep_free_disk_bytes=settings.keep_free_disk_mib * MIB or None,
        overcommit=settings.overcommit,
        max_sandboxes=settings.max_sandboxes,
        max_creates=settings.max_creates,
    )
    return CoreSettings(
        version=cove_version(),
        default_driver=driver,
        timeout_counts=TimeoutCounts(settings.timeout_counts),
        untrusted_drivers=settings.untrusted_drivers,
        pool=PoolConfig(targets=targets, agent_build=agent_build()),
        admission=admission,
        images=image_settings(settings),
        history_s=settings.history_days * 86400.0,
        audit_retention_s=settings.audit_retention * 86400.0,
        webhook_plain=settings.webhook_plain,
        template_ready=settings.template_ready,
        executions=execution_policy(settings),
        host_ports=host_port_settings(settings),
        accounts=account_settings(settings),
        key_forms={one.name: one.new_key for one in dialects.load() if one.new_key is not None},
        region=settings.region,
    )


def account_settings(settings: Settings) -> AccountSettings:
    """What things cost, and how often somebody may ask."""
    prices = Prices(
        vcpu_hour=settings.price_vcpu_hour,
        gib_hour=settings.price_gib_hour,
        traffic_gib=settings.price_traffic_gib,
    )
    metering = MeteringSettings(
        prices=prices,
        paused=PausedBilling(settings.bill_paused),
        interval_s=settings.usage_interval_s,
        keep_s=settings.usage_days * 86400.0,
    )
    rates = RateSettings(
        requests=settings.requests_per_minute,
        request_burst=settings.request_burst,
        failed_logins=settings.failed_logins_per_minute,
    )
    return AccountSettings(metering=metering, rates=rates)


def host_port_settings(settings: Settings) -> HostPortSettings | None:
    """Which ports of the host may lead into sandboxes."""
    if settings.forward_ports is None:
        return None
    first, last = settings.forward_ports
    return HostPortSettings(owner=engine_config(settings).run_dir, host=settings.forward_host, first=first, last=last)


def _split_alias(entry: str) -> tuple[str, str, str]:
    return entry.rpartition("=")


def image_settings(settings: Settings) -> ImageSettings:
    """Where images may come from, and how large they may be."""
    return ImageSettings(
        default_registry=settings.default_registry,
        registries=settings.registries,
        insecure_registries=settings.insecure_registries,
        aliases=tuple((pattern, image) for pattern, _, image in map(_split_alias, settings.image_aliases)),
        limits=UnpackLimits(
            most_bytes=settings.image_max_mib * MIB,
            most_files=settings.image_max_files,
            most_ratio=settings.image_max_ratio,
        ),
        pulls=settings.max_pulls,
        pull_s=settings.pull_timeout_s,
        stall_s=settings.pull_stall_s,
    )


def pool_sizes(settings: Settings, default_driver: str) -> dict[str, int]:
    """How many boxes of each driver to keep ready: `pool_size` of the default one, and what `pool_drivers` adds."""
    sizes = {default_driver: settings.pool_size}
    for entry in settings.pool_drivers:
        name, _, size = entry.partition("=")
        sizes[name] = int(size) if size else settings.pool_size
    return sizes


def edge_limits(settings: Settings) -> EdgeLimits:
    """What the edge is told."""
    return EdgeLimits(
        json_body_bytes=settings.json_body_mib * MIB,
        connections=settings.max_connections,
        proxy_s=settings.proxy_timeout_s,
    )


def server_facts(settings: Settings) -> ServerFacts:
    """What the server says about itself, and how it is reached from outside."""
    domain, _, port = settings.public_domain.partition(":")
    is_secure = settings.tls_cert is not None or settings.behind_proxy
    usual = 443 if is_secure else 80
    reached = int(port) if port else (usual if settings.behind_proxy else settings.port)
    return ServerFacts(
        version=cove_version(),
        public_domain=domain,
        public_port=None if reached == usual else reached,
        public_scheme="https" if is_secure else "http",
        behind_proxy=settings.behind_proxy,
        region=settings.region,
    )


def build_app(  # noqa: PLR0913 - what the application stands on
    core: Core,
    control: Control,
    settings: Settings,
    *,
    limits: EdgeLimits,
    stopping: Stopping,
    ssh: SshFacts | None = None,
    tracer: Tracer | None = None,
) -> Front:
    """The application over an open core."""
    metrics = Metrics()
    metrics.watch_core(core.stats)
    facts = replace(server_facts(settings), ssh=ssh or SshFacts())
    services = Services(core=core, control=control, metrics=metrics, facts=facts, tracer=tracer)
    mounted = dialects.load()
    web = pages.dialect(mounted[0], facts.version)
    front = Front((*mounted, web), services, limits=limits, stopping=stopping)
    front.log_requests = settings.log_requests
    return front
