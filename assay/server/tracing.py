"""OpenTelemetry: a server span a request, and under it what tokenizing, queue and inference took. Knows no text.

Imported only where traces are asked for; needs the extra `otel`. Spans are made when a request has ended, from what its
observation holds, so a request pays nothing for them while it runs. The standard variables (OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, …) are read by the SDK.
"""

from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from assay import __version__
from assay.server.access_log import PROBES
from assay.server.observation import Observation

_EXPORT_SECONDS = 5  # so long a collector that does not answer holds up the end of the process
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # others are the caller's own words


class Tracing:
    """Called with each request once it is answered. exporter: another than the one of the endpoint, for tests."""

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None) -> None:
        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "assay"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter or OTLPSpanExporter(traces_url(endpoint), timeout=_EXPORT_SECONDS))
        )
        self._tracer = self._provider.get_tracer("assay", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, observation: Observation) -> None:
        """Probes leave no traces."""
        if observation.path in PROBES:
            return
        method = observation.method if observation.method in _METHODS else "HTTP"  # as the conventions have it
        span = self._tracer.start_span(
            f"{method} {observation.dialect}",
            context=self._propagator.extract(_carrier(observation.headers)),
            kind=SpanKind.SERVER,
            attributes=_attributes(observation),
            start_time=observation.started_ns,
        )
        observation.trace_id = format_trace_id(span.get_span_context().trace_id)
        if observation.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if span.is_recording() and observation.predictions:
            self._stages(observation, set_span_in_context(span))
        span.end(_moment(observation, observation.seconds))

    def _stages(self, observation: Observation, parent: Context) -> None:
        """Those of the input that was answered last: laid end to end, they are why the request took so long."""
        last = max(observation.predictions, key=lambda prediction: prediction.timings.queue).timings
        after = observation.scoring - observation.started
        for name, seconds in (("tokenize", last.tokenize), ("queue", last.queue), ("inference", last.inference)):
            span = self._tracer.start_span(name, context=parent, start_time=_moment(observation, after))
            after += seconds
            span.end(_moment(observation, after))

    def close(self) -> None:
        """Send what is left. Slow where the collector is: call it off the event loop."""
        self._provider.shutdown()


def traces_url(endpoint: str) -> str:
    """A collector's address alone means its usual path; an address with a path is taken as it is."""
    return endpoint.rstrip("/") + "/v1/traces" if urlsplit(endpoint).path in ("", "/") else endpoint


def _carrier(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    names = (b"traceparent", b"tracestate")
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in names}


def _moment(observation: Observation, after: float) -> int:
    """Unix nanoseconds, so many seconds after the request came; durations are the monotonic clock's."""
    return observation.started_ns + int(after * 1e9)


def _attributes(observation: Observation) -> dict[str, AttributeValue]:
    """By OpenTelemetry's conventions for HTTP where they have a name, and ours below `assay.`."""
    attributes: dict[str, AttributeValue] = {
        "http.request.method": observation.method if observation.method in _METHODS else "_OTHER",
        "http.response.status_code": observation.status,
        "url.path": observation.path,
        "assay.request_id": observation.request_id,
        "assay.dialect": observation.dialect,
    }
    if observation.client is not None:
        attributes["client.address"] = observation.client.rpartition(":")[0]
    if observation.model is not None:
        attributes["assay.model"] = observation.model
    if observation.error is not None:
        attributes["error.type"] = observation.error
    if observation.predictions:
        attributes["assay.prompts"] = len(observation.predictions)
        attributes["assay.tokens"] = sum(prediction.num_tokens for prediction in observation.predictions)
    return attributes
