"""Prometheus metrics: the whole time of every request by operation, and the core's gauges. No global registry.

To add a number of the core: a field of `CoreStats` (admission, store and pool are taken over field by field).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from cove.core.accounts import AccountStats
from cove.core.info import CoreStats

MEDIA_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
"""Seconds. Fine where the promises are (1-25 ms), coarse where a command's own time rules."""


class Metrics:
    """What this server counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "cove_request_seconds",
            "Whole time of a request, from its head to the end of its answer",
            ("dialect", "op"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._answers = Counter(
            "cove_answers",
            "Answers by status (499: the client went away)",
            ("dialect", "op", "status"),
            registry=self._registry,
        )
        self.in_flight = Gauge("cove_requests_in_flight", "Requests being answered", registry=self._registry)
        self._histograms: dict[tuple[str, str], Histogram] = {}
        self._counters: dict[tuple[str, str, int], Counter] = {}
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def observe(self, dialect: str, op: str, status: int, seconds: float) -> None:
        """Count one answered request. An unknown path has no operation; its text never becomes a label."""
        op = op or "none"
        histogram = self._histograms.get((dialect, op))
        if histogram is None:
            histogram = self._histograms[dialect, op] = self._seconds.labels(dialect, op)
        histogram.observe(seconds)
        counter = self._counters.get((dialect, op, status))
        if counter is None:
            counter = self._counters[dialect, op, status] = self._answers.labels(dialect, op, str(status))
        counter.inc()

    def watch_core(self, stats: Callable[[], CoreStats]) -> None:
        """Add the core's numbers, read at each scrape."""
        self._registry.register(_CoreCollector(stats))

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _CoreCollector(Collector):
    """The core's numbers as metrics."""

    def __init__(self, stats: Callable[[], CoreStats]) -> None:
        self._stats = stats

    def describe(self) -> list[Metric]:
        """Nothing beforehand: the registry need not ask a core that is not open yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        stats = self._stats()
        sandboxes = GaugeMetricFamily("cove_sandboxes", "Sandboxes that have not ended, by state", labels=["state"])
        for state, count in stats.sandboxes.items():
            sandboxes.add_metric([state.value], count)
        yield sandboxes
        created = CounterMetricFamily("cove_sandboxes_created", "Creates by source", labels=["source"])
        created.add_metric(["warm"], stats.created_warm)
        created.add_metric(["cold"], stats.created_cold)
        yield created
        yield CounterMetricFamily("cove_create_failures", "Creates that failed", value=stats.create_failures)
        runs = CounterMetricFamily("cove_code_runs", "Runs of code in contexts, by how they ended", labels=["status"])
        for status, count in stats.code_runs.items():
            runs.add_metric([status.value], count)
        yield runs
        yield CounterMetricFamily(
            "cove_code_kernels_started", "Interpreters that a run of code had to wait for", value=stats.kernels_started
        )
        yield from _shelves(stats)
        yield from _structs("cove_admission", stats.admission)
        yield from _structs("cove_store", stats.store)
        yield from _structs("cove_images", stats.images)
        yield from _accounts(stats.accounts)


def _accounts(stats: AccountStats) -> Iterator[Metric]:
    """What all sandboxes used since the start, and what was refused; never by project or key: there may be many."""
    usage = stats.usage
    for name, text, value in (
        ("cove_usage_running_seconds", "Time that sandboxes ran", usage.running_ms / 1000),
        ("cove_usage_paused_seconds", "Time that sandboxes were paused", usage.paused_ms / 1000),
        ("cove_usage_vcpu_seconds", "Billed vCPU-seconds of allocated cores", usage.vcpu_us / 1e6),
        ("cove_usage_gib_seconds", "Billed GiB-seconds of allocated memory", usage.mib_ms / 1024e3),
        ("cove_usage_cpu_seconds", "CPU time that sandboxes used", usage.cpu_ms / 1000),
        ("cove_usage_sent_bytes", "Bytes that sandboxes sent over their network", usage.sent_bytes),
        ("cove_usage_received_bytes", "Bytes that sandboxes received over their network", usage.received_bytes),
        ("cove_usage_cost", "What it all costs, in the currency of the prices", usage.cost_nano / 1e9),
        ("cove_requests_rate_limited", "Requests refused for their number", stats.rates.requests_refused),
        ("cove_logins_failed", "Requests and SSH connections without a valid key", stats.rates.logins_failed),
        ("cove_logins_refused", "Logins refused because too many had failed", stats.rates.logins_refused),
    ):
        yield CounterMetricFamily(name, text, value=value)
    refused = CounterMetricFamily("cove_quota_refused", "What quotas refused, by what ran out", labels=["field"])
    for field, count in stats.quotas.refused.items():
        refused.add_metric([field], count)
    yield refused
    yield GaugeMetricFamily("cove_quotas", "Projects and keys that have a quota", value=stats.quotas.limited)
    yield GaugeMetricFamily(
        "cove_rate_buckets", "Keys and addresses whose requests are counted", value=stats.rates.buckets
    )


def _shelves(stats: CoreStats) -> Iterator[Metric]:
    shelves = GaugeMetricFamily("cove_pool", "Warm pool, by what is counted", labels=["image", "driver", "count"])
    for shelf in stats.pool:
        kind = f"snapshot:{shelf.origin}" if shelf.origin else shelf.image
        kind += f" for {shelf.purpose}" if shelf.purpose else ""
        for name in shelf.__struct_fields__:
            value = getattr(shelf, name)
            if isinstance(value, int | float):
                shelves.add_metric([kind, shelf.driver, name], value)
    yield shelves


def _structs(prefix: str, stats: object) -> Iterator[Metric]:
    """Every number of a stats struct as a gauge of its own name."""
    for name in getattr(stats, "__struct_fields__", ()):
        value = getattr(stats, name)
        if isinstance(value, int | float):
            yield GaugeMetricFamily(f"{prefix}_{name}", f"{prefix} {name}".replace("_", " "), value=value)
