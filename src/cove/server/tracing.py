"""Traces by OpenTelemetry, sent as OTLP over HTTP to where the operator says. Loaded only if that is configured.

The exporter has a thread and a bounded queue of its own: a collector that is slow or gone costs spans, never a request.
What it needs to send along (a token) it reads itself from OTEL_EXPORTER_OTLP_HEADERS, so that no setting holds it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cove.model.errors import EngineFailure
from cove.model.spans import Attribute

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

EXPORT_S: Final = 3.0
FLUSH_MS: Final = 3000
"""How long the end of the server waits for the last spans."""


class RequestTrace:
    """A request's span, `model.spans.Trace`."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    @contextmanager
    def child(self, name: str, attributes: Mapping[str, Attribute]) -> Generator[None]:
        """A span within it."""
        from opentelemetry import trace

        within = trace.set_span_in_context(self._span)
        one = self._tracer.start_span(name, context=within, attributes=dict(attributes))
        try:
            yield
        except BaseException as error:
            # The class alone: an error's text may hold what the caller sent.
            one.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            one.end()

    def end(self, name: str, attributes: Mapping[str, Attribute], *, failed: bool) -> None:
        """Close it."""
        from opentelemetry import trace

        self._span.update_name(name)
        self._span.set_attributes(dict(attributes))
        if failed:
            self._span.set_status(trace.Status(trace.StatusCode.ERROR))
        self._span.end()


class OpenTelemetry:
    """`model.spans.Tracer` over an OpenTelemetry provider."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("cove")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Mapping[str, str]) -> RequestTrace:
        """A server span that starts now."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(headers)
        return RequestTrace(self._tracer, self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER))

    def close(self) -> None:
        """Send what waits, for FLUSH_MS at most. Blocks."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


def open_tracing(endpoint: str, ratio: float, *, version: str, exporter: SpanExporter | None = None) -> OpenTelemetry:
    """Export to `endpoint` (OTLP over HTTP, `/v1/traces` is added), a share `ratio` of requests that no caller traces.

    Raises: EngineFailure when the libraries are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise EngineFailure(
            "COVE_OTLP_ENDPOINT is set, and OpenTelemetry is not installed: pip install 'cove[otel]'",
            internal=str(error),
        ) from error
    provider = TracerProvider(
        resource=Resource.create({"service.name": "cove", "service.version": version}),
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        shutdown_on_exit=False,
    )
    sink = exporter or OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(sink))
    return OpenTelemetry(provider)
